"""Gradient caching: encode a batch in chunks with the gradient of the whole batch.

A contrastive loss needs the embeddings of the whole batch, not its activations. Activations are kept for one chunk at a
time; the backward pass encodes each chunk again with the same random numbers. Memory: the activations of one chunk plus the
embeddings (and tokens, where a fusion encoder reads them). Time: one additional forward pass.

Reference:
    Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from sdr_lightning.types import Encoded, ImageInputs, TextInputs

T = TypeVar("T", bound=ImageInputs | TextInputs)


def encode_in_chunks(encode: Callable[[T], Encoded], inputs: T, size: int | None) -> Encoded:
    """Encode a batch in chunks.

    Args:
        encode: encodes a batch; each item must not depend on the others.
        inputs: B images or captions.
        size: items per chunk; None or at least B to encode the whole batch at once.

    Returns:
        The outputs of ``encode`` for the whole batch. Gradient flows to its parameters.
    """
    if size is None or len(inputs if isinstance(inputs, Tensor) else inputs[0]) <= size:
        return encode(inputs)
    parts: list[Encoded] = [checkpoint(encode, chunk, use_reentrant=False) for chunk in _split(inputs, size)]

    def joined(column: Sequence[Tensor | None]) -> Tensor | None:
        found = [part for part in column if part is not None]
        return torch.cat(found) if found else None

    tokens, mask = (joined([part[i] for part in parts]) for i in (1, 2))
    return Encoded(torch.cat([part.embedding for part in parts]), tokens, mask)


def map_in_chunks(
    function: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor, size: int | None
) -> Tensor:
    """Apply a row-wise function of two tensors in chunks.

    Args:
        function: maps (P, ...) and (P, ...) to (P, ...); each row must not depend on the others.
        first: (P, ...).
        second: (P, ...).
        size: rows per chunk; None for all at once.

    Returns:
        (P, ...). Gradient flows to everything the function reads.
    """
    if size is None or len(first) <= size:
        return function(first, second)
    chunks = zip(_rows(first, size), _rows(second, size), strict=True)
    return torch.cat([checkpoint(function, *chunk, use_reentrant=False) for chunk in chunks])


def check_chunks(size: int | None, **modules: nn.Module) -> None:
    """Check that encoding in chunks equals encoding the whole batch.

    Args:
        size: items per chunk, or None.
        modules: trained modules by name.

    Raises:
        ValueError: the size is below 1, or a module normalises over the batch.
    """
    if size is None:
        return
    if size < 1:
        raise ValueError(f"micro_batch must be at least 1 pair, got {size}")
    for name, module in modules.items():
        if any(isinstance(part, _BatchNorm) and part.training for part in module.modules()):
            raise ValueError(
                f"micro_batch would give the {name}'s batch norm the statistics of {size} pairs: freeze the {name}, "
                "take one without batch norm, or leave micro_batch out"
            )


def _split(inputs: ImageInputs | TextInputs, size: int) -> list[Any]:
    if isinstance(inputs, Tensor):
        return _rows(inputs, size)
    return [type(inputs)(*columns) for columns in zip(*(_rows(column, size) for column in inputs), strict=True)]


def _rows(tensor: Tensor, size: int) -> list[Tensor]:
    return list(torch.split(tensor, size))
