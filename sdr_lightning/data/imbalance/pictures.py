"""Image corruptions: noise, blur, occlusion, low resolution, low light, compression.

Severities follow Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (ImageNet-C), ICLR 2019. Lengths in pixels at side 224 are scaled to the side of the image. Pillow's filters
use integer arithmetic, so results are the same on every machine.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageFilter

from sdr_lightning.data.images import Pixels

_GREY = 128
_SIGMAS = (0.08, 0.12, 0.18, 0.26, 0.38)
_BLUR = (1, 2, 3, 4, 6)
_COVERED = (0.1, 0.2, 0.3, 0.45, 0.6)
_SHRUNK = (0.6, 0.5, 0.4, 0.3, 0.25)
_LIGHT = (0.6, 0.45, 0.3, 0.2, 0.1)
_PHOTONS = (60, 25, 12, 5, 3)
_QUALITY = (25, 18, 15, 10, 7)


def noisy(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Add Gaussian noise."""
    noise = generator.standard_normal(pixels.shape, dtype=np.float32) * (255 * _SIGMAS[severity - 1])
    return _rounded(pixels + noise)


def blurred(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Blur."""
    radius = _BLUR[severity - 1] * max(pixels.shape[:2]) / 224
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def occluded(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Cover a rectangle with the aspect ratio of the image in grey."""
    height, width = pixels.shape[:2]
    share = _COVERED[severity - 1] ** 0.5
    tall, wide = max(1, round(height * share)), max(1, round(width * share))
    top, left = generator.integers(height - tall + 1), generator.integers(width - wide + 1)
    covered = pixels.copy()
    covered[top : top + tall, left : left + wide] = _GREY
    return covered


def low_resolution(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Shrink and enlarge."""
    image = Image.fromarray(pixels)
    small = image.resize([max(1, round(side * _SHRUNK[severity - 1])) for side in image.size], Image.Resampling.BOX)
    return np.array(small.resize(image.size, Image.Resampling.BOX))


def low_light(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Simulate photon (Poisson) noise, and darken."""
    photons = _PHOTONS[severity - 1]
    counted = generator.poisson(pixels / 255 * photons) / photons
    return _rounded(counted * (255 * _LIGHT[severity - 1]))


def compressed(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Save as JPEG and read again."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_QUALITY[severity - 1])
    return np.array(Image.open(buffer).convert("RGB"))


def blank(pixels: Pixels, severity: int, generator: np.random.Generator) -> Pixels:
    """Replace all pixels by grey."""
    return np.full_like(pixels, _GREY)


IMAGE_KINDS: dict[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    "gaussian_noise": noisy,
    "blur": blurred,
    "occlusion": occluded,
    "low_resolution": low_resolution,
    "low_light": low_light,
    "jpeg": compressed,
    "missing": blank,
}


def _rounded(values: np.ndarray) -> Pixels:
    rounded: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
