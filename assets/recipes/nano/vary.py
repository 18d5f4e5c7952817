"""Writes varied copies of the training pictures as shards: moved, stretched and recoloured a little, as in align.py.

    pip install torch numpy pillow safetensors
    python assets/recipes/nano/vary.py --out runs/nano/varied [--copies 2]

Features of the frozen encoder are computed once and stored, so the variety that augmentation brings must be on disk
before. Without it the Q-Former learns 9,428 pictures by heart.
"""

import argparse
import io
import os
import tarfile

import numpy as np
import torch
from PIL import Image

import align
from fit import members


def varied(content):
    """A PNG of 84 x 84 made from a PNG."""
    image = Image.open(io.BytesIO(content)).convert("RGB").resize((align.SIZE, align.SIZE), Image.Resampling.BICUBIC)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None] / 255
    pixels = (align.varied(pixels)[0].permute(1, 2, 0) * 255).round().byte().numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=4)
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--copies", type=int, default=2)
    options = parser.parse_args()
    torch.manual_seed(1)
    torch.set_num_threads(1)
    os.makedirs(options.out, exist_ok=True)
    for style in align.STYLES:
        files = list(members(style))
        path = os.path.join(options.out, f"{style}.tar")
        with tarfile.open(path + ".part", "w", format=tarfile.USTAR_FORMAT) as tar:
            for copy, (name, content) in ((copy, file) for copy in range(options.copies) for file in files):
                if name.endswith(".png"):
                    content = varied(content)
                info = tarfile.TarInfo(f"{copy}-{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        os.replace(path + ".part", path)
        print(f"{style}: {options.copies} copies of {sum(name.endswith('.png') for name, _ in files)}", flush=True)


if __name__ == "__main__":
    main()
