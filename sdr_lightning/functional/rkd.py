"""Relational knowledge distillation: distances and angles between the instances of a batch.

References:
    [0] Park et al., "Relational Knowledge Distillation", CVPR 2019.
    [1] HobbitLong/RepDistiller: distiller_zoo/RKD.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.relational import off_diagonal


def entries_of_a_tile(device: torch.device) -> int:
    """Return how many angles are computed at once: they fit a CPU's cache, or are enough for an accelerator."""
    return 2**17 if device.type == "cpu" else 2**22


def distance_gap(student: Tensor, teacher: Tensor, local_rows: slice = slice(None)) -> Tensor:
    """Compare Euclidean distances, divided by their mean over the batch ([0]).

    The mean over pairs of different instances of the smooth L1 loss. [1] averages over (B, B) with the zero diagonal, which is
    ``(B - 1) / B`` of this.

    Args:
        student: (B, d).
        teacher: (B, D), constant.
        local_rows: the rows whose distances to all B are compared; all by default.

    Returns:
        A scalar >= 0, 0 for a single instance; gradient flows to the student.

    >>> distance_gap(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [10.0], [20.0]]))
    tensor(0.0208)
    """
    if len(student) < 2:
        return student.sum() * 0
    found, target = (_relative_distances(each)[local_rows] for each in (student, teacher.detach()))
    return F.smooth_l1_loss(found, target).to(student.dtype)


def angle_gap(student: Tensor, teacher: Tensor, local_rows: slice = slice(None)) -> Tensor:
    """Compare the cosines of the angles of all triplets of different instances ([0]).

    The mean of the smooth L1 loss between ``cos(i j k) = (x_i - x_j) . (x_k - x_j) / |x_i - x_j| |x_k - x_j|`` of student and
    teacher. [1] averages over all (B, B, B), which is ``(B - 1) (B - 2) / B^2`` of this. At a vertex, equal instances have no
    direction: their cosines are 0.

    The angles are computed from inner products, a few vertices at a time, with an analytic gradient: memory is that of some
    (B, B) matrices, and time that of a few operations for each of the ``B^3`` angles, whatever the widths are. Inner products are
    in float64, so that close instances keep their direction.

    Args:
        student: (B, d).
        teacher: (B, D), constant.
        local_rows: the vertices j; all by default.

    Returns:
        A scalar in [0, 1.5], 0 for fewer than three instances; gradient flows to the student, once differentiable.

    >>> right, flat = torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    >>> round(angle_gap(right, flat, slice(1, 2)).item(), 4)  # at the second instance: 90 and 180 degrees
    0.5
    """
    if len(student) < 3:
        return student.sum() * 0
    gap: Tensor = _AngleGap.apply(_inner_products(student), _inner_products(teacher.detach()), local_rows)
    return gap.to(student.dtype)


def _inner_products(instances: Tensor) -> Tensor:
    """(B, B) float64 inner products around the mean, which distances and angles do not depend on."""
    centred = instances.double() - instances.double().mean(dim=0)
    return centred @ centred.T


def _squared_distances(products: Tensor) -> tuple[Tensor, Tensor]:
    """(B, B) ``|x_i - x_j|^2``, set to 1 for equal instances, and (B, B) whether instances differ."""
    square = products.diag()
    squares = square[:, None] + square[None, :] - 2 * products
    apart = squares > torch.finfo(torch.float32).eps * squares.mean()
    apart.fill_diagonal_(False)
    return torch.where(apart, squares, 1), apart


def _relative_distances(instances: Tensor) -> Tensor:
    """(B, B - 1) float64 distances to the other instances over their mean."""
    squares, apart = _squared_distances(_inner_products(instances))
    distances = off_diagonal(squares.sqrt() * apart)
    return distances / distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)


class _AngleGap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, local_rows: slice) -> Tensor:
        size = len(student)
        vertices = range(*local_rows.indices(size))
        lengths = _inverse_lengths(student), _inverse_lengths(teacher)
        to_student, total = torch.zeros_like(student), student.new_zeros(())
        tile = max(1, entries_of_a_tile(student.device) // size**2)
        for start in range(vertices.start, vertices.stop, tile):
            rows = slice(start, min(start + tile, vertices.stop))
            cosines = _cosines(student, lengths[0], rows)  # (v, B, B)
            gap = cosines - _cosines(teacher, lengths[1], rows)
            gap.diagonal(dim1=1, dim2=2).zero_()  # i and k are to differ; a vertex has no edge to itself
            slope = gap.clamp(-1, 1)  # the derivative of smooth L1, whose value is slope (gap - slope / 2)
            total += (slope * (gap - slope / 2)).sum()
            _add_gradient(to_student, slope, cosines, lengths[0], rows)
        triplets = max(1, len(vertices)) * (size - 1) * (size - 2)
        ctx.save_for_backward(to_student / triplets)
        return total / triplets

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (to_student,) = ctx.saved_tensors
        return grad * to_student, None, None


def _inverse_lengths(products: Tensor) -> Tensor:
    """(B, B) ``1 / |x_i - x_j|``, 0 for equal instances."""
    squares, apart = _squared_distances(products)
    return squares.rsqrt() * apart


def _cosines(products: Tensor, inverse_lengths: Tensor, vertices: slice) -> Tensor:
    """(v, B, B) cosines: at the vertex j, between the edges to i and to k."""
    to_vertex, inverse = products[vertices], inverse_lengths[vertices]
    at_vertex = products.diag()[vertices]
    edges = (products - to_vertex[:, :, None]).sub_((to_vertex - at_vertex[:, None])[:, None, :])
    return edges.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])


def _add_gradient(total: Tensor, slope: Tensor, cosines: Tensor, inverse_lengths: Tensor, vertices: slice) -> None:
    """Add the gradient of inner products G_ik - G_ji - G_jk + G_jj and of squared lengths G_ii + G_jj - 2 G_ji.

    ``slope`` is (v, B, B), symmetric, and is changed.
    """
    inverse = inverse_lengths[vertices]
    to_squares = -inverse.square() * (slope * cosines).sum(dim=2)  # (v, B), of |x_i - x_j|^2
    slope.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
    total += slope.sum(dim=0)
    per_edge = slope.sum(dim=2)  # (v, B)
    total[vertices] -= 2 * (per_edge + to_squares)
    diagonal = total.diagonal()
    diagonal += to_squares.sum(dim=0)
    diagonal[vertices] += per_edge.sum(dim=1) + to_squares.sum(dim=1)
