"""AGREE: contrastive learning on the pairs whose image and text teachers agree."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from sdr_lightning.functional.agreement import Level, pair_agreement
from sdr_lightning.methods.base import Need
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.methods.weighted import WeightedInfoNCE
from sdr_lightning.types import Pairs, TrainingPairs


class AGREE(WeightedInfoNCE):
    """Weight each pair by the probability that it is right, estimated once from two unimodal teachers.

    Before training, :func:`~sdr_lightning.functional.agreement.pair_agreement` predicts the features of each teacher from those
    of the other on held-out pairs, and compares the agreement of each pair with that of shuffled pairs. The resulting
    probabilities are constants. There is no warm-up and no second network, and the student's loss is not used, so a student
    that memorises wrong pairs does not change them. The method is this project's own.

    Where the teachers do not agree more on the given pairs than on shuffled ones, as with random features, nothing can be
    detected: a warning says so, and all pairs count equally.

    Limit: agreement finds captions of clearly different images. Where a wrong caption is similar to the right one (hard
    mismatch), detection is much worse, and the estimated share of wrong pairs is far too low; numbers: docs/methods.md.

    Related work: NCR [0] and BiCro [1] divide pairs by the losses of two networks in training; GSC [2] and ReCon [3] by the
    consistency of similarities within and between the modalities; IN2R [4] rectifies pairs by neighbours within a modality. LEMoN
    [5] detects wrong pairs before training in the joint space of a contrastively pretrained model; two unimodal encoders are
    enough here.

    Args:
        temperature: tau; learned from 0.07 by default.
        level: what is right or wrong: each pair on its own (``caption``), or an image with all its captions (``image``).
        folds: folds of the cross-fitting.
        rounds: how often the regressions are fitted; from the second on, with the probabilities of the previous as weights.

    Raises:
        ValueError: from :meth:`setup`, options out of range or fewer images than the folds need.

    References:
        [0] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021.
        [1] Yang et al., "BiCro: Noisy Correspondence Rectification for Multi-modality Data via Bi-directional Cross-modal
            Similarity Consistency", CVPR 2023.
        [2] Zhao et al., "Mitigating Noisy Correspondence by Geometrical Structure Consistency Learning", CVPR 2024.
        [3] Zha et al., "ReCon: Enhancing True Correspondence Discrimination through Relation Consistency for Robust Noisy
            Correspondence Learning", arXiv 2502.19962, 2025.
        [4] Liu et al., "Intra-Modal Neighbors Never Lie: Rectifying Inter-Modal Noisy Correspondence via Graph-Based Intra-Modal
            Reasoning", ICML 2026.
        [5] Zhang et al., "LEMoN: Label Error Detection using Multimodal Neighbors", ICML 2025.
    """

    agrees: Tensor
    wrong_share: Tensor

    def __init__(
        self, temperature: Temperature | None = None, level: Level = "caption", folds: int = 5, rounds: int = 2
    ) -> None:
        super().__init__(temperature)
        self.level, self.folds, self.rounds = level, folds, rounds
        self.register_buffer("agrees", torch.tensor(True))
        self.register_buffer("wrong_share", torch.tensor(0.0))

    @property
    def needs(self) -> frozenset[Need]:
        """Both teachers."""
        return frozenset({"image_teacher", "text_teacher"})

    def setup(self, training: TrainingPairs) -> None:
        """Estimate and register the probability of each pair to be right.

        Raises:
            ValueError: features of a teacher are absent, or fewer images than the folds need.
        """
        if training.image_teacher is None or training.text_teacher is None:
            raise ValueError("AGREE compares the features of an image and a text teacher, and one of them is absent")
        found = pair_agreement(
            training.image_teacher,
            training.text_teacher,
            training.image_index,
            level=self.level,
            folds=self.folds,
            rounds=self.rounds,
        )
        self.agrees.fill_(bool(found.probability.any()))
        if not self.agrees:
            warnings.warn(
                "the teachers agree no more on the training pairs than on shuffled ones: AGREE weights all pairs equally",
                stacklevel=2,
            )
        self.wrong_share.fill_(found.share)
        self.register_probability(found.probability)

    def pair_weights(self, pairs: Pairs) -> Tensor | None:
        """Return (B,) probabilities of some pairs; None where the teachers do not agree."""
        probability = self.clean_probability_of(pairs)
        return probability if self.agrees else None

    def scalars(self) -> dict[str, Tensor]:
        """Return tau and the estimated share of wrong pairs."""
        return super().scalars() | {"wrong_share": self.wrong_share}
