"""Second part of the nano model's frozen encoder: drawings of one thing in different styles come together.

    pip install torch numpy pillow safetensors
    python assets/recipes/nano/align.py --vit runs/nano/cut --out runs/nano/vit [--concepts train]

Contrast between pictures (no text), in two ways. Pairs: a batch holds the same concept drawn in two of the seven
training styles, and the other pairs are the negatives (InfoNCE, as SimCLR's with styles in the place of augmentations).
Concepts come in runs of four neighbours of the table, which are mostly of one family, so that a man and a woman at the
same work are told apart. With `--prototypes`, a second pass over what the first wrote: also every picture against one learned point for each concept (softmax over cosines, as
NormFace's), which starts at the mean of the concept's pictures. Compared are the pooled tokens
`[CLS | mean of the patches]` and the means of one to six random patches, standardised as the encoder's output was before
training. Fluent, the test style, is never read. `--concepts train` leaves out the held-out concepts as well.

`post_layernorm`, which the trainer goes on training as `ln_vision`, starts as the standardisation of every dimension.
"""

import argparse
import io
import os
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from fit import SPLITS, fit, info_nce, members

STYLES = ("noto", "twemoji", "blob", "emojione", "mono", "openmoji", "fxemoji")
BLOCKS, GRID, WIDTH, HEADS = 8, 6, 384, 6
SIZE = 14 * GRID
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
RUNS, RUN, TEMPERATURE = 24, 4, 0.07
MODEL = "vision_model."


def drawings(splits):
    """Concept -> style -> picture `[3, 84, 84]`, 8 bits."""
    out = {}
    for style in STYLES:
        for name, content in members(style, splits):
            if name.endswith(".png"):
                image = Image.open(io.BytesIO(content)).convert("RGB")
                image = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
                concept = os.path.basename(name).removesuffix(".png").removeprefix(style + "-")
                out.setdefault(concept, {})[style] = torch.tensor(image).permute(2, 0, 1)
    return dict(sorted(out.items()))


def varied(images):
    """Pictures `[B, 3, S, S]` in 0..1, moved, stretched and recoloured a little, on white."""
    count = len(images)
    between = lambda low, high: low + (high - low) * torch.rand(count)
    angle, scale, aspect = between(-0.2, 0.2), between(0.82, 1.18), between(0.92, 1.08)
    cos, sin, shift = angle.cos() * scale, angle.sin() * scale, (between(-0.08, 0.08), between(-0.08, 0.08))
    maps = torch.stack([cos * aspect, -sin, shift[0], sin * aspect, cos, shift[1]], 1).view(count, 2, 3)
    grid = F.affine_grid(maps, images.shape, align_corners=False)
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    # hue and saturation turn and stretch the colour plane of YIQ
    saturation = between(0.45, 1.5) * (torch.rand(count) > 0.12)
    hue = between(-0.45, 0.45)
    luma = torch.einsum("bchw,c->bhw", images, torch.tensor([0.299, 0.587, 0.114]))
    i = torch.einsum("bchw,c->bhw", images, torch.tensor([0.596, -0.274, -0.322]))
    q = torch.einsum("bchw,c->bhw", images, torch.tensor([0.211, -0.523, 0.312]))
    cos, sin = ((hue.cos() * saturation).view(-1, 1, 1), (hue.sin() * saturation).view(-1, 1, 1))
    i, q = cos * i - sin * q, sin * i + cos * q
    images = torch.stack([luma + 0.956 * i + 0.621 * q, luma - 0.272 * i - 0.647 * q, luma - 1.106 * i + 1.703 * q], 1)
    return images.clamp(1e-4, 1) ** between(-0.3, 0.3).exp().view(-1, 1, 1, 1)


def encode(weights, images):
    """All tokens `[B, 1 + 36, 384]` of pictures in 0..1, before the last norm."""
    at = lambda name: (weights[name + ".weight"], weights[name + ".bias"])
    pixels = (images - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    embeddings = MODEL + "embeddings."
    patches = F.conv2d(pixels, *at(embeddings + "patch_embedding"), stride=14).flatten(2).transpose(1, 2)
    first = weights[embeddings + "class_embedding"].expand(len(pixels), -1, -1)
    x = torch.cat([first, patches], 1) + weights[embeddings + "position_embedding"]
    for i in range(BLOCKS):
        block = f"{MODEL}encoder.layers.{i}."
        qkv = F.linear(F.layer_norm(x, (WIDTH,), *at(block + "layer_norm1"), 1e-6), *at(block + "self_attn.qkv"))
        q, k, v = qkv.view(*x.shape[:2], 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + F.linear(mixed, *at(block + "self_attn.projection"))
        hidden = F.linear(F.layer_norm(x, (WIDTH,), *at(block + "layer_norm2"), 1e-6), *at(block + "mlp.fc1"))
        x = x + F.linear(F.gelu(hidden), *at(block + "mlp.fc2"))
    return x.float()


def pooled(tokens):
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


def contrast(points):
    """Rows 0, 2, .. against rows 1, 3, .. of `[2 B, D]`."""
    return info_nce(points[0::2], points[1::2], TEMPERATURE)


def against(points, prototypes, label):
    """Cross-entropy of `[B, D]` over one point for each concept `[C, D]`."""
    return F.cross_entropy(F.normalize(points, dim=1) @ F.normalize(prototypes, dim=1).T / TEMPERATURE, label)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vit", required=True, help="folder that encoder.py wrote")
    parser.add_argument("--out", required=True)
    parser.add_argument("--concepts", choices=SPLITS, default="all")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--prototypes", action="store_true", help="contrast with a learned point for each concept too")
    parser.add_argument("--rate", type=float, default=1e-4)
    options = parser.parse_args()
    torch.manual_seed(0)
    order = random.Random(0)
    weights = {name: t.float() for name, t in load_file(os.path.join(options.vit, "model.safetensors")).items()}
    table = drawings(SPLITS[options.concepts])
    concepts = list(table)
    pictures = [picture for styles in table.values() for picture in styles.values()]
    sample = order.sample(pictures, min(2000, len(pictures)))

    def over(pictures, take):
        parts = [pictures[i : i + 100] for i in range(0, len(pictures), 100)]
        with torch.no_grad():
            return torch.cat([take(encode(weights, torch.stack(part) / 255)) for part in parts])

    start = over(sample, pooled)
    mean, scale = start.mean(0), 1 / start.std(0)
    prototypes = torch.stack([
        F.normalize((over([*styles.values()], pooled) - mean) * scale, dim=1).mean(0) for styles in table.values()
    ])
    prototypes = [prototypes.clone().requires_grad_(), prototypes[:, WIDTH:].clone().requires_grad_()]
    for tensor in weights.values():
        tensor.requires_grad_()
    trained = list(weights.values())
    groups = [
        {"params": [t for t in trained if t.dim() > 1], "weight_decay": 0.02},
        {"params": [t for t in trained if t.dim() < 2], "weight_decay": 0.0},
        {"params": prototypes if options.prototypes else [], "weight_decay": 0.0, "faster": 5},
    ]

    def loss():
        places = order.sample(range(len(concepts) // RUN), RUNS)
        shift = order.randrange(RUN)
        pictures, labels = [], []
        for place in places:
            for i in range(RUN):
                label = (RUN * place + shift + i) % len(concepts)
                styles = table[concepts[label]]
                pair = order.sample(list(styles), 2) if len(styles) > 1 else list(styles) * 2
                pictures += [styles[style] for style in pair]
                labels += [label, label]
        images = varied(torch.stack(pictures) / 255)
        # slower than f32 where the processor has no instruction for it
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
            tokens = encode(weights, images)
        # some patches alone, others for every picture: the Q-Former may look at any of them
        count = order.randrange(1, 7)
        chosen = torch.rand(len(tokens), GRID * GRID).topk(count, dim=1).indices[..., None].expand(-1, -1, WIDTH)
        few = tokens[:, 1:].gather(1, chosen).mean(1)
        whole, few = (pooled(tokens) - mean) * scale, (few - mean[WIDTH:]) * scale[WIDTH:]
        labels = torch.tensor(labels)
        total = contrast(whole) + contrast(few)
        if options.prototypes:
            total = total + against(whole, prototypes[0], labels) + against(few, prototypes[1], labels)
        return total

    fit(loss, groups, trained, options.steps, options.rate, floor=1e-7, warmup=50, every=20)

    # f16 is what the bundled model stores, so everything after it sees the same numbers
    weights = {name: tensor.detach().to(torch.float16).float() for name, tensor in weights.items()}
    tokens = over(sample, lambda t: F.layer_norm(t, (WIDTH,), eps=1e-6).reshape(-1, WIDTH))
    weights[MODEL + "post_layernorm.weight"] = 1 / tokens.std(0)
    weights[MODEL + "post_layernorm.bias"] = -tokens.mean(0) / tokens.std(0)
    os.makedirs(options.out, exist_ok=True)
    path = os.path.join(options.out, "model.safetensors")
    weights = {name: tensor.to(torch.float16).contiguous() for name, tensor in weights.items()}
    save_file(weights, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    print(f"{sum(t.numel() for t in weights.values())} parameters in {path}")


if __name__ == "__main__":
    main()
