"""Tiled structure terms for ``mae`` and ``mse``: memory is linear in B, because no (B, B) tensor is created.

With the difference of cosines ``g = s - lambda x^T.x^T - (1 - lambda) x^I.x^I`` and ``f`` the absolute value or the square,
KD is ``mean f(g / tau2)`` over pairs of different instances. The gradient is analytic, products of ``f'(g)`` with the rows
of the other side, and is accumulated tile by tile in the forward pass.

Reference:
    Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024: KD, KDI, KDT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


def tile_size(device: torch.device) -> int:
    """Return the default number of rows and columns of a tile: fits a CPU's cache, or is large enough for an accelerator."""
    return 256 if device.type == "cpu" else 2048


class Structure(NamedTuple):
    """Structure distances: means over pairs of different instances, without the temperature.

    Attributes:
        student: scalar, mean ``f`` of the student's cosines minus the fused teacher cosines.
        teachers: scalar, mean ``f`` of the image teacher's cosines minus the text teacher's; no gradient.
    """

    student: Tensor
    teachers: Tensor


def tiled_structure(
    queries: Tensor,
    gallery: Tensor | None,
    image_teacher: Tensor,
    text_teacher: Tensor,
    text_share: Tensor,
    power: int,
    tile: int | None = None,
    local_rows: slice = slice(None),
) -> Structure:
    """Compute the distance between the student's relations and the fused relations of its teachers.

    Args:
        queries: (B, D) L2-normalised.
        gallery: (B, D) L2-normalised; the queries when None, which halves the cost.
        image_teacher: (B, D_I) L2-normalised, constant.
        text_teacher: (B, D_T) L2-normalised, constant.
        text_share: lambda, a scalar.
        power: 1 for absolute differences, 2 for squares.
        tile: rows and columns of a tile; affects memory, speed and rounding only. :func:`tile_size` when None.
        local_rows: rows computed against all B columns; all rows by default.

    Returns:
        Two scalars, means over the computed rows. Gradient flows from ``student`` to queries, gallery and lambda; it is not
        twice differentiable.

    >>> rows, teacher = torch.eye(2), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    >>> tiled_structure(rows, None, teacher, rows, torch.tensor(0.5), power=1)
    Structure(student=tensor(0.3000), teachers=tensor(0.6000))
    """
    student, teachers = _TiledStructure.apply(
        queries,
        gallery,
        image_teacher.detach(),
        text_teacher.detach(),
        text_share,
        power,
        tile or tile_size(queries.device),
        local_rows,
    )
    return Structure(student, teachers)


def tiled_teacher_gap(
    image_teacher: Tensor, text_teacher: Tensor, power: int, tile: int | None = None, local_rows: slice = slice(None)
) -> Tensor:
    """Compute :attr:`Structure.teachers` only.

    Args:
        image_teacher: (B, D_I) L2-normalised.
        text_teacher: (B, D_T) L2-normalised.
        power: 1 for absolute differences, 2 for squares.
        tile: as in :func:`tiled_structure`.
        local_rows: as in :func:`tiled_structure`.

    Returns:
        A scalar without gradient.
    """
    image_teacher, text_teacher = image_teacher.detach(), text_teacher.detach()
    size, computed = len(image_teacher), _range(local_rows, len(image_teacher))
    total, symmetric = image_teacher.new_zeros(()), len(computed) == size
    for rows, columns in _tiles(computed, size, tile or tile_size(image_teacher.device), symmetric):
        gap = image_teacher[rows] @ image_teacher[columns].T - text_teacher[rows] @ text_teacher[columns].T
        _zero_diagonal(gap, rows, columns)
        total += _sum(gap, power) * _multiplicity(rows, columns, symmetric)
    return total / max(1, len(computed) * (size - 1))


class _TiledStructure(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        gallery: Tensor | None,
        image_teacher: Tensor,
        text_teacher: Tensor,
        share: Tensor,
        power: int,
        tile: int,
        local_rows: slice,
    ) -> tuple[Tensor, Tensor]:
        others = queries if gallery is None else gallery
        size, needs_grad = len(queries), any(ctx.needs_input_grad[:2])
        computed = _range(local_rows, size)
        symmetric = gallery is None and len(computed) == size
        student, teachers, to_share = (queries.new_zeros(()) for _ in range(3))
        to_queries = torch.zeros_like(queries) if needs_grad else None
        to_gallery = torch.zeros_like(others) if needs_grad and not symmetric else None
        for rows, columns in _tiles(computed, size, tile, symmetric):
            times = _multiplicity(rows, columns, symmetric)
            image = image_teacher[rows] @ image_teacher[columns].T
            between = text_teacher[rows] @ text_teacher[columns].T - image  # S^T - S^I
            gap = torch.addmm(image, queries[rows], others[columns].T, beta=-1).addcmul_(between, -share)  # S^F - E
            _zero_diagonal(gap, rows, columns)
            _zero_diagonal(between, rows, columns)
            student += _sum(gap, power) * times
            teachers += _sum(between, power) * times
            slope = gap.sign_() if power == 1 else gap.mul_(2)
            to_share -= torch.dot(slope.flatten(), between.flatten()) * times
            if to_queries is not None:
                to_queries[rows].addmm_(slope, others[columns])
                if to_gallery is not None:
                    to_gallery[columns].addmm_(slope.T, queries[rows])
                elif rows != columns:
                    to_queries[columns].addmm_(slope.T, queries[rows])
        pairs = max(1, len(computed) * (size - 1))
        if to_queries is not None and symmetric:
            to_queries *= 2  # each instance is both a row and a column
        if to_queries is not None and to_gallery is not None and gallery is None:
            to_queries, to_gallery = to_queries + to_gallery, None
        ctx.save_for_backward(*(None if grad is None else grad / pairs for grad in (to_queries, to_gallery, to_share)))
        teachers = teachers / pairs
        ctx.mark_non_differentiable(teachers)
        return student / pairs, teachers

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        to_queries, to_gallery, to_share = (None if saved is None else grad * saved for saved in ctx.saved_tensors)
        return to_queries, to_gallery, None, None, to_share, None, None, None


def _range(local_rows: slice, size: int) -> range:
    return range(*local_rows.indices(size))


def _tiles(local_rows: range, size: int, tile: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Yield the row and column ranges of the tiles; of symmetric relations only the tiles on and above the diagonal."""
    for start in range(local_rows.start, local_rows.stop, tile):
        for other in range(start if symmetric else 0, size, tile):
            yield slice(start, min(start + tile, local_rows.stop)), slice(other, min(other + tile, size))


def _multiplicity(rows: slice, columns: slice, symmetric: bool) -> int:
    """Return how often a tile counts: twice if it stands for its mirror image below the diagonal as well."""
    return 2 if symmetric and rows != columns else 1


def _zero_diagonal(block: Tensor, rows: slice, columns: slice) -> None:
    """Set the entries of a tile that relate an instance to itself to zero; these need not start in a corner of the tile."""
    offset = rows.start - columns.start
    if -len(block) < offset < block.shape[1]:
        block.diagonal(offset).zero_()


def _sum(block: Tensor, power: int) -> Tensor:
    return block.abs().sum() if power == 1 else block.square().sum()
