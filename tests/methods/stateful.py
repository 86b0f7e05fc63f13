"""Pairs whose embeddings change from epoch to epoch, for methods that keep a value of each pair."""

from __future__ import annotations

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.methods import Method
from sdr_lightning.types import Pairs, TrainingPairs

M = TypeVar("M", bound=Method)
SIZE = 5
SHARED = torch.tensor([0, 1, 0, 2, 3])  # the first and third pair are of the same image


def pairs_of(epoch: int, ids: Tensor | None = None, positive: bool = False) -> Pairs:
    """Five pairs, which become more similar by epoch; the authors' numbers are of these."""
    image = torch.arange(20, dtype=torch.float64).mul(1.7).sin().reshape(SIZE, 4)
    text = torch.arange(20, dtype=torch.float64).mul(2.3).cos().reshape(SIZE, 4)
    if positive:
        image, text = image.abs(), text.abs()
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    text = F.normalize((1 + epoch / 4) * image + text, dim=1)
    index = torch.arange(SIZE)
    return Pairs(image.requires_grad_(), text.requires_grad_(), index if ids is None else ids, index)


def ready(method: M) -> M:
    """Set up for the five pairs, in float64."""
    method.setup(TrainingPairs(torch.arange(SIZE), torch.ones(SIZE, dtype=torch.bool)))
    return method.double()
