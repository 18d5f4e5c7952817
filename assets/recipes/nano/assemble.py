"""Puts the two bundled models together in f16. They share one frozen encoder, so `nano-itm` links to the file of `nano`.

    python assets/recipes/nano/assemble.py RUNS assets/models

`nano` is all of stage 2 (its second round), and text branch and heads as fitted to it afterwards; `nano-itm` is what was tuned for retrieval.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def tensors(*parts):
    return load_file(os.path.join(*parts, "model.safetensors"))


def is_frozen(name):
    """Whether a tensor is of the encoder; its last norm trains as `ln_vision`."""
    return name.startswith("vision_model.") and "post_layernorm" not in name


def save(named, path):
    save_file(named, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    os.chmod(path, 0o644)


def dump(value, path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def model(named, out, encoder=None, **settings):
    """A model folder; `encoder` is another folder that has this one's encoder."""
    os.makedirs(out, exist_ok=True)
    # one tensor of the tied pair is enough
    named.pop("language_model.lm_head.weight", None)
    named = {name: tensor.to(torch.float16).contiguous() for name, tensor in sorted(named.items())}
    parts = [{n: t for n, t in named.items() if is_frozen(n) == frozen} for frozen in (True, False)]
    first = os.path.join(out, FILES[0])
    if encoder is None:
        save(parts[0], first)
    else:
        shared = load_file(os.path.join(encoder, FILES[0]))
        if shared.keys() != parts[0].keys() or not all(torch.equal(shared[name], parts[0][name]) for name in shared):
            raise SystemExit(f"{out} was trained with another encoder than {encoder} has")
        if os.path.lexists(first):
            os.remove(first)
        os.symlink(os.path.relpath(os.path.join(encoder, FILES[0]), out), first)
    save(parts[1], os.path.join(out, FILES[1]))
    size = sum(t.numel() * t.element_size() for t in named.values())
    weight_map = {name: FILES[not is_frozen(name)] for name in named}
    dump({"metadata": {"total_size": size}, "weight_map": weight_map}, os.path.join(out, "model.safetensors.index.json"))
    with open(os.path.join(HERE, "config.json"), encoding="utf-8") as file:
        dump(json.load(file) | settings, os.path.join(out, "config.json"))
    print(f"{sum(t.numel() for t in named.values())} parameters in {out}")


def tokenizer(name, out):
    shutil.copytree(os.path.join(HERE, "tokenizers", name), out, dirs_exist_ok=True)


def main():
    runs, out = sys.argv[1:]
    nano, itm = os.path.join(out, "nano"), os.path.join(out, "nano-itm")
    model(tensors(runs, "heads2", "export") | tensors(runs, "captions", "export"), nano)
    retrieval = tensors(runs, "match", "export")
    # transformers' class for retrieval has neither the head of grounded generation nor the temperature
    retrieval = {n: t for n, t in retrieval.items() if not n.startswith("qformer_lm_head.") and n != "temp"}
    model(retrieval, itm, encoder=nano, architectures=["Blip2ForImageTextRetrieval"])
    tokenizer("language", nano)
    tokenizer("qformer", os.path.join(nano, "qformer_tokenizer"))
    tokenizer("qformer", itm)
    for folder in (nano, itm):
        shutil.copyfile(
            os.path.join(runs, "captions", "export", "preprocessor_config.json"),
            os.path.join(folder, "preprocessor_config.json"),
        )
    with open(os.path.join(runs, "captions", "export", "generation_config.json"), encoding="utf-8") as file:
        generation = json.load(file) | {"max_new_tokens": 20, "num_beams": 5, "length_penalty": 0.0}
    # the language model has read questions before answers, and would now and then begin a caption with one
    with open(os.path.join(HERE, "tokenizers/language/vocab.json"), encoding="utf-8") as file:
        vocab = json.load(file)
    generation["begin_suppress_tokens"] = [vocab["Question"], vocab["ĠQuestion"]]
    dump(generation, os.path.join(nano, "generation_config.json"))


if __name__ == "__main__":
    main()
