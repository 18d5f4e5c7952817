"""Peak memory of `blip2 caption` on a checkpoint of the OPT-2.7B model's size: at most 1.15 x the weights as kept + 1 GB.

Makes the checkpoint (7.5 GB of random bf16 weights, see ../fixtures/gen/random_published.py for what it needs), captions
a picture, prints one JSON object, and deletes the checkpoint again. Wants 13 GB of memory and 8 GB of disk.

    cargo build --release
    python tests/peers/memory.py [--checkpoint FOLDER] [--command target/release/blip2]

With --checkpoint an existing folder is used (and kept), or the new one is written there (and kept).
"""

import argparse
import json
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PICTURE = TESTS / "fixtures" / "parity" / "images" / "boat.png"


def measure(command, folder, tokens, extra):
    arguments = [command, "caption", str(PICTURE), "--model", str(folder), "--json", "--max-new-tokens", str(tokens), *extra]
    start = time.monotonic()
    done = subprocess.run(arguments, check=True, capture_output=True)
    # what the command says it keeps, per part: the Q-Former is wider in memory than in a bf16 file
    weights = sum(float(mb) * 1e6 for mb in re.findall(rb"\(([0-9.]+) MB\)", done.stderr))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    answer = json.loads(done.stdout.splitlines()[-1])
    bound = int(1.15 * weights + 1e9)
    return {
        "weights_bytes": int(weights),
        "peak_resident_bytes": peak,
        "bound_bytes": bound,
        "within": peak <= bound,
        "seconds": round(time.monotonic() - start, 1),
        "timing_ms": answer["timing_ms"],
        "tokens": len(answer["outputs"][0]["token_ids"]),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--command", default=str(TESTS.parent / "target" / "release" / "blip2"))
    parser.add_argument("--tokens", type=int, default=10, help="length of the caption")
    parser.add_argument("extra", nargs="*", help="further options of blip2, after --")
    args = parser.parse_args()
    folder = args.checkpoint or Path(tempfile.mkdtemp(prefix="blip2-memory-", dir="."))
    try:
        if (folder / "config.json").exists():
            result = measure(args.command, folder, args.tokens, args.extra)
            print(json.dumps(result))
            return 0 if result["within"] else 1
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < 9e9:
            sys.exit(f"{folder}: {free / 1e9:.1f} GB free, 9 GB are needed")
        script = TESTS / "fixtures" / "gen" / "random_published.py"
        subprocess.run([sys.executable, str(script), str(folder)], stdout=sys.stderr, check=True)
        # measured by a process of its own: the largest child is what gets reported, and the script above was one
        again = [sys.executable, __file__, "--checkpoint", str(folder), "--command", args.command]
        again += ["--tokens", str(args.tokens), "--", *args.extra]
        return subprocess.run(again).returncode
    finally:
        if not args.checkpoint:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
