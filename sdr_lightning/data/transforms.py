"""Conversion of decoded images to model inputs, and augmentation that depends on (seed, epoch, item) only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from sdr_lightning.data.images import Pixels

Augmentation = Literal["none", "paper", "weak"]
Transform = Callable[[Tensor], Tensor]


def to_input(pixels: Pixels, size: int) -> Tensor:
    """Resize to a square with bicubic interpolation, ignoring the aspect ratio, as in ALBEF and X-VLM.

    Args:
        pixels: (H, W, 3) uint8.
        size: S, side in pixels.

    Returns:
        (3, S, S) uint8.
    """
    from torchvision.transforms.v2 import functional as tv

    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if image.shape[1:] == (size, size):
        return image.contiguous()
    resized: Tensor = tv.resize(image, [size, size], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    return resized


def augmentation(kind: Augmentation, size: int) -> Transform | None:
    """Build a random augmentation.

    Args:
        kind: ``none``; ``paper``: random resized crop (scale 0.5 to 1, bicubic), flip and RandAugment (2, 7), as in the public
            code; ``weak``: translation by up to an eighth, brightness, contrast and noise, which preserve shapes, colours and
            places.
        size: S, side of the output in pixels.

    Returns:
        A transform of (3, H, W) uint8 images to (3, S, S) uint8; None for ``none``.
    """
    from torchvision.transforms import v2

    if kind == "none":
        return None
    if kind == "paper":
        steps: list[Any] = [
            v2.RandomResizedCrop(size, (0.5, 1.0), interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandAugment(2, 7),
        ]
    else:
        steps = [v2.Resize([size, size]), v2.RandomCrop(size, padding=size // 8, padding_mode="edge"), _jitter]
    transform: Transform = v2.Compose(steps)
    return transform


def seeded(transform: Transform, image: Tensor, *key: int) -> Tensor:
    """Apply a random transform with the CPU generator seeded by a key; the generator's state is restored."""
    generator = torch.default_generator  # torch.manual_seed would also reset the accelerator's generator
    state = generator.get_state()
    generator.manual_seed(hash(key))
    try:
        return transform(image)
    finally:
        generator.set_state(state)


def _jitter(image: Tensor) -> Tensor:
    pixels = image.float()
    mean = pixels.mean()
    brightness, contrast = torch.empty(2).uniform_(0.7, 1.3).unbind()
    pixels = (pixels - mean) * contrast + mean * brightness + torch.randn_like(pixels) * 8
    return pixels.clamp(0, 255).byte()
