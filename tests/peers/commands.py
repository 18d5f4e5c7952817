"""Running the built commands from a comparison with another implementation."""

import json
import os
import subprocess
import sys
import tempfile

from safetensors.torch import load_file


def run(*command, **settings):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **settings)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
    return done.stdout


def tensors(blip2, *command):
    """What `blip2 trace` or `embed` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "out.safetensors")
        run(blip2, *command, "--out", path, "--quiet")
        return load_file(path)


def greedy(blip2, picture, prompt, count, *more):
    """Ids of exactly `count` greedy tokens."""
    command = [blip2, "caption", picture, "--prompt", prompt, "--num-beams", 1, "--json", "--quiet", *more]
    line = run(*command, "--max-new-tokens", count, "--min-new-tokens", count)
    return json.loads(line)["outputs"][0]["token_ids"]


def report(lines, out):
    """Prints a Markdown report, and writes it to `out` if that is given."""
    print("\n".join(lines))
    if out:
        with open(out, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
