"""The same work in Python: webdataset + Pillow, one process.

tar shards -> shuffle buffer 1000 -> JPEG to RGB -> RandomResizedCrop 224 (scale 0.5-1, bicubic) -> flip -> uint8 array.
The crop is torchvision's algorithm written out, so that importing torch is not part of the measurement.
Prints one JSON line: images, wall and CPU seconds.
"""

import io
import json
import math
import random
import resource
import sys
import time

import numpy as np
import PIL
import webdataset
from PIL import Image, features


def crop_box(width, height):
    for _ in range(10):
        area = width * height * random.uniform(0.5, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    return 0, 0, width, height


def transform(data):
    image = Image.open(io.BytesIO(data)).convert("RGB")
    image = image.crop(crop_box(*image.size)).resize((224, 224), Image.Resampling.BICUBIC)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def main():
    shards = sys.argv[1:]
    random.seed(0)
    stream = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(1000)
    cpu0, start, images, check = time.process_time(), time.perf_counter(), 0, 0
    for sample in stream:
        array = transform(sample["jpg"])
        caption = sample["txt"].decode()
        check += int(array[0, 0, 0]) + len(caption)
        images += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu0
    print(json.dumps(dict(images=images, wall_s=round(wall, 3), cpu_s=round(cpu, 3), check=check,
                          peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                          pillow=PIL.__version__, webdataset=webdataset.__version__,
                          turbo=features.version("libjpeg_turbo"))))


if __name__ == "__main__":
    main()
