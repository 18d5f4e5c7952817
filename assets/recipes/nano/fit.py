"""What the Python parts of the nano recipe share: the shards' files, the contrastive loss, and a training loop."""

import math
import os
import tarfile
import time

import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))


# what `--concepts` of the scripts chooses from
SPLITS = {"all": ("train", "held"), "train": ("train",), "held": ("held",)}


def members(style, splits=SPLITS["all"]):
    """(name, bytes) of all files of a style's shards."""
    for split in splits:
        with tarfile.open(os.path.join(HERE, f"../../data/emoji/{style}-{split}.tar")) as tar:
            for member in tar:
                yield member.name, tar.extractfile(member).read()


def info_nce(points, others, temperature):
    """InfoNCE both ways: row `i` of `[B, D]` belongs to row `i` of the other, and to no other row."""
    logits = F.normalize(points, dim=1) @ F.normalize(others, dim=1).T / temperature
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def fit(loss, groups, clipped, steps, rate, floor, warmup, every):
    """AdamW on `loss()`: warm-up, then a cosine from `rate` to `floor`; a group's `faster` multiplies its rate."""
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    began, recent = time.time(), []
    for step in range(1, steps + 1):
        now = rate * min(1, step / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / steps)) + floor
        for group in optimizer.param_groups:
            group["lr"] = now * group.get("faster", 1)
        value = loss()
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(clipped, 1.0)
        optimizer.step()
        recent.append(value.item())
        if step % every == 0:
            mean = sum(recent) / len(recent)
            print(f"step {step}: loss {mean:.3f}, {(time.time() - began) / step:.2f} s a step", flush=True)
            recent = []
