"""The teacher-student rebalancing method: named terms, weighted.

Reference:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.functional.contrastive import contrast, image_text_contrast, positive_targets
from sdr_lightning.functional.matching import matching_loss
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
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.types import Pairs

TERMS: dict[str, str] = {
    "itc": "image-text contrast: instance-level matching",
    "itm": "image-text matching: the fusion encoder tells matched pairs from hard negatives",
    "iic": "representation: the image embedding picks its own image-teacher feature",
    "ttc": "representation: the text embedding picks its own text-teacher feature",
    "kd": "structure: the student's relations follow the fused teachers' relations",
    "kdi": "structure: the image teacher's relations against the fused ones (moves lambda and tau2 only)",
    "kdt": "structure: the text teacher's relations against the fused ones (moves lambda and tau2 only)",
}
PAPER_WEIGHTS = {"itc": 1.0, "itm": 2.0, "iic": 1.0, "ttc": 2.0, "kd": 2.0, "kdi": 1.0, "kdt": 1.0}
"""Of [0]'s scripts."""
DISTILLING = ("iic", "ttc", "kd", "kdi", "kdt")
"""The terms that read a teacher."""
_STRUCTURE = ("kd", "kdi", "kdt")
_POWERS = {"mae": 1, "mse": 2}


class SDR(nn.Module):
    """Matching, representation-level and structure-aware distillation as a weighted sum ([0]).

    With v, t the L2-normalised image and text embeddings, x^I, x^T the teachers' features, y the positives by
    image, tau and tau2 temperatures and ``d`` the relation distance over different instances:

    - ``itc``: the mean over both directions of ``-sum_j y_ij log softmax_j(v_i . t_j / tau)``
    - ``itm``: cross-entropy of the matching head on each pair, and on one hard-negative image and one hard-negative
      text of each pair
    - ``iic``: ``-sum_j y_ij log softmax_j(v_i . norm(P_I x^I_j) / tau)``, one direction, P_I trained
    - ``ttc``: ``-sum_j y_ij log softmax_j(t_i . norm(P_T x^T_j) / tau)``, one direction, P_T trained
    - ``kd``: ``d(S^F, E)``; ``kdi``: ``d(S^I, E)``; ``kdt``: ``d(S^T, E)`` with
      S = cosine / tau2 of the student (see ``relation``), of x^I and of x^T, and
      ``E = lambda S^T + (1 - lambda) S^I``. The Relational Knowledge Distillation distances take distances or angles in
      the cosines' place, and no temperature.

    Teachers' features are constants, so ``kdi`` and ``kdt`` move lambda and tau2 only. With ``mae`` and ``mse`` no (B, B)
    relation matrix is made: memory is linear in the batch.

    Args:
        weights: weight of each term by name; a term that is absent or 0 is not computed. The paper's when None.
        embedding_width: d, the width of the common space; needed by ``iic`` and ``ttc`` only.
        image_teacher_width: D_I; needed by ``iic`` and by ``teacher_mlps`` only.
        text_teacher_width: D_T; needed by ``ttc`` and by ``teacher_mlps`` only.
        relation: whose relations the student's are, see :func:`~sdr_lightning.functional.relational.student_instances`; or
            a weight for each of several, whose distances are then summed. The paper's is ``fused``.
        distance: the relation distance, see :func:`~sdr_lightning.functional.relational.relation_distance`.
        temperature: tau; 0.07 and learned by default.
        relation_temperature: tau2; 0.07 and learned by default. Every structure term scales with 1/tau2, so a learned
            tau2 can shrink them with the geometry unchanged; its value is logged, and it can be fixed.
        text_share: lambda; 0.5 and learned without bounds by default.
        clamp_temperatures: put temperatures back into their ranges after each step; the public code does not.
        teacher_mlps: pass the teachers' features through trained MLPs (width 1,536, then 768) before their relations are
            taken, as the public code does for its Wasserstein distance. Structure terms then move these as well.

    Raises:
        ValueError: an unknown term, relation or distance, a negative weight, no positive weight, a width that is
            missing, or a temperature for a distance that has none.
    """

    def __init__(
        self,
        weights: Mapping[str, float] | None = None,
        embedding_width: int | None = None,
        image_teacher_width: int | None = None,
        text_teacher_width: int | None = None,
        relation: StudentRelation | dict[StudentRelation, float] = "averaged",
        distance: Distance = "mae",
        temperature: Temperature | None = None,
        relation_temperature: Temperature | None = None,
        text_share: TextShare | None = None,
        clamp_temperatures: bool = True,
        teacher_mlps: bool = False,
    ) -> None:
        super().__init__()
        self.weights = _checked_weights(PAPER_WEIGHTS if weights is None else weights)
        self.relation = _checked_relation(relation)
        _one_of("distance", distance, Distance)
        self.distance = distance
        self.clamp_temperatures = clamp_temperatures
        if self.has_contrast:
            self.temperature = temperature if temperature is not None else Temperature()
        if "iic" in self.weights:
            width = _required(image_teacher_width, "image_teacher_width", "the term 'iic'")
            self.project_image_teacher = nn.Linear(
                width, _required(embedding_width, "embedding_width", "the term 'iic'")
            )
        if "ttc" in self.weights:
            width = _required(text_teacher_width, "text_teacher_width", "the term 'ttc'")
            self.project_text_teacher = nn.Linear(
                width, _required(embedding_width, "embedding_width", "the term 'ttc'")
            )
        self.image_teacher_mlp: nn.Module = nn.Identity()
        self.text_teacher_mlp: nn.Module = nn.Identity()
        if self.has_structure:
            self.text_share = text_share if text_share is not None else TextShare()
            if distance not in SCALE_FREE:
                self.relation_temperature = relation_temperature if relation_temperature is not None else Temperature()
            elif relation_temperature is not None:
                raise ValueError(f"{distance} has no temperature: leave relation_temperature out")
            if teacher_mlps:
                self.image_teacher_mlp = _mlp(_required(image_teacher_width, "image_teacher_width", "teacher_mlps"))
                self.text_teacher_mlp = _mlp(_required(text_teacher_width, "text_teacher_width", "teacher_mlps"))
        # Tiles have no gradient to the teachers, and none is needed unless the MLPs are trained.
        self._tiled = distance in _POWERS and not teacher_mlps

    @property
    def has_contrast(self) -> bool:
        """Whether any contrastive term is computed."""
        return any(term in self.weights for term in ("itc", "iic", "ttc"))

    @property
    def has_structure(self) -> bool:
        """Whether any structure term is computed."""
        return any(term in self.weights for term in _STRUCTURE)

    @property
    def needs_image_teacher(self) -> bool:
        """Whether a term reads the image teacher's features."""
        return self.has_structure or "iic" in self.weights

    @property
    def needs_text_teacher(self) -> bool:
        """Whether a term reads the text teacher's features."""
        return self.has_structure or "ttc" in self.weights

    @property
    def needs_matching(self) -> bool:
        """Whether a term reads the matching head."""
        return "itm" in self.weights

    @property
    def needs_fusion(self) -> bool:
        """Whether a term reads the fusion encoder."""
        return self.needs_matching or ("kd" in self.weights and "fused" in self.relation)

    def forward(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute every term that has a weight.

        Args:
            pairs: embeddings, image rows and teachers' features of B pairs, over all ranks.
            local_rows: the pairs whose rows are computed, against all B; all of them by default. Terms that do not fall apart
                into rows (``itm``, and structure by another distance than ``mae`` and ``mse``) are computed in whole.

        Returns:
            The *unweighted* terms by name, scalars in float32 (float64 for float64 embeddings). Their means over equal
            shares of the rows are the terms of all rows.

        Raises:
            ValueError: a term's teacher features are absent or of another width than configured, or what the fusion
                encoder says is absent.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            return self._terms(_at_least_float32(pairs.image), _at_least_float32(pairs.text), pairs, local_rows)

    def _terms(self, image: Tensor, text: Tensor, pairs: Pairs, local_rows: slice) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        tau = self.temperature() if self.has_contrast else image.new_ones(())
        if "itc" in self.weights:
            terms["itc"] = image_text_contrast(image, text, pairs.image_index, tau, local_rows)
        if "itm" in self.weights:
            if pairs.match_logits is None or pairs.match_labels is None:
                raise ValueError("the term 'itm' needs a fusion encoder: give the encoder one")
            terms["itm"] = matching_loss(pairs.match_logits, pairs.match_labels)
        if "iic" in self.weights:
            teacher = _teacher(pairs.image_teacher, "image", self.project_image_teacher.in_features)
            terms["iic"] = _distil(image, teacher, self.project_image_teacher, pairs.image_index, tau, local_rows)
        if "ttc" in self.weights:
            teacher = _teacher(pairs.text_teacher, "text", self.project_text_teacher.in_features)
            terms["ttc"] = _distil(text, teacher, self.project_text_teacher, pairs.image_index, tau, local_rows)
        if self.has_structure:
            image_teacher = _mapped(self.image_teacher_mlp, _teacher(pairs.image_teacher, "image"), image.dtype)
            text_teacher = _mapped(self.text_teacher_mlp, _teacher(pairs.text_teacher, "text"), text.dtype)
            students = self._students(image, text, pairs)
            if self._tiled:
                terms |= self._structure_by_tiles(students, image_teacher, text_teacher, local_rows)
            else:
                terms |= self._structure_by_matrices(students, image_teacher, text_teacher, text)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms of :meth:`forward`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def scalars(self) -> dict[str, Tensor]:
        """Temperatures and lambda by the name they are logged under, detached."""
        values = {"temperature": self.temperature().detach()} if self.has_contrast else {}
        if self._has_relation_temperature:
            values["relation_temperature"] = self.relation_temperature().detach()
        if self.has_structure:
            values["lambda"] = self.text_share().detach()
        return values

    def negatives_temperature(self) -> Tensor | float:
        """tau that hard negatives are drawn with: that of the contrast, or 0.07 where there is none."""
        return self.temperature().detach() if self.has_contrast else 0.07

    def clamp(self) -> None:
        """Put the temperatures back into their ranges, if they are kept in them; called after each optimiser step."""
        if self.clamp_temperatures and self.has_contrast:
            self.temperature.clamp()
        if self.clamp_temperatures and self._has_relation_temperature:
            self.relation_temperature.clamp()

    @property
    def _has_relation_temperature(self) -> bool:
        return self.has_structure and self.distance not in SCALE_FREE

    def _students(self, image: Tensor, text: Tensor, pairs: Pairs) -> list[_Student]:
        if "kd" not in self.weights:
            return []
        fused = None if pairs.fused is None else _at_least_float32(pairs.fused)
        return [
            _Student(weight, *student_instances(image, text, fused, name)) for name, weight in self.relation.items()
        ]

    def _structure_by_tiles(
        self, students: list[_Student], image_teacher: Tensor, text_teacher: Tensor, local_rows: slice
    ) -> dict[str, Tensor]:
        """``mae`` and ``mse``, where kdi and kdt are lambda's and tau2's share of one number: f(S^I - S^T)."""
        power, share = _POWERS[self.distance], self.text_share()
        scale = self.relation_temperature().abs() ** power  # one that is free may cross 0
        teachers = F.normalize(image_teacher, dim=1), F.normalize(text_teacher, dim=1)
        distances, apart = [], None
        for weight, rows, columns in students:
            columns = None if columns is None else F.normalize(columns, dim=1)
            found = tiled_structure(F.normalize(rows, dim=1), columns, *teachers, share, power, local_rows=local_rows)
            distances.append(weight * found.student / scale)
            apart = found.teachers
        terms = {"kd": torch.stack(distances).sum()} if distances else {}
        if "kdi" in self.weights or "kdt" in self.weights:
            apart = tiled_teacher_gap(*teachers, power, local_rows=local_rows) if apart is None else apart
            terms |= {"kdi": share.abs() ** power * apart / scale, "kdt": (1 - share).abs() ** power * apart / scale}
        return {name: terms[name] for name in _STRUCTURE if name in self.weights}

    def _structure_by_matrices(
        self, students: list[_Student], image_teacher: Tensor, text_teacher: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        scale = self.relation_temperature() if self._has_relation_temperature else 1.0
        image_relation = relations(image_teacher, None, self.distance) / scale
        text_relation = relations(text_teacher, None, self.distance) / scale
        target = fuse_relations(image_relation, text_relation, self.text_share())
        weights = (1 - relation_matrix(text)).clamp(min=0) if self.distance == "weighted_wasserstein" else None

        constant = None if weights is None else weights.detach()  # kdi and kdt move no encoder

        def between(relation: Tensor, weights: Tensor | None) -> Tensor:
            return relation_distance(relation, target, self.distance, weights)

        terms: dict[str, Tensor] = {}
        if students:
            apart = [
                weight * between(relations(rows, columns, self.distance) / scale, weights)
                for weight, rows, columns in students
            ]
            terms["kd"] = torch.stack(apart).sum()
        if "kdi" in self.weights:
            terms["kdi"] = between(image_relation, constant)
        if "kdt" in self.weights:
            terms["kdt"] = between(text_relation, constant)
        return terms


class _Student(NamedTuple):
    """One of the student's relations: its weight in KD, and whose relation it is."""

    weight: float
    rows: Tensor
    columns: Tensor | None


def _distil(
    student: Tensor, teacher: Tensor, projection: nn.Linear, index: Tensor, tau: Tensor, local_rows: slice
) -> Tensor:
    projected = F.normalize(projection(teacher.to(projection.weight.dtype)), dim=1).to(student.dtype)
    return contrast(student[local_rows], projected, positive_targets(index[local_rows], index, student.dtype), tau)


def _mapped(mlp: nn.Module, teacher: Tensor, dtype: torch.dtype) -> Tensor:
    """Through an MLP in its own precision, if it has any."""
    weights = next(mlp.parameters(), None)
    mapped: Tensor = mlp(teacher if weights is None else teacher.to(weights.dtype))
    return mapped.to(dtype)


def _teacher(features: Tensor | None, modality: str, width: int | None = None) -> Tensor:
    if features is None:
        raise ValueError(
            f"the method needs {modality}-teacher features and the batch has none: "
            f"extract a bank and name it under data.init_args.{modality}_bank"
        )
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"the {modality} bank is {features.shape[1]} wide and the method expects {width}: "
            f"set method.{modality}_teacher_width to {features.shape[1]}"
        )
    return _at_least_float32(features.detach())


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def _checked_weights(weights: Mapping[str, float]) -> dict[str, float]:
    for name, weight in weights.items():
        if name not in TERMS:
            near = get_close_matches(name, TERMS, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown term {name!r} in weights, expected some of {', '.join(TERMS)}{hint}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name!r} must be finite and >= 0, got {weight}")
    positive = {name: float(weights[name]) for name in TERMS if weights.get(name, 0) > 0}
    if not positive:
        raise ValueError(f"no term has a positive weight: give at least one of {', '.join(TERMS)}")
    return positive


def _one_of(argument: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{argument} must be one of {', '.join(get_args(choices))}, got {value!r}")


def _checked_relation(relation: StudentRelation | dict[StudentRelation, float]) -> dict[StudentRelation, float]:
    weighted: dict[StudentRelation, float] = relation if isinstance(relation, dict) else {relation: 1.0}
    for name, weight in weighted.items():
        _one_of("relation", name, StudentRelation)
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of relation {name!r} must be finite and positive, got {weight}")
    if not weighted:
        raise ValueError(f"no relation is named: give at least one of {', '.join(get_args(StudentRelation))}")
    return weighted


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 1536), nn.GELU(), nn.Linear(1536, 768))


def _required(width: int | None, argument: str, reader: str) -> int:
    if width is None:
        raise ValueError(f"{reader} needs {argument}: name it in the method's configuration")
    return width
