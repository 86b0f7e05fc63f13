"""From pictures and words to the inputs of the towers, as in evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdr_lightning.data.images import reason, to_rgb
from sdr_lightning.data.tokenizer import Tokenizer
from sdr_lightning.data.transforms import to_input
from sdr_lightning.data.wording import Wording
from sdr_lightning.types import Tokens

ImageLike = str | Path | Image.Image | NDArray[Any] | Tensor
"""A path; a PIL image; (H, W), (H, W, 3) or (H, W, 4) uint8 pixels; a (3, H, W) tensor of uint8, or of floats in [0, 1]; or, for
models of precomputed features, (R, D) or (D,) features."""


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of a model.

    Attributes:
        tokenizer: of the text tower.
        image_size: side of the images in pixels; None for models of precomputed features.
        cached_size: side that training resized images to before ``image_size``; None if it did not.
        wording: normalisation of captions.
    """

    tokenizer: Tokenizer
    image_size: int | None
    cached_size: int | None = None
    wording: Wording = field(default_factory=Wording)

    def images(self, images: Sequence[ImageLike]) -> Tensor:
        """Prepare images.

        Returns:
            (B, 3, S, S) uint8 pixels, or (B, R, D) float32 features.

        Raises:
            ValueError: a picture that cannot be read, or an array of another shape or type.
        """
        return torch.stack([self._image(image) for image in images])

    def texts(self, texts: Sequence[str]) -> Tokens:
        """Tokenise texts.

        Returns:
            (B, L) tokens. An empty text has special tokens only.

        Raises:
            ValueError: an item that is no text.
        """
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"expected texts, found {type(text).__name__}: {str(text)[:60]!r}")
        return self.tokenizer(self.wording(texts))

    def _image(self, image: ImageLike) -> Tensor:
        if self.image_size is None:
            return _features(image)
        pixels = _pixels(image)
        if self.cached_size is not None:
            pixels = to_input(pixels, self.cached_size).permute(1, 2, 0).contiguous().numpy()
        return to_input(pixels, self.image_size)


def _pixels(image: ImageLike) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 pixels of a picture."""
    if isinstance(image, str | Path):
        try:
            with Image.open(image) as opened:
                return to_rgb(opened)
        except Exception as error:  # decoders raise different exceptions for broken files
            raise ValueError(f"cannot read the image {image}: {reason(error)}") from error
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = _channels_last(image) if isinstance(image, Tensor) else image
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(
            f"an image is (H, W), (H, W, 3) or (H, W, 4) uint8, or a (3, H, W) tensor; got {array.shape} {array.dtype}"
        )
    return to_rgb(Image.fromarray(array))


def _channels_last(image: Tensor) -> NDArray[Any]:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image tensor is (3, H, W), got {tuple(image.shape)}")
    if image.dtype.is_floating_point:
        low, high = image.min().item(), image.max().item()
        if not 0 <= low <= high <= 1:
            raise ValueError(f"an image tensor of floats must be in [0, 1], got values from {low:g} to {high:g}")
        image = (image * 255).round().byte()
    return image.permute(1, 2, 0).cpu().numpy()


def _features(image: ImageLike) -> Tensor:
    """(R, D) float32 features."""
    if isinstance(image, str | Path | Image.Image):
        raise ValueError(f"this model encodes precomputed features, got the picture {str(image)[:80]}")
    features = torch.as_tensor(image, dtype=torch.float32)
    if features.ndim not in (1, 2):
        raise ValueError(f"features of an image are (R, D) or (D,), got {tuple(features.shape)}")
    return features.reshape(-1, features.shape[-1])
