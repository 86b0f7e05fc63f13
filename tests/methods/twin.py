"""Pairs as two networks embed them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.types import Pairs

SIZE = 5


def one_network(a: float, b: float, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """(B, 4) embeddings of images and captions, float64."""
    image = F.normalize(torch.arange(4.0 * size, dtype=torch.float64).mul(a).sin().reshape(size, 4), dim=1)
    text = F.normalize(torch.arange(4.0 * size, dtype=torch.float64).mul(b).cos().reshape(size, 4), dim=1)
    return image, F.normalize(image + text, dim=1)


def twin_pairs(ids: Tensor | None = None, size: int = SIZE) -> Pairs:
    """Pairs of two networks, of which the first embeds them as ``some_pairs`` of test_methods.py does."""
    (first_image, first_text), (second_image, second_text) = one_network(1.7, 2.3, size), one_network(0.9, 1.3, size)
    image = torch.cat([first_image, second_image], dim=1) / math.sqrt(2)
    text = torch.cat([first_text, second_text], dim=1) / math.sqrt(2)
    index = torch.arange(size)
    return Pairs(image.requires_grad_(), text.requires_grad_(), index if ids is None else ids, index)


def separable_pairs(size: int = 40, wrong: tuple[range, range] = (range(0, 8), range(4, 12))) -> Pairs:
    """Pairs of which each network embeds some as mismatched and all others as matching, with an orthogonal axis for each."""
    eye, halves = torch.eye(size, dtype=torch.float64), []
    for rows in wrong:
        order = torch.arange(size)
        order[list(rows)] = order[list(rows)].roll(1)
        halves.append(
            F.normalize(eye[order] + 0.01 * torch.linspace(0, 1, size * size).reshape(size, size).sin(), dim=1)
        )
    index = torch.arange(size)
    image = torch.cat([eye, eye], dim=1) / math.sqrt(2)
    return Pairs(image, torch.cat(halves, dim=1) / math.sqrt(2), index, index)
