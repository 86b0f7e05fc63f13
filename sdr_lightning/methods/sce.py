"""SCE: symmetric cross-entropy, InfoNCE plus its reverse."""

from __future__ import annotations

import math

from torch import Tensor

from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.functional.robust_contrastive import complementary_contrast
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs

_LOG_ZERO = math.log(1e-7)  # stands for log 0, as in [1]


class SCE(InfoNCE):
    """Add to InfoNCE the cross-entropy with prediction and target exchanged, which tolerates wrong pairs ([0, 1]).

    ``info_nce``: see :class:`~sdr_lightning.methods.InfoNCE`. ``reverse``: the mean over both directions and over queries i of
    ``-sum_j p_ij log z_ij``, where ``p_i = softmax_j(s_ij / tau)``, ``s_ij`` is a cosine, ``z_ij`` is 1 for positives, and log
    0 is replaced by ``A = log 1e-7 = -16.1``. So it is ``-A`` times the probability of all negatives, which is bounded. The
    loss is ``alpha info_nce + beta reverse``.

    [0] chooses A = log 1e-4, alpha and beta by data set. Another A is another beta: theirs is here ``beta / 1.75``.

    Differences from [1], which uses the loss in its warm-up: captions of the same image are positives. [1] adds 1e-7 to labels
    of 1 as well.

    Args:
        alpha: weight of ``info_nce``, > 0.
        beta: weight of ``reverse``, > 0.
        temperature: tau; fixed at 0.05 by default, as in [1].

    Raises:
        ValueError: a weight that is not positive.

    References:
        [0] Wang et al., "Symmetric Cross Entropy for Robust Learning with Noisy Labels", ICCV 2019;
            YisenWang/symmetric_cross_entropy_for_noisy_labels: loss.py.
        [1] Han et al., "Learning to Rematch Mismatched Pairs for Robust Cross-Modal Retrieval" (L2RM), CVPR 2024; hhc1997/L2RM:
            models.py, class RCE.
    """

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, temperature: Temperature | None = None) -> None:
        super().__init__(temperature if temperature is not None else Temperature(0.05, learnable=False))
        for name, weight in (("alpha", alpha), ("beta", beta)):
            if not 0 < weight < float("inf"):
                raise ValueError(f"SCE's {name} must be positive, got {weight}: without 'reverse' it is InfoNCE")
        self.weights = {"info_nce": alpha, "reverse": beta}

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute both terms; gradient flows to both embeddings and to a learned tau."""
        inputs = pairs.image, pairs.text, pairs.image_index, self.temperature()
        negatives = complementary_contrast(*inputs, "abs", local_rows=local_rows)
        return {"info_nce": image_text_contrast(*inputs, local_rows), "reverse": -_LOG_ZERO * negatives}
