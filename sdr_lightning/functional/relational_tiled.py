"""The structure terms for ``mae`` and ``mse`` tile by tile: no (B, B) tensor is made, and memory is linear in B.

The gradient is analytic. With the relations' difference ``g = s - lambda x^T.x^T - (1 - lambda) x^I.x^I`` of cosines and
``f`` the absolute value or the square, KD is ``mean f(g / tau2)`` over different instances, and what flows back is a
product of ``f'(g)`` with the other side's rows: each tile adds its part in the same pass that adds up the loss.

Reference:
    Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024: KD, KDI, KDT.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


def tile_size(device: torch.device) -> int:
    """Rows and columns of a tile: what stays in a CPU's cache, or what keeps an accelerator busy."""
    return 256 if device.type == "cpu" else 2048


class Structure(NamedTuple):
    """Both are means over pairs of different instances, without the temperature.

    Attributes:
        student: mean ``f`` of the student's cosines minus the fused ones.
        teachers: mean ``f`` of the image teacher's cosines minus the text teacher's; a constant.
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
    """Compare a student's relations with the fused relations of its teachers.

    Args:
        queries: (B, D) L2-normalised.
        gallery: (B, D) L2-normalised; None where the relations are among the queries, which halves the work.
        image_teacher: (B, D_I) L2-normalised, constant.
        text_teacher: (B, D_T) L2-normalised, constant.
        text_share: lambda, a scalar.
        power: 1 for absolute differences, 2 for squares.
        tile: rows and columns of a tile, which change nothing but memory, speed and rounding; :func:`tile_size` when None.
        local_rows: the rows that are computed, against all B columns; all of them by default.

    Returns:
        Two scalars, means over the rows computed. Gradient flows from ``student`` to queries, gallery and lambda, once
        (not twice differentiable).
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
    """:attr:`Structure.teachers` alone.

    Args:
        image_teacher: (B, D_I) L2-normalised.
        text_teacher: (B, D_T) L2-normalised.
        power: 1 or 2.
        tile: likewise.
        local_rows: likewise.

    Returns:
        A scalar without gradient.
    """
    image_teacher, text_teacher = image_teacher.detach(), text_teacher.detach()
    size, asked = len(image_teacher), _range(local_rows, len(image_teacher))
    total, symmetric = image_teacher.new_zeros(()), len(asked) == size
    for rows, columns in _tiles(asked, size, tile or tile_size(image_teacher.device), symmetric):
        gap = image_teacher[rows] @ image_teacher[columns].T - text_teacher[rows] @ text_teacher[columns].T
        _forget_diagonal(gap, rows, columns)
        total += _sum(gap, power) * _times(rows, columns, symmetric)
    return total / max(1, len(asked) * (size - 1))


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
        size, wanted = len(queries), any(ctx.needs_input_grad[:2])
        asked = _range(local_rows, size)
        symmetric = gallery is None and len(asked) == size
        student, teachers, to_share = (queries.new_zeros(()) for _ in range(3))
        to_queries = torch.zeros_like(queries) if wanted else None
        to_gallery = torch.zeros_like(others) if wanted and not symmetric else None
        for rows, columns in _tiles(asked, size, tile, symmetric):
            times = _times(rows, columns, symmetric)
            image = image_teacher[rows] @ image_teacher[columns].T
            between = text_teacher[rows] @ text_teacher[columns].T - image  # S^T - S^I
            gap = torch.addmm(image, queries[rows], others[columns].T, beta=-1).addcmul_(between, -share)  # S^F - E
            _forget_diagonal(gap, rows, columns)
            _forget_diagonal(between, rows, columns)
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
        pairs = max(1, len(asked) * (size - 1))
        if to_queries is not None and symmetric:
            to_queries *= 2  # a row is a column as well
        if to_queries is not None and to_gallery is not None and gallery is None:
            to_queries, to_gallery = to_queries + to_gallery, None
        kept = [None if grad is None else grad / pairs for grad in (to_queries, to_gallery, to_share)]
        ctx.save_for_backward(*kept)
        teachers = teachers / pairs
        ctx.mark_non_differentiable(teachers)
        return student / pairs, teachers

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        flowing = [None if kept is None else grad * kept for kept in ctx.saved_tensors]
        return flowing[0], flowing[1], None, None, flowing[2], None, None, None


def _range(local_rows: slice, size: int) -> range:
    return range(*local_rows.indices(size))


def _tiles(local_rows: range, size: int, tile: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Row and column ranges; without the tiles below the diagonal where relations are symmetric."""
    for start in range(local_rows.start, local_rows.stop, tile):
        for other in range(start if symmetric else 0, size, tile):
            yield slice(start, min(start + tile, local_rows.stop)), slice(other, min(other + tile, size))


def _times(rows: slice, columns: slice, symmetric: bool) -> int:
    """How often a tile counts: that across the diagonal is the same, and is left out."""
    return 2 if symmetric and rows != columns else 1


def _forget_diagonal(block: Tensor, rows: slice, columns: slice) -> None:
    """An instance with itself; tiles of a share of the rows need not meet the diagonal in their corners."""
    offset = rows.start - columns.start
    if -len(block) < offset < block.shape[1]:
        block.diagonal(offset).zero_()


def _sum(block: Tensor, power: int) -> Tensor:
    return block.abs().sum() if power == 1 else block.square().sum()
