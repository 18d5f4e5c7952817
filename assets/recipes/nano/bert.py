"""The start of the nano model's Q-Former: a small BERT that has learned from MiniLM what texts mean.

    pip install torch numpy pillow transformers tokenizers safetensors
    python assets/recipes/nano/bert.py --teacher runs/small/parts/qformer --out runs/nano/bert

BLIP-2 starts its Q-Former as BERT, and without such a start the text branch, not the picture, is what stage 1 learns
slowest. The teacher is MiniLM (`assets/recipes/small/convert.py` unpacks it), whose sentence embedding, the mean of its
tokens, is compared through one learned linear map with the student's `[CLS]` through another, as stage 1 compares it
with queries: InfoNCE over a batch of the texts that the small language model reads, and the captions. `--concepts train`
leaves out the captions of the held-out concepts.
"""

import argparse
import json
import os

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

import align
from fit import SPLITS, fit, info_nce, members

HERE = os.path.dirname(os.path.abspath(__file__))
BATCH, TEMPERATURE, LENGTH = 256, 0.05, 24


def captions(*splits):
    styles = ("fluent", *align.STYLES)
    files = (file for style in styles for file in members(style, splits))
    return {json.loads(content)["caption"] for name, content in files if name.endswith(".json")}


def lines(name):
    with open(os.path.join(HERE, name), encoding="utf-8") as file:
        return [line.strip() for line in file if line.strip()]


def padded(path, texts, length):
    """Ids and mask, `[texts, T]`."""
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(texts)
    return torch.tensor([e.ids for e in encoded]), torch.tensor([e.attention_mask for e in encoded])


def sentences(teacher, texts):
    """MiniLM's sentence embeddings, unit vectors `[texts, 384]`; `teacher` is its folder."""
    model = BertModel.from_pretrained(teacher).eval()
    ids, mask = padded(os.path.join(teacher, "tokenizer.json"), texts, 2 * LENGTH)
    parts = []
    with torch.no_grad():
        for part, keep in zip(ids.split(256), mask.split(256)):
            width = int(keep.sum(1).max())
            part, keep = part[:, :width], keep[:, :width]
            tokens = model(part, attention_mask=keep).last_hidden_state * keep[..., None]
            parts.append(F.normalize(tokens.sum(1), dim=1))
    return torch.cat(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="folder with MiniLM as BERT")
    parser.add_argument("--out", required=True)
    parser.add_argument("--concepts", choices=SPLITS, default="all")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2e-3)
    options = parser.parse_args()
    torch.manual_seed(0)
    with open(os.path.join(HERE, "config.json"), encoding="utf-8") as file:
        qformer = json.load(file)["qformer_config"]
    wanted = captions(*SPLITS[options.concepts])
    unseen = captions("held") - wanted
    texts = sorted(wanted | {line for line in lines("texts.txt") if not any(caption in line for caption in unseen)})
    named = torch.tensor([text in wanted for text in texts])

    meanings = sentences(options.teacher, texts)
    print(f"{len(texts)} texts", flush=True)

    ids, mask = padded(os.path.join(HERE, "tokenizers/qformer/tokenizer.json"), texts, LENGTH)
    same = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
            "max_position_embeddings", "layer_norm_eps", "pad_token_id", "initializer_range")  # fmt: skip
    config = BertConfig(**{key: qformer[key] for key in same}, hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    student = BertModel(config, add_pooling_layer=False)
    ours, theirs = (torch.nn.Linear(width, 128) for width in (config.hidden_size, meanings.shape[1]))
    trained = [*student.parameters(), *ours.parameters(), *theirs.parameters()]
    # half of a batch are captions
    weight = named / named.sum() + ~named / (~named).sum()

    def loss():
        chosen = torch.multinomial(weight, BATCH)
        width = int(mask[chosen].sum(1).max())
        tokens = student(ids[chosen, :width], attention_mask=mask[chosen, :width]).last_hidden_state
        return info_nce(ours(tokens[:, 0]), theirs(meanings[chosen]), TEMPERATURE)

    groups = [{"params": trained, "weight_decay": 0.01}]
    fit(loss, groups, trained, options.steps, options.rate, floor=1e-6, warmup=100, every=100)
    # BLIP-2 has no token types
    with torch.no_grad():
        types = student.embeddings.token_type_embeddings.weight
        student.embeddings.position_embeddings.weight += types[:1]
        types.zero_()
    student.save_pretrained(options.out)
    print(f"{sum(t.numel() for t in student.parameters())} parameters in {options.out}")


if __name__ == "__main__":
    main()
