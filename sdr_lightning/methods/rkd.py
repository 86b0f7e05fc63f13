"""RKD: relational knowledge distillation from both unimodal teachers."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.rkd import angle_gap, distance_gap
from sdr_lightning.methods.base import Need, checked_weights
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.methods.teachers import teacher_features
from sdr_lightning.types import Pairs

_TERMS = {
    "info_nce": "image-text contrast",
    "distance": "distances within each modality match those of its teacher",
    "angle": "angles within each modality match those of its teacher",
}


class RKD(InfoNCE):
    """InfoNCE, and within each modality the distances and angles of its unimodal teacher ([0]).

    ``info_nce``: see :class:`~sdr_lightning.methods.InfoNCE`. With h the smooth L1 loss, x the embeddings of a modality and x'
    the features of its teacher, summed over both modalities:

    - ``distance``: the mean over pairs i != j of ``h(|x_i - x_j| / mean - |x'_i - x'_j| / mean')``, divided by the mean
      distance of the batch
    - ``angle``: the mean over triplets of different i, j, k of ``h(cos(x_i x_j x_k) - cos(x'_i x'_j x'_k))``, the angle at j

    :class:`~sdr_lightning.methods.SDR` with a distance of ``rkd_distance`` or ``rkd_angle`` compares the student with one
    relation that is fused of both teachers, and adds its other terms; here each modality follows its own teacher.

    Differences from the public code: the means leave out pairs and triplets with equal members, which the code averages as zeros
    (see :mod:`sdr_lightning.functional.rkd`). Pairs of the same image relate within a modality like any others.

    Args:
        distance_weight: weight of ``distance``, >= 0; with 0 it is not computed.
        angle_weight: weight of ``angle``, >= 0; with 0 it is not computed, which saves ``B^3`` operations.
        angle_vertices: compute angles at the first so many instances of a batch only; at all when None, as in [0]. Batches are in
            random order, so these are a random sample. It cannot be combined with ``local_loss``.
        temperature: tau of InfoNCE; learned from 0.07 by default.

    Raises:
        ValueError: a weight that is negative or not finite, or fewer than one vertex.

    References:
        [0] Park et al., "Relational Knowledge Distillation", CVPR 2019; HobbitLong/RepDistiller: distiller_zoo/RKD.py.
    """

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        angle_vertices: int | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__(temperature)
        if angle_vertices is not None and angle_vertices < 1:
            raise ValueError(
                f"angle_vertices must be at least 1, got {angle_vertices}: for no angles, set angle_weight to 0"
            )
        self.angle_vertices = angle_vertices
        self.supports_local_loss = angle_vertices is None
        weights = {"info_nce": 1.0, "distance": distance_weight, "angle": angle_weight}
        self.weights = checked_weights(weights, _TERMS)

    @property
    def needs(self) -> frozenset[Need]:
        """Both teachers."""
        return frozenset({"image_teacher", "text_teacher"})

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the terms that have a weight; gradient flows to both embeddings and to tau, not to the teachers.

        Raises:
            ValueError: a teacher's features are absent.
        """
        modalities = (
            (pairs.image, teacher_features(pairs, "image")),
            (pairs.text, teacher_features(pairs, "text")),
        )
        vertices = local_rows if self.angle_vertices is None else slice(self.angle_vertices)
        terms = super().terms(pairs, local_rows)
        for name, gap, rows in (("distance", distance_gap, local_rows), ("angle", angle_gap, vertices)):
            if name in self.weights:
                terms[name] = torch.stack([gap(student, teacher, rows) for student, teacher in modalities]).sum()
        return terms
