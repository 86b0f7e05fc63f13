"""The teacher-student rebalancing objective: named terms, weighted.

Reference:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024,
        and its public code. Its term ITM needs a fusion encoder and is not part of this objective yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.functional.contrastive import contrast, image_text_contrast, positive_targets
from sdr_lightning.functional.relational import (
    Distance,
    StudentRelation,
    fuse_relations,
    relation_distance,
    relation_matrix,
    student_relation,
)
from sdr_lightning.losses.parameters import Temperature, TextShare
from sdr_lightning.types import PairEmbeddings

TERMS: dict[str, str] = {
    "itc": "image-text contrast: instance-level matching",
    "iic": "representation: the image embedding picks its own image-teacher feature",
    "ttc": "representation: the text embedding picks its own text-teacher feature",
    "kd": "structure: the student's relations follow the fused teachers' relations",
    "kdi": "structure: the image teacher's relations against the fused ones (moves lambda and tau2 only)",
    "kdt": "structure: the text teacher's relations against the fused ones (moves lambda and tau2 only)",
}
_STRUCTURE = ("kd", "kdi", "kdt")


class RebalancingObjective(nn.Module):
    """Matching, representation-level and structure-aware distillation as a weighted sum ([0]).

    With v, t the L2-normalised image and text embeddings, x^I, x^T the teachers' features, y the positives by
    image, tau and tau2 temperatures and ``d`` the relation distance over pairs of different instances:

    - ``itc``: the mean over both directions of ``-sum_j y_ij log softmax_j(v_i . t_j / tau)``
    - ``iic``: ``-sum_j y_ij log softmax_j(v_i . norm(P_I x^I_j) / tau)``, one direction, P_I trained
    - ``ttc``: ``-sum_j y_ij log softmax_j(t_i . norm(P_T x^T_j) / tau)``, one direction, P_T trained
    - ``kd``: ``d(S^F, E)``; ``kdi``: ``d(S^I, E)``; ``kdt``: ``d(S^T, E)`` with
      S = cosine / tau2 of the student (see ``relation``), of x^I and of x^T, and
      ``E = lambda S^T + (1 - lambda) S^I``.

    Teachers' features are constants, so ``kdi`` and ``kdt`` move lambda and tau2 only.

    Args:
        weights: weight of each term by name; a term that is absent or 0 is not computed.
            The paper's: itc 1, iic 1, ttc 2, kd 2, kdi 1, kdt 1.
        embedding_width: d, the width of the common space.
        image_teacher_width: D_I; needed by ``iic`` only.
        text_teacher_width: D_T; needed by ``ttc`` only.
        relation: the student's relation matrix, see :func:`~sdr_lightning.functional.relational.student_relation`.
        distance: the relation distance.
        temperature: tau; 0.07 and learned by default.
        relation_temperature: tau2; 0.07 and learned by default. Every structure term scales with 1/tau2, so a learned
            tau2 can shrink them with the geometry unchanged; its value is logged, and it can be fixed.
        text_share: lambda; 0.5 and learned by default.

    Raises:
        ValueError: an unknown term, relation or distance, a negative weight, no positive weight, or a teacher width that
            is missing.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        embedding_width: int,
        image_teacher_width: int | None = None,
        text_teacher_width: int | None = None,
        relation: StudentRelation = "averaged",
        distance: Distance = "mae",
        temperature: Temperature | None = None,
        relation_temperature: Temperature | None = None,
        text_share: TextShare | None = None,
    ) -> None:
        super().__init__()
        self.weights = _checked_weights(weights)
        _one_of("relation", relation, StudentRelation)
        _one_of("distance", distance, Distance)
        self.relation, self.distance = relation, distance
        if self.has_contrast:
            self.temperature = temperature if temperature is not None else Temperature()
        if "iic" in self.weights:
            width = _required(image_teacher_width, "image_teacher_width", "iic")
            self.project_image_teacher = nn.Linear(width, embedding_width)
        if "ttc" in self.weights:
            width = _required(text_teacher_width, "text_teacher_width", "ttc")
            self.project_text_teacher = nn.Linear(width, embedding_width)
        if self.has_structure:
            self.relation_temperature = relation_temperature if relation_temperature is not None else Temperature()
            self.text_share = text_share if text_share is not None else TextShare()

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

    def forward(self, pairs: PairEmbeddings) -> dict[str, Tensor]:
        """Compute every term that has a weight.

        Args:
            pairs: embeddings, image rows and teachers' features of B pairs, over all ranks.

        Returns:
            The *unweighted* terms by name, scalars in float32 (float64 for float64 embeddings).

        Raises:
            ValueError: a term's teacher features are absent or of another width than configured.
        """
        with torch.autocast(pairs.image.device.type, enabled=False):
            return self._terms(_at_least_float32(pairs.image), _at_least_float32(pairs.text), pairs)

    def _terms(self, image: Tensor, text: Tensor, pairs: PairEmbeddings) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        tau = self.temperature() if self.has_contrast else image.new_ones(())
        if "itc" in self.weights:
            terms["itc"] = image_text_contrast(image, text, pairs.image_index, tau)
        if "iic" in self.weights:
            teacher = _teacher(pairs.image_teacher, "image", self.project_image_teacher.in_features)
            terms["iic"] = _distil(image, teacher, self.project_image_teacher, pairs.image_index, tau)
        if "ttc" in self.weights:
            teacher = _teacher(pairs.text_teacher, "text", self.project_text_teacher.in_features)
            terms["ttc"] = _distil(text, teacher, self.project_text_teacher, pairs.image_index, tau)
        if self.has_structure:
            terms |= self._structure(image, text, pairs)
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum of the terms of :meth:`forward`, a scalar."""
        return torch.stack([self.weights[name] * value for name, value in terms.items()]).sum()

    def scalars(self) -> dict[str, Tensor]:
        """Temperatures and lambda by the name they are logged under, detached."""
        values = {"temperature": self.temperature().detach()} if self.has_contrast else {}
        if self.has_structure:
            values["relation_temperature"] = self.relation_temperature().detach()
            values["lambda"] = self.text_share().detach()
        return values

    def clamp(self) -> None:
        """Put the temperatures back into their ranges; called after each optimiser step."""
        if self.has_contrast:
            self.temperature.clamp()
        if self.has_structure:
            self.relation_temperature.clamp()

    def _structure(self, image: Tensor, text: Tensor, pairs: PairEmbeddings) -> dict[str, Tensor]:
        tau2 = self.relation_temperature()
        image_relation = relation_matrix(_teacher(pairs.image_teacher, "image").to(image.dtype)) / tau2
        text_relation = relation_matrix(_teacher(pairs.text_teacher, "text").to(text.dtype)) / tau2
        fused = fuse_relations(image_relation, text_relation, self.text_share())
        terms: dict[str, Tensor] = {}
        if "kd" in self.weights:
            student = student_relation(image, text, self.relation) / tau2
            terms["kd"] = relation_distance(student, fused, self.distance)
        if "kdi" in self.weights:
            terms["kdi"] = relation_distance(image_relation, fused, self.distance)
        if "kdt" in self.weights:
            terms["kdt"] = relation_distance(text_relation, fused, self.distance)
        return terms


def _distil(student: Tensor, teacher: Tensor, projection: nn.Linear, index: Tensor, tau: Tensor) -> Tensor:
    projected = F.normalize(projection(teacher.to(projection.weight.dtype)), dim=1).to(student.dtype)
    return contrast(student, projected, positive_targets(index, index, student.dtype), tau)


def _teacher(features: Tensor | None, modality: str, width: int | None = None) -> Tensor:
    if features is None:
        raise ValueError(
            f"the objective needs {modality}-teacher features and the batch has none: "
            f"extract a bank and name it under data.init_args.{modality}_bank"
        )
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"the {modality} bank is {features.shape[1]} wide and the objective expects {width}: "
            f"set objective.{modality}_teacher_width to {features.shape[1]}"
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


def _required(width: int | None, argument: str, term: str) -> int:
    if width is None:
        raise ValueError(f"the term {term!r} needs {argument}, the width of the teacher's features")
    return width
