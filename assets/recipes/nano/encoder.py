"""Writes the frozen image encoder of the nano model: eight narrowed blocks of a pretrained ViT-S/14.

    pip install numpy pillow safetensors torch
    python assets/recipes/nano/encoder.py --vision runs/nano/parts/vision --out runs/nano/cut

The ViT-S/14 is the one that `assets/recipes/small/convert.py` unpacks, in the form of `Dinov2Model`. Folded into the
weights: LayerScale, and the position table at 6 x 6.

Every MLP keeps 384 of its 1,536 neurons. Which ones, and the new output matrix, follow from least squares: neurons
whose loss costs least go first, and what is left reproduces the original block's output on 850 pictures of the training
styles, given what the narrowed blocks before it hand over. The shards in `assets/data/emoji` are read.
"""

import argparse
import io
import os

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from fit import members

BLOCKS, GRID, WIDTH, HEADS = 8, 6, 384, 6
MLP, KEPT = 1536, [1100, 800, 600, 480, 384]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def pictures():
    """Every ninth or so picture of the training styles, `[N, 3, 84, 84]`, normalised as ours."""
    out = []
    for style in ("noto", "twemoji", "blob", "emojione", "mono"):
        files = [content for name, content in members(style, ["train"]) if name.endswith(".png")]
        for content in files[:: max(1, len(files) // 170)][:170]:
            image = Image.open(io.BytesIO(content)).convert("RGB")
            out.append(np.asarray(image.resize((14 * GRID, 14 * GRID), Image.Resampling.BICUBIC)))
    pixels = torch.tensor(np.stack(out)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)) / torch.tensor(CLIP_STD).view(1, 3, 1, 1)


def narrow(tensors):
    """Replaces the MLPs, block after block."""
    norm = lambda block, i, x: F.layer_norm(x, (WIDTH,), block[f"layer_norm{i}.weight"], block[f"layer_norm{i}.bias"], 1e-6)

    def attention(block, x):
        batch, count, _ = x.shape
        qkv = F.linear(norm(block, 1, x), block["self_attn.qkv.weight"], block["self_attn.qkv.bias"])
        q, k, v = qkv.view(batch, count, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + F.linear(mixed, block["self_attn.projection.weight"], block["self_attn.projection.bias"])

    def hidden(block, x):
        return F.gelu(F.linear(norm(block, 2, x), block["mlp.fc1.weight"], block["mlp.fc1.bias"]))

    def solve(gram, moment, index):
        chosen = gram[index][:, index]
        inverse = torch.linalg.inv(chosen + 1e-4 * chosen.diagonal().mean() * torch.eye(len(index)).double())
        return inverse @ moment[index], inverse.diagonal()

    embeddings = "vision_model.embeddings."
    pixels = pictures()
    kernel, bias = (tensors[f"{embeddings}patch_embedding.{part}"] for part in ("weight", "bias"))
    patches = F.conv2d(pixels, kernel, bias, stride=14).flatten(2).transpose(1, 2)
    first = tensors[embeddings + "class_embedding"].expand(len(pixels), -1, -1)
    teacher = torch.cat([first, patches], 1) + tensors[embeddings + "position_embedding"]
    student = teacher.clone()
    for i in range(BLOCKS):
        prefix = f"vision_model.encoder.layers.{i}."
        block = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        teacher = attention(block, teacher)
        teacher = teacher + F.linear(hidden(block, teacher), block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        student = attention(block, student)
        neurons = hidden(block, student).reshape(-1, MLP)
        target = (teacher - student).reshape(-1, WIDTH)
        rows = torch.cat([neurons, torch.ones(len(neurons), 1)], 1)
        gram, moment = (rows.T @ rows).double(), (rows.T @ target).double()
        keep, one = torch.arange(MLP), torch.tensor([MLP])
        for size in KEPT:
            weights, diagonal = solve(gram, moment, torch.cat([keep, one]))
            cost = (weights**2).sum(1) / diagonal  # growth of the squared error without the neuron
            keep = keep[cost[:-1].argsort(descending=True)[:size].sort().values]
        weights = solve(gram, moment, torch.cat([keep, one]))[0].float()
        tensors[prefix + "mlp.fc1.weight"] = block["mlp.fc1.weight"][keep]
        tensors[prefix + "mlp.fc1.bias"] = block["mlp.fc1.bias"][keep]
        tensors[prefix + "mlp.fc2.weight"] = weights[:-1].T
        tensors[prefix + "mlp.fc2.bias"] = weights[-1]
        student = student + (neurons[:, keep] @ weights[:-1] + weights[-1]).reshape(student.shape)
        error = (student - teacher).norm() / (teacher - teacher.mean((0, 1))).norm()
        print(f"block {i}: relative error of the tokens {error:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vision", required=True, help="folder `vision` that convert.py wrote")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    named = load_file(os.path.join(options.vision, "model.safetensors"))
    out = {}
    for part in ("weight", "bias"):
        source = f"embeddings.patch_embeddings.projection.{part}"
        out[f"vision_model.embeddings.patch_embedding.{part}"] = named[source]
    out["vision_model.embeddings.class_embedding"] = named["embeddings.cls_token"].reshape(1, 1, WIDTH)
    first, table = named["embeddings.position_embeddings"].split([1, 37 * 37], 1)
    table = table.reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(GRID, GRID), mode="bicubic", align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(1, GRID * GRID, WIDTH)
    out["vision_model.embeddings.position_embedding"] = torch.cat([first, table], 1)
    for i in range(BLOCKS):
        old, new = f"encoder.layer.{i}.", f"vision_model.encoder.layers.{i}."
        for part in ("weight", "bias"):
            for norm in ("1", "2"):
                out[f"{new}layer_norm{norm}.{part}"] = named[f"{old}norm{norm}.{part}"]
            heads = [named[f"{old}attention.attention.{head}.{part}"] for head in ("query", "key", "value")]
            out[f"{new}self_attn.qkv.{part}"] = torch.cat(heads)
            out[f"{new}mlp.fc1.{part}"] = named[f"{old}mlp.fc1.{part}"]
        for scale, source, target in (
            ("layer_scale1", "attention.output.dense", "self_attn.projection"),
            ("layer_scale2", "mlp.fc2", "mlp.fc2"),
        ):
            factor = named[f"{old}{scale}.lambda1"]
            out[f"{new}{target}.weight"] = named[f"{old}{source}.weight"] * factor[:, None]
            out[f"{new}{target}.bias"] = named[f"{old}{source}.bias"] * factor
    narrow(out)
    os.makedirs(options.out, exist_ok=True)
    # f16 is what the bundled model stores, so everything after it sees the same numbers
    out = {name: tensor.to(torch.float16).contiguous() for name, tensor in out.items()}
    path = os.path.join(options.out, "model.safetensors")
    save_file(out, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    print(f"{sum(t.numel() for t in out.values())} parameters in {path}")


if __name__ == "__main__":
    main()
