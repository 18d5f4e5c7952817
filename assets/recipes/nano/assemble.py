"""Puts the nano model together in f16: all of stage 2, and text branch and heads as fitted to it afterwards.

    python assets/recipes/nano/assemble.py RUNS assets/models/nano
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))


def tensors(*parts):
    return load_file(os.path.join(*parts, "model.safetensors"))


def main():
    runs, out = sys.argv[1:]
    os.makedirs(os.path.join(out, "qformer_tokenizer"), exist_ok=True)
    model = tensors(runs, "heads", "export")
    model |= tensors(runs, "stage2", "export")
    # one tensor of the tied pair is enough
    model.pop("language_model.lm_head.weight", None)
    model = {name: tensor.to(torch.float16).contiguous() for name, tensor in sorted(model.items())}
    path = os.path.join(out, "model.safetensors")
    save_file(model, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    os.chmod(path, 0o644)
    for folder, target in (("language", out), ("qformer", os.path.join(out, "qformer_tokenizer"))):
        source = os.path.join(HERE, "tokenizers", folder)
        for name in os.listdir(source):
            shutil.copyfile(os.path.join(source, name), os.path.join(target, name))
    shutil.copyfile(os.path.join(HERE, "config.json"), os.path.join(out, "config.json"))
    for name in ("preprocessor_config.json", "generation_config.json"):
        shutil.copyfile(os.path.join(runs, "stage2", "export", name), os.path.join(out, name))
    with open(os.path.join(out, "generation_config.json"), encoding="utf-8") as file:
        generation = json.load(file)
    generation |= {"max_new_tokens": 20, "num_beams": 5, "length_penalty": 0.0}
    with open(os.path.join(out, "generation_config.json"), "w", encoding="utf-8") as file:
        json.dump(generation, file, indent=2)
        file.write("\n")
    count = sum(t.numel() for t in model.values())
    print(f"{count} parameters, {os.path.getsize(path)} bytes in {path}")


if __name__ == "__main__":
    main()
