"""SDR: matching, representation-level and structure-aware distillation from two unimodal teachers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.functional.contrastive import contrast, image_text_contrast, positive_targets
from sdr_lightning.functional.matching import matching_loss
from sdr_lightning.functional.relational import Distance, StudentRelation
from sdr_lightning.methods.base import Method, Need, checked_weights
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.methods.structure import STRUCTURE_TERMS, StructureLoss, checked_distance, checked_relation
from sdr_lightning.methods.teachers import teacher_features
from sdr_lightning.types import Modality, Pairs, TrainingPairs

TERMS: dict[str, str] = {
    "itc": "image-text contrast: instance-level matching",
    "itm": "image-text matching: the fusion encoder tells matched pairs from hard negatives",
    "iic": "representation: each image embedding matches its own image-teacher feature",
    "ttc": "representation: each text embedding matches its own text-teacher feature",
    "kd": "structure: the student's relations match the fused relations of the teachers",
    "kdi": "structure: the image teacher's relations against the fused ones (trains lambda and tau2 only)",
    "kdt": "structure: the text teacher's relations against the fused ones (trains lambda and tau2 only)",
}
PAPER_WEIGHTS = {"itc": 1.0, "itm": 2.0, "iic": 1.0, "ttc": 2.0, "kd": 2.0, "kdi": 1.0, "kdt": 1.0}
"""Of the scripts of [0]'s public code."""


class SDR(Method):
    """Rebalance the modalities by distillation from an image and a text teacher ([0]).

    With v, t the L2-normalised image and text embeddings, x^I, x^T the teachers' features, y the positives by image, tau and
    tau2 temperatures and ``d`` the relation distance over different instances:

    - ``itc``: the mean over both directions of ``-sum_j y_ij log softmax_j(v_i . t_j / tau)``
    - ``itm``: cross-entropy of the matching head on each pair, and on one hard-negative image and one hard-negative
      text of each pair
    - ``iic``: ``-sum_j y_ij log softmax_j(v_i . norm(P_I x^I_j) / tau)``, one direction, P_I trained
    - ``ttc``: ``-sum_j y_ij log softmax_j(t_i . norm(P_T x^T_j) / tau)``, one direction, P_T trained
    - ``kd``: ``d(S^F, E)``; ``kdi``: ``d(S^I, E)``; ``kdt``: ``d(S^T, E)`` with S = cosine / tau2 of the student (see
      ``relation``), of x^I and of x^T, and ``E = lambda S^T + (1 - lambda) S^I``. The distances of Relational Knowledge
      Distillation use distances or angles instead of cosines, and no temperature.

    The teachers' features are constants, so ``kdi`` and ``kdt`` train lambda and tau2 only. With ``mae`` and ``mse`` no (B, B)
    relation matrix is stored: memory is linear in the batch.

    The defaults are those of [0], except for ``relation``: ``averaged`` needs no fusion encoder. The models without a fusion
    encoder in ``experiments/models`` set other options, see docs/sdr.md.

    Args:
        weights: weight of each term by name; a term that is absent or 0 is not computed. The paper's when None.
        embedding_width: d, the width of the common space; only for ``iic`` and ``ttc``.
        image_teacher_width: D_I; only for ``iic`` and ``teacher_mlps``.
        text_teacher_width: D_T; only for ``ttc`` and ``teacher_mlps``.
        relation: the student's relation, see :func:`~sdr_lightning.functional.relational.student_instances`; or a weight for
            each of several, whose distances are summed. The paper's is ``fused``.
        distance: the relation distance, see :func:`~sdr_lightning.functional.relational.relation_distance`.
        temperature: tau; 0.07 and learned by default.
        representation_temperature: a temperature of its own for ``iic`` and ``ttc``; they share tau when None, as in [0].
        relation_temperature: tau2; 0.07 and learned by default. Every structure term scales with 1 / tau2, so a learned
            tau2 can shrink them without a change of geometry; its value is logged, and it can be fixed.
        text_share: lambda; 0.5 and learned without bounds by default.
        clamp_temperatures: clamp temperatures to their ranges after each step; the public code does not.
        teacher_mlps: pass the teachers' features through trained MLPs (width 1,536, then 768) before their relations are
            computed, as the public code does for its Wasserstein distance. Structure terms then train these as well.
        centre_teachers: subtract from each teacher's features, before any term reads them, their mean over the training split:
            over its images, and over its captions. :meth:`setup` computes the means; they are buffers, so checkpoints hold
            them. Not in [0].

    Raises:
        ValueError: an unknown term, relation or distance, a negative weight, no positive weight, a width that is
            missing, or a temperature for a distance that has none.

    References:
        [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024, and
            its public code.
    """

    supports_local_loss = True

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
        centre_teachers: bool = False,
        representation_temperature: Temperature | None = None,
    ) -> None:
        super().__init__(checked_weights(PAPER_WEIGHTS if weights is None else weights, TERMS))
        self.relation, self.distance = checked_relation(relation), checked_distance(distance)
        self.clamp_temperatures, self.centre_teachers = clamp_temperatures, centre_teachers
        self.representation_temperature = representation_temperature if self.has_representation else None
        if self.has_temperature:
            self.temperature = temperature if temperature is not None else Temperature()
        if "iic" in self.weights:
            self.project_image_teacher = _projection(image_teacher_width, "image", embedding_width, "iic")
        if "ttc" in self.weights:
            self.project_text_teacher = _projection(text_teacher_width, "text", embedding_width, "ttc")
        if self.has_structure:
            widths = (
                (
                    _required(image_teacher_width, "image_teacher_width", "teacher_mlps"),
                    _required(text_teacher_width, "text_teacher_width", "teacher_mlps"),
                )
                if teacher_mlps
                else None
            )
            self.structure = StructureLoss(
                self.weights, relation, distance, relation_temperature, text_share, teacher_widths=widths
            )

    @property
    def has_representation(self) -> bool:
        """Whether any representation term is computed."""
        return "iic" in self.weights or "ttc" in self.weights

    @property
    def has_temperature(self) -> bool:
        """Whether any term uses tau."""
        return "itc" in self.weights or (self.has_representation and self.representation_temperature is None)

    @property
    def has_structure(self) -> bool:
        """Whether any structure term is computed."""
        return any(term in self.weights for term in STRUCTURE_TERMS)

    @property
    def needs(self) -> frozenset[Need]:
        """What the terms with a weight read."""
        needed: dict[Need, bool] = {
            "image_teacher": self.has_structure or "iic" in self.weights,
            "text_teacher": self.has_structure or "ttc" in self.weights,
            "matching": "itm" in self.weights,
            "fusion": "itm" in self.weights or ("kd" in self.weights and "fused" in self.relation),
        }
        return frozenset(name for name, is_needed in needed.items() if is_needed)

    def setup(self, training: TrainingPairs) -> None:
        """Register the means of the teachers' features, (D_I,) and (D_T,), if ``centre_teachers`` is set.

        Raises:
            ValueError: the features of a teacher that the method needs are absent.
        """
        if not self.centre_teachers:
            return
        for modality in get_args(Modality):
            if f"{modality}_teacher" in self.needs:
                features = teacher_features(training, modality)
                mean = features.mean(dim=0, dtype=torch.float64).to(features.dtype)
                device = next(chain(self.parameters(), self.buffers())).device
                self.register_buffer(f"{modality}_teacher_mean", mean.to(device))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute every term that has a weight, see the class.

        ``itm``, and structure by another distance than ``mae`` and ``mse``, do not decompose over rows: they are computed for
        all B pairs whatever ``local_rows`` is.

        Raises:
            ValueError: a teacher's features are absent or of another width than configured, their means are absent, or the
                outputs of the fusion encoder are absent.
        """
        terms: dict[str, Tensor] = {}
        tau = self.temperature() if self.has_temperature else pairs.image.new_ones(())
        representation_tau = tau if self.representation_temperature is None else self.representation_temperature()
        if "itc" in self.weights:
            terms["itc"] = image_text_contrast(pairs.image, pairs.text, pairs.image_index, tau, local_rows)
        if "itm" in self.weights:
            if pairs.match_logits is None or pairs.match_labels is None:
                raise ValueError("the term 'itm' needs a fusion encoder: give the encoder one")
            terms["itm"] = matching_loss(pairs.match_logits, pairs.match_labels)
        if "iic" in self.weights:
            projection = self.project_image_teacher
            teacher = self._teacher(pairs, "image", projection.in_features)
            terms["iic"] = _distil(pairs.image, teacher, projection, pairs.image_index, representation_tau, local_rows)
        if "ttc" in self.weights:
            projection = self.project_text_teacher
            teacher = self._teacher(pairs, "text", projection.in_features)
            terms["ttc"] = _distil(pairs.text, teacher, projection, pairs.image_index, representation_tau, local_rows)
        if self.has_structure:
            terms |= self.structure(pairs, self._teacher(pairs, "image"), self._teacher(pairs, "text"), local_rows)
        return terms

    def scalars(self) -> dict[str, Tensor]:
        """Return the temperatures and lambda."""
        values = {"temperature": self.temperature().detach()} if self.has_temperature else {}
        if self.representation_temperature is not None:
            values["representation_temperature"] = self.representation_temperature().detach()
        if self.has_structure:
            if self.structure.temperature is not None:
                values["relation_temperature"] = self.structure.temperature().detach()
            values["lambda"] = self.structure.text_share().detach()
        return values

    def hard_negative_temperature(self) -> Tensor | float:
        """Return tau, or 0.07 if no term uses it."""
        return self.temperature().detach() if self.has_temperature else super().hard_negative_temperature()

    def after_step(self) -> None:
        """Clamp the temperatures to their ranges, if ``clamp_temperatures`` is set."""
        if self.clamp_temperatures and self.has_temperature:
            self.temperature.clamp()
        if self.clamp_temperatures and self.representation_temperature is not None:
            self.representation_temperature.clamp()
        if self.clamp_temperatures and self.has_structure:
            self.structure.clamp()

    def _teacher(self, pairs: Pairs, modality: Modality, width: int | None = None) -> Tensor:
        """Features of a teacher, (B, D), centred if ``centre_teachers`` is set."""
        features = teacher_features(pairs, modality, width)
        if not self.centre_teachers:
            return features
        mean: Tensor | None = getattr(self, f"{modality}_teacher_mean", None)
        if mean is None:
            raise ValueError(
                f"centre_teachers needs the mean of the {modality} teacher's features: call setup with the training pairs first"
            )
        return features - mean


def _projection(teacher_width: int | None, modality: Modality, embedding_width: int | None, term: str) -> nn.Linear:
    reader = f"the term {term!r}"
    return nn.Linear(
        _required(teacher_width, f"{modality}_teacher_width", reader),
        _required(embedding_width, "embedding_width", reader),
    )


def _distil(
    student: Tensor, teacher: Tensor, projection: nn.Linear, index: Tensor, tau: Tensor, local_rows: slice
) -> Tensor:
    projected = F.normalize(projection(teacher.to(projection.weight.dtype)), dim=1).to(student.dtype)
    targets = positive_targets(index[local_rows], index, student.dtype)
    return contrast(student[local_rows], projected, targets, tau)


def _required(width: int | None, argument: str, reader: str) -> int:
    if width is None:
        raise ValueError(f"{reader} needs {argument}: name it in the method's configuration")
    return width
