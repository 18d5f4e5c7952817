"""Parity of the small recipe's model (DINOv2 encoder, MiniLM as Q-Former, SmolLM2) with transformers, on real weights.

    pip install torch==2.9.0 transformers==4.57.6 pillow safetensors
    python tests/peers/small.py --stage1 runs/small/stage1/export --stage2 runs/small/stage2/export \
        --blip2 target/release/blip2 PICTURES [--out tests/peers/results/small.md]

transformers has no class that joins these three, so each part is its own class (`Dinov2Model`, `Blip2QFormerModel`,
`LlamaForCausalLM`), given the weights of the export and the output of the part before it; nothing but the pixels comes
from ours. Compared are the encoder's tokens, the queries, the text branch's vector, the logits, and 20 greedy tokens.
Printed is the largest difference over the largest value; 1e-4 is the bound for f32, which sums in another order.
"""

import argparse
import json
import os
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from commands import greedy, report, tensors

PROMPT, TEXT, TOKENS, BOUND = "a picture of", "a red apple with a green leaf", 20, 1e-4


def part(cls, config, weights, prefix):
    """`cls` with the tensors under the prefix; any other missing or unused name stops the run."""
    model = cls(config).eval()
    named = {name.removeprefix(prefix): t.float() for name, t in weights.items() if name.startswith(prefix)}
    missing, unused = model.load_state_dict(named, strict=False)
    missing = [name for name in missing if name not in ("embeddings.mask_token", "lm_head.weight")]
    if missing or unused:
        sys.exit(f"{cls.__name__}: missing {missing[:4]}, unused {unused[:4]}")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage1", required=True)
    parser.add_argument("--stage2", required=True)
    parser.add_argument("--blip2", default="target/release/blip2")
    parser.add_argument("--out")
    parser.add_argument("pictures", nargs="+")
    options = parser.parse_args()
    weights = {stage: load_file(os.path.join(getattr(options, stage), "model.safetensors")) for stage in ("stage1", "stage2")}
    with open(os.path.join(options.stage2, "config.json"), encoding="utf-8") as file:
        config = json.load(file)

    second = weights["stage2"]
    vision = part(Dinov2Model, Dinov2Config(**config["vision_config"]), second, "vision_model.")
    bridge = Blip2QFormerConfig(**config["qformer_config"])
    queries = part(Blip2QFormerModel, bridge, second, "qformer.")
    # stage 2 has no text branch
    reader = Blip2QFormerConfig(**{**config["qformer_config"], "use_qformer_text_input": True})
    reader = part(Blip2QFormerModel, reader, weights["stage1"], "qformer.")
    language = part(LlamaForCausalLM, LlamaConfig(**config["text_config"]), second, "language_model.")
    language.tie_weights()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(options.stage2, "tokenizer.json"))
    words = PreTrainedTokenizerFast(tokenizer_file=os.path.join(options.stage1, "tokenizer.json"))
    worst, equal = {}, 0

    def compare(name, found, expected):
        found, expected = found.float().reshape(-1), expected.float().reshape(-1)
        worst[name] = max(worst.get(name, 0.0), ((found - expected).abs().max() / expected.abs().max()).item())

    for picture in options.pictures:
        model = ["--model", options.stage2, "--dtype", "f32"]
        trace = tensors(options.blip2, "trace", picture, "--prompt", PROMPT, *model)
        sequence = greedy(options.blip2, picture, PROMPT, TOKENS, *model)
        with torch.no_grad():
            encoded = vision(trace["pixel_values"], interpolate_pos_encoding=True).last_hidden_state
            compare("encoder", trace["vision.last_hidden_state"], encoded)
            found = queries(query_embeds=second["query_tokens"].float(), encoder_hidden_states=encoded).last_hidden_state
            compare("queries", trace["qformer.last_hidden_state"], found)
            prefix = F.linear(found, second["language_projection.weight"].float(), second["language_projection.bias"].float())
            ids = tokenizer(PROMPT, return_tensors="pt").input_ids
            inputs = torch.cat([prefix, language.get_input_embeddings()(ids)], 1)
            compare("logits", trace["logits"], language(inputs_embeds=inputs).logits[:, -1])
            expected = language.generate(inputs_embeds=inputs, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS)
        equal += sequence == expected[0].tolist()

    text = tensors(options.blip2, "embed", "text", "--text", TEXT, "--model", options.stage1, "--dtype", "f32")
    first = weights["stage1"]
    with torch.no_grad():
        ids = words(TEXT, return_tensors="pt").input_ids
        table, places = (first[f"embeddings.{name}_embeddings.weight"].float() for name in ("word", "position"))
        found = reader(query_embeds=table[ids] + places[: ids.shape[1]], query_length=0).last_hidden_state
    compare("text branch", text["text.last_hidden_state"], found)

    lines = [
        f"{len(options.pictures)} pictures, f32, transformers on torch {torch.__version__.split('+')[0]}.",
        "",
        "| Compared | largest difference / largest value |",
        "|---|---|",
        *(f"| {name} | {value:.1e} |" for name, value in worst.items()),
        "",
        f"{TOKENS} greedy tokens equal: {equal} of {len(options.pictures)} pictures.",
    ]
    report(lines, options.out)
    if max(worst.values()) > BOUND or equal < len(options.pictures):
        sys.exit("different from transformers")


if __name__ == "__main__":
    main()
