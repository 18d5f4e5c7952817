"""Writes WebDataset shards of photo-like JPEG pictures for the loader comparison.

Each picture is 1/f noise in three correlated channels with some hard-edged shapes, so that JPEG sizes (about 1.6 bits
a pixel) and decoding work are those of photographs. Sizes follow COCO: long side 640, short side 427 or 480.
Usage: python make_shards.py OUT_DIR [SHARDS] [PICTURES_PER_SHARD]
"""

import io
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image, ImageDraw


def photo(rng, width, height):
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None, :]
    spectrum = 1 / np.maximum(np.hypot(fx, fy), 1 / max(width, height)) ** 1.1
    shape = (height, fx.shape[1])

    def layer():
        field = np.fft.irfft2(spectrum * np.exp(2j * np.pi * rng.random(shape)), s=(height, width))
        return field / field.std()

    luma = layer()
    channels = [128 + 50 * luma + 15 * layer() for _ in range(3)]
    image = Image.fromarray(np.clip(np.stack(channels, -1), 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(5, 120, 2)
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        else:
            draw.polygon([(x, y), (x + w, y + h // 3), (x + w // 4, y + h)], fill=colour)
    return image


def main():
    out = pathlib.Path(sys.argv[1])
    shards, per_shard = (int(a) for a in (sys.argv[2:4] + ["4", "500"][len(sys.argv) - 2 :]))
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    total = 0
    for shard in range(shards):
        with tarfile.open(out / f"photos-{shard:05}.tar", "w") as tar:
            for i in range(per_shard):
                width, height = [(640, 480), (640, 427), (480, 640), (427, 640)][rng.integers(4)]
                buffer = io.BytesIO()
                photo(rng, width, height).save(buffer, "JPEG", quality=90)
                total += buffer.tell()
                for name, data in [("jpg", buffer.getvalue()), ("txt", f"photo number {i} of shard {shard}".encode())]:
                    info = tarfile.TarInfo(f"{shard:05}{i:06}.{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    print(f"{shards * per_shard} pictures, mean {total // (shards * per_shard)} bytes")


if __name__ == "__main__":
    main()
