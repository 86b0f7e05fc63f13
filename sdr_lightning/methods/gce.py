"""GCE: generalised cross-entropy, a contrastive loss that is robust to mismatched pairs."""

from __future__ import annotations

from torch import Tensor

from sdr_lightning.functional.contrastive import generalised_image_text_contrast
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs


class GCE(InfoNCE):
    """Match images and captions like InfoNCE, with a bounded loss for pairs that the model finds improbable ([0]).

    ``gce``: the mean over both directions of ``sum_j y_ij (1 - p_ij^q) / q``, where ``p_i = softmax_j(s_ij / tau)``,
    ``s_ij`` is a cosine and ``y_i`` is uniform over the positives of i, as in InfoNCE. Its gradient is that of InfoNCE with
    each positive weighted by ``p_ij^q``. With q near 0 it is InfoNCE; with q = 1 and one positive it is ``1 - p_ii``, half the
    mean absolute error.

    [1] also has a loss named GCE: it applies the formula to ``1 - p_ij`` of the negatives.

    Args:
        q: in (0, 1]; greater values are more robust and learn more slowly.
        temperature: tau; learned from 0.07 by default.

    Raises:
        ValueError: q outside (0, 1].

    References:
        [0] Zhang and Sabuncu, "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels", NeurIPS 2018,
            without its truncation.
        [1] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs" (RCL), TPAMI 2023; penghu-cs/RCL:
            RCL-SGRAF/model.py.
    """

    def __init__(self, q: float = 0.7, temperature: Temperature | None = None) -> None:
        super().__init__(temperature)
        if not 0 < q <= 1:
            raise ValueError(f"GCE's q must be in (0, 1], got {q}: for its limit 0, use InfoNCE")
        self.weights = {"gce": 1.0}
        self.q = q

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute GCE; gradient flows to both embeddings and to tau."""
        tau = self.temperature()
        return {
            "gce": generalised_image_text_contrast(pairs.image, pairs.text, pairs.image_index, tau, self.q, local_rows)
        }
