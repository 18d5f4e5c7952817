"""Captions of an evaluation against transformers', word for word, on the same weights and generation config.

    pip install -r tests/peers/speed/requirements.txt
    blip2-train eval caption "assets/data/emoji/fluent-{train,held}.tar" --model assets/models/nano \\
        --preset hf --prompt "" --out EVAL
    python tests/peers/captions.py EVAL assets/models/nano assets/data/emoji/fluent-*.tar [--every 10]

For models that speak after a bare start token, as `nano` does. Exit code 1 if a caption differs.
"""

import argparse
import io
import json
import sys
import tarfile
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoTokenizer, Blip2ForConditionalGeneration, BlipImageProcessor


def pictures(shards):
    """Key -> bytes of the PNGs in tar shards."""
    out = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                if member.name.endswith(".png"):
                    out[member.name.removesuffix(".png")] = tar.extractfile(member).read()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path, help="folder with predictions.json")
    parser.add_argument("model")
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--every", type=int, default=10, help="take one picture of so many")
    options = parser.parse_args()
    model = Blip2ForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    processor = BlipImageProcessor.from_pretrained(options.model)
    images = pictures(options.shards)
    start = torch.tensor([[model.config.text_config.bos_token_id]])
    predictions = json.loads((options.evaluation / "predictions.json").read_text(encoding="utf-8"))[:: options.every]
    different = 0
    for prediction in predictions:
        picture = Image.open(io.BytesIO(images[prediction["image_id"]])).convert("RGB")
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            seen = model.vision_model(pixels).last_hidden_state
            queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen).last_hidden_state
            prefix = [model.language_projection(queries), model.get_input_embeddings()(start)]
            prefix = torch.cat(prefix, 1)
            mask = torch.ones(prefix.shape[:2], dtype=torch.long)
            ids = model.language_model.generate(
                inputs_embeds=prefix, attention_mask=mask, generation_config=model.generation_config
            )
        caption = tokenizer.batch_decode(ids, skip_special_tokens=True)[0].strip()
        if caption != prediction["caption"]:
            different += 1
            print(f"{prediction['image_id']}: {prediction['caption']!r}, transformers: {caption!r}")
    print(f"{len(predictions) - different} of {len(predictions)} captions equal")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
