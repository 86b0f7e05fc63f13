"""Feature distillation: each modality's embedding predicts the features of its unimodal teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.methods.base import Need
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.methods.teachers import teacher_features
from sdr_lightning.types import Modality, Pairs


class FeatureDistillation(InfoNCE):
    """InfoNCE, and a squared error between each modality's embeddings and the features of its unimodal teacher ([0, 1]).

    ``info_nce``: see :class:`~sdr_lightning.methods.InfoNCE`. With v, t the image and text embeddings, x^I, x^T the features of
    the teachers and P_I, P_T learned linear maps with bias:

    - ``image_features``: the mean over i of ``|norm(P_I v_i) - norm(x^I_i)|^2``
    - ``text_features``: the mean over i of ``|norm(P_T t_i) - norm(x^T_i)|^2``

    The loss is ``info_nce + w (image_features + text_features)``. The squared error of unit vectors is two minus twice their
    cosine, in [0, 4].

    The terms ``iic`` and ``ttc`` of :class:`~sdr_lightning.methods.SDR` have the same sources of supervision. They map the
    teacher's features into the common space, and each embedding has to find its own among those of the batch, by a softmax with
    a temperature: they ask only that instances can be told apart. Here the map goes from the student to the teacher, there are
    no negatives, and the whole feature is to be predicted.

    Differences from the public code: [1] has one teacher with a common space and maps only where widths differ; here the teachers
    have two spaces, so the maps are always learned. [1] takes the mean over the dimensions of the features with a
    weight of 2,000; here it is the sum, which does not depend on the width, and 4 is about 2,000 over the 512 of [1]. [0] distils
    features before they are fused, without normalisation, with a weight of 10 of their mean squared error.

    Args:
        embedding_width: d, the width of the common space.
        image_teacher_width: D_I, the width of the image teacher's features.
        text_teacher_width: D_T, the width of the text teacher's features.
        weight: w > 0.
        temperature: tau of InfoNCE; learned from 0.07 by default.

    Raises:
        ValueError: a weight that is not positive.

    References:
        [0] Du et al., "On Uni-Modal Feature Learning in Supervised Multi-Modal Learning" (UMT), ICML 2023;
            GeWu-Lab/BalanceBenchmark: balancemm/trainer/UMT_trainer.py, configs/trainer_config.yaml.
        [1] Yang et al., "CLIP-KD: An Empirical Study of CLIP Model Distillation" (its FD), CVPR 2024; winycg/CLIP-KD:
            src/open_clip/loss.py, script/methods/FD.sh.
    """

    def __init__(
        self,
        embedding_width: int,
        image_teacher_width: int,
        text_teacher_width: int,
        weight: float = 4.0,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__(temperature)
        if not 0 < weight < float("inf"):
            raise ValueError(f"the weight of feature distillation must be positive, got {weight}: for 0, use InfoNCE")
        self.weights = {"info_nce": 1.0, "image_features": weight, "text_features": weight}
        self.predict_image_teacher = nn.Linear(embedding_width, image_teacher_width)
        self.predict_text_teacher = nn.Linear(embedding_width, text_teacher_width)

    @property
    def needs(self) -> frozenset[Need]:
        """Both teachers."""
        return frozenset({"image_teacher", "text_teacher"})

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the terms; gradient flows to both embeddings, to the maps and to tau, not to the teachers.

        Raises:
            ValueError: a teacher's features are absent or of another width than configured.
        """
        return super().terms(pairs, local_rows) | {
            "image_features": _squared_error(pairs, "image", self.predict_image_teacher, local_rows),
            "text_features": _squared_error(pairs, "text", self.predict_text_teacher, local_rows),
        }


def _squared_error(pairs: Pairs, modality: Modality, predict: nn.Linear, local_rows: slice) -> Tensor:
    embeddings: Tensor = getattr(pairs, modality)[local_rows]
    targets = teacher_features(pairs, modality, predict.out_features)[local_rows]
    predicted = predict(embeddings.to(predict.weight.dtype)).to(embeddings.dtype)
    difference = F.normalize(predicted, dim=1) - F.normalize(targets.to(embeddings.dtype), dim=1)
    return difference.square().sum(dim=1).mean()
