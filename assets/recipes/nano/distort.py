"""Distortions of drawings that the frozen encoder was not taught to see through, for vary.py.

The encoder (align.py) brings the training styles together, so its features of a training picture lie closer to those of
the same concept than a new style's do, and what is trained on them alone never learns to be in doubt. Measured on pooled,
standardised features, cosine to the mean of the concept (lowest tenth): training pictures 0.86 (0.76), varied copies
0.81 (0.69), Fluent 0.73 (0.52). Each of these distortions alone gives 0.77 to 0.82; all eight with a probability of 0.2
each give 0.71 (0.49), about what a new style does.
"""

import torch
import torch.nn.functional as F


def field(count, channels, size, cells):
    """Smooth noise `[count, channels, size, size]` of about unit variance, on a grid of `cells`."""
    coarse = torch.randn(count, channels, cells, cells)
    return F.interpolate(coarse, size=size, mode="bicubic", align_corners=False)


def blurred(images, width=7):
    place = torch.arange(width) - width // 2
    line = torch.exp(-(place**2) / (2 * (width / 4) ** 2))
    kernel = line[:, None] * line[None] / line.sum() ** 2
    channels = images.shape[1]
    padded = F.pad(images, [width // 2] * 4, mode="replicate")
    return F.conv2d(padded, kernel.expand(channels, 1, width, width), groups=channels)


def thicker(images):
    return -F.max_pool2d(-images, 3, 1, 1)


def thinner(images):
    return F.max_pool2d(images, 3, 1, 1)


def bent(images):
    """Drawn by a less steady hand."""
    count, _, size, _ = images.shape
    grid = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), images.shape, align_corners=False)
    shift = 0.1 * torch.rand(count, 1, 1, 1) * field(count, 2, size, 4).permute(0, 2, 3, 1)
    return 1 - F.grid_sample(1 - images, grid + shift, align_corners=False)


def shaded(images):
    """Lit unevenly, as if it had depth; white paper stays white."""
    count, _, size, _ = images.shape
    ink = blurred(1 - images.amin(1, keepdim=True), 5).clamp(0, 1).sqrt()
    light = 1 + 0.8 * torch.rand(count, 1, 1, 1) * field(count, 1, size, 3)
    return images + ink * ((images * light).clamp(0, 1) - images)


def recoloured(images):
    """Channels mixed, each on a tone curve of its own."""
    count = len(images)
    mixed = torch.eye(3) + 0.35 * torch.randn(count, 3, 3)
    mixed = mixed / mixed.sum(2, keepdim=True).clamp(min=0.3)
    images = torch.einsum("nij,njhw->nihw", mixed, images).clamp(1e-4, 1)
    return images ** torch.empty(count, 3, 1, 1).uniform_(-0.7, 0.7).exp()


def covered(images):
    """A rectangle is missing, or of one colour."""
    images = images.clone()
    size = images.shape[2]
    for image in images:
        height, width = torch.randint(10, 34, (2,)).tolist()
        top, left = torch.randint(0, size - 8, (2,)).tolist()
        image[:, top : top + height, left : left + width] = torch.rand(3, 1, 1) if torch.rand(()) < 0.5 else 1
    return images


def grainy(images):
    return images + 0.12 * torch.rand(len(images), 1, 1, 1) * torch.randn_like(images)


def distorted(images, probability):
    """Pictures `[B, 3, S, S]` in 0..1, each with some of the distortions."""
    for distortion in (bent, thicker, thinner, blurred, shaded, recoloured, covered, grainy):
        chosen = torch.rand(len(images)) < probability
        images = torch.where(chosen[:, None, None, None], distortion(images), images).clamp(0, 1)
    return images
