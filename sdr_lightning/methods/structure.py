"""Structure-aware distillation: relations between instances, distilled from two fused teachers."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.functional.relational import (
    SCALE_FREE,
    Distance,
    StudentRelation,
    fuse_relations,
    relation_distance,
    relation_matrix,
    relations,
    student_instances,
)
from sdr_lightning.functional.relational_tiled import tiled_structure, tiled_teacher_gap
from sdr_lightning.methods.base import at_least_float32
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.types import Pairs

STRUCTURE_TERMS = ("kd", "kdi", "kdt")
_POWERS = {"mae": 1, "mse": 2}


class StructureLoss(nn.Module):
    """The distances ``kd``, ``kdi`` and ``kdt`` between the relations of student and teachers, see :class:`SDR`.

    Args:
        terms: which of ``kd``, ``kdi`` and ``kdt`` are computed.
        relation: see :class:`SDR`.
        distance: see :class:`SDR`.
        temperature: tau2, see :class:`SDR`.
        text_share: lambda, see :class:`SDR`.
        teacher_widths: widths of the image and of the text teacher's features, to pass them through trained MLPs; None for
            no MLPs.

    Raises:
        ValueError: an unknown relation or distance, a weight of a relation that is not positive, or a temperature for a
            distance that has none.
    """

    def __init__(
        self,
        terms: Collection[str],
        relation: StudentRelation | dict[StudentRelation, float] = "averaged",
        distance: Distance = "mae",
        temperature: Temperature | None = None,
        text_share: TextShare | None = None,
        teacher_widths: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.terms = [term for term in STRUCTURE_TERMS if term in terms]
        self.relation = checked_relation(relation)
        self.distance = checked_distance(distance)
        self.text_share = text_share if text_share is not None else TextShare()
        self.temperature: Temperature | None = None
        if distance not in SCALE_FREE:
            self.temperature = temperature if temperature is not None else Temperature()
        elif temperature is not None:
            raise ValueError(f"{distance} has no temperature: leave relation_temperature out")
        self.image_teacher_mlp: nn.Module = nn.Identity()
        self.text_teacher_mlp: nn.Module = nn.Identity()
        if teacher_widths is not None:
            self.image_teacher_mlp, self.text_teacher_mlp = map(_mlp, teacher_widths)
        # Tiles have no gradient to the teachers, which trained MLPs need.
        self._tiled = distance in _POWERS and teacher_widths is None

    def forward(
        self, pairs: Pairs, image_teacher: Tensor, text_teacher: Tensor, local_rows: slice
    ) -> dict[str, Tensor]:
        """Compute the distances.

        Args:
            pairs: B pairs.
            image_teacher: (B, D_I) features; constants.
            text_teacher: (B, D_T) features; constants.
            local_rows: the rows that ``mae`` and ``mse`` are computed of; other distances do not decompose over rows.

        Returns:
            Scalars by term. Gradient of ``kd`` flows to the embeddings, lambda and tau2; that of ``kdi`` and ``kdt`` to lambda
            and tau2, and to the MLPs.
        """
        image_teacher = _mapped(self.image_teacher_mlp, image_teacher, pairs.image.dtype)
        text_teacher = _mapped(self.text_teacher_mlp, text_teacher, pairs.text.dtype)
        if self._tiled:
            return self._by_tiles(pairs, image_teacher, text_teacher, local_rows)
        return self._by_matrices(pairs, image_teacher, text_teacher)

    def clamp(self) -> None:
        """Clamp tau2 to its range."""
        if self.temperature is not None:
            self.temperature.clamp()

    def _student_relations(self, pairs: Pairs) -> list[_StudentRelation]:
        if "kd" not in self.terms:
            return []
        fused = None if pairs.fused is None else at_least_float32(pairs.fused)
        return [
            _StudentRelation(weight, *student_instances(pairs.image, pairs.text, fused, name))
            for name, weight in self.relation.items()
        ]

    def _by_tiles(
        self, pairs: Pairs, image_teacher: Tensor, text_teacher: Tensor, local_rows: slice
    ) -> dict[str, Tensor]:
        """``mae`` and ``mse``: ``kdi`` and ``kdt`` are multiples of the distance f(S^I - S^T) between the teachers."""
        assert self.temperature is not None
        power, share = _POWERS[self.distance], self.text_share()
        scale = self.temperature().abs() ** power  # a temperature that is not clamped may cross 0
        teachers = F.normalize(image_teacher, dim=1), F.normalize(text_teacher, dim=1)
        distances, gap = [], None
        for weight, rows, columns in self._student_relations(pairs):
            columns = None if columns is None else F.normalize(columns, dim=1)
            found = tiled_structure(F.normalize(rows, dim=1), columns, *teachers, share, power, local_rows=local_rows)
            distances.append(weight * found.student / scale)
            gap = found.teachers
        terms = {"kd": torch.stack(distances).sum()} if distances else {}
        if "kdi" in self.terms or "kdt" in self.terms:
            gap = tiled_teacher_gap(*teachers, power, local_rows=local_rows) if gap is None else gap
            terms |= {"kdi": share.abs() ** power * gap / scale, "kdt": (1 - share).abs() ** power * gap / scale}
        return {name: terms[name] for name in self.terms}

    def _by_matrices(self, pairs: Pairs, image_teacher: Tensor, text_teacher: Tensor) -> dict[str, Tensor]:
        scale = self.temperature() if self.temperature is not None else 1.0
        image_relation = relations(image_teacher, None, self.distance) / scale
        text_relation = relations(text_teacher, None, self.distance) / scale
        target = fuse_relations(image_relation, text_relation, self.text_share())
        weights = (1 - relation_matrix(pairs.text)).clamp(min=0) if self.distance == "weighted_wasserstein" else None
        constant = None if weights is None else weights.detach()  # kdi and kdt have no gradient to the encoder

        def to_target(relation: Tensor, weights: Tensor | None) -> Tensor:
            return relation_distance(relation, target, self.distance, weights)

        terms: dict[str, Tensor] = {}
        if "kd" in self.terms:
            distances = [
                weight * to_target(relations(rows, columns, self.distance) / scale, weights)
                for weight, rows, columns in self._student_relations(pairs)
            ]
            terms["kd"] = torch.stack(distances).sum()
        if "kdi" in self.terms:
            terms["kdi"] = to_target(image_relation, constant)
        if "kdt" in self.terms:
            terms["kdt"] = to_target(text_relation, constant)
        return terms


class _StudentRelation(NamedTuple):
    """One of the student's relations: its weight in ``kd``, and between which instances it is."""

    weight: float
    rows: Tensor
    columns: Tensor | None


def checked_distance(distance: Distance) -> Distance:
    """Return the distance.

    Raises:
        ValueError: it is unknown.
    """
    _check_one_of("distance", distance, get_args(Distance))
    return distance


def checked_relation(relation: StudentRelation | dict[StudentRelation, float]) -> dict[StudentRelation, float]:
    """Return the weight of each relation.

    Raises:
        ValueError: no relation, an unknown one, or a weight that is not positive.
    """
    weighted: dict[StudentRelation, float] = relation if isinstance(relation, dict) else {relation: 1.0}
    for name, weight in weighted.items():
        _check_one_of("relation", name, get_args(StudentRelation))
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of relation {name!r} must be finite and positive, got {weight}")
    if not weighted:
        raise ValueError(f"no relation is named: give at least one of {', '.join(get_args(StudentRelation))}")
    return weighted


def _check_one_of(argument: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(choices)}, got {value!r}")


def _mapped(mlp: nn.Module, features: Tensor, dtype: torch.dtype) -> Tensor:
    """Apply an MLP in the precision of its weights."""
    weights = next(mlp.parameters(), None)
    mapped: Tensor = mlp(features if weights is None else features.to(weights.dtype))
    return mapped.to(dtype)


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 1536), nn.GELU(), nn.Linear(1536, 768))
