"""Writes varied copies of the training pictures as shards: moved, stretched and recoloured a little, as in align.py.

    pip install torch numpy pillow safetensors
    python assets/recipes/nano/vary.py --out runs/nano/varied [--copies 2] [--distort 0.2] [--seed 1] [--concepts train]

Features of the frozen encoder are computed once and stored, so the variety that augmentation brings must be on disk
before. Without it the Q-Former learns 9,428 pictures by heart. `--distort P` applies each of distort.py's distortions as
well, with probability P. `--concepts train` leaves out the held-out concepts.
"""

import argparse
import io
import os
import tarfile

import numpy as np
import torch
from PIL import Image

import align
from distort import distorted
from fit import SPLITS, members

BATCH = 64


def varied(contents, probability):
    """PNGs of 84 x 84 made from PNGs."""
    images = [Image.open(io.BytesIO(content)).convert("RGB") for content in contents]
    images = [np.asarray(image.resize((align.SIZE, align.SIZE), Image.Resampling.BICUBIC)) for image in images]
    pixels = align.varied(torch.tensor(np.stack(images)).permute(0, 3, 1, 2) / 255)
    if probability > 0:
        pixels = distorted(pixels, probability)
    for picture in (pixels.permute(0, 2, 3, 1) * 255).round().byte().numpy():
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG", compress_level=4)
        yield out.getvalue()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--distort", type=float, default=0.0, metavar="P")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--concepts", choices=SPLITS, default="all")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    os.makedirs(options.out, exist_ok=True)
    for style in align.STYLES:
        files = dict(members(style, SPLITS[options.concepts]))
        pictures = [name for name in files if name.endswith(".png")]
        path = os.path.join(options.out, f"{style}.tar")
        with tarfile.open(path + ".part", "w", format=tarfile.USTAR_FORMAT) as tar:
            for copy in range(options.copies):
                copies = dict(files)
                for part in (pictures[i : i + BATCH] for i in range(0, len(pictures), BATCH)):
                    copies.update(zip(part, varied([files[name] for name in part], options.distort)))
                for name, content in copies.items():
                    info = tarfile.TarInfo(f"{copy}-{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        os.replace(path + ".part", path)
        print(f"{style}: {options.copies} copies of {len(pictures)}", flush=True)


if __name__ == "__main__":
    main()
