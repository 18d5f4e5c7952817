"""Loads a checkpoint, captions one picture, ends: the peer of `blip2 caption`.

    python torch_caption.py FOLDER PICTURE
"""

import sys

import torch
from PIL import Image
from transformers import AutoProcessor, Blip2ForConditionalGeneration

folder, picture = sys.argv[1:]
model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
processor = AutoProcessor.from_pretrained(folder)
inputs = processor(images=Image.open(picture).convert("RGB"), text="a photo of", return_tensors="pt")
inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
with torch.inference_mode():
    out = model.generate(**inputs)
print(processor.batch_decode(out, skip_special_tokens=True)[0])
