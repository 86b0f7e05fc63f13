"""InfoNCE: the contrastive loss of CLIP."""

from __future__ import annotations

from torch import Tensor

from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.methods.base import Method
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs


class InfoNCE(Method):
    """Match each image to its caption and each caption to its image, against all others of the batch ([0, 1]).

    ``info_nce``: the mean over both directions of ``-sum_j y_ij log softmax_j(s_ij / tau)``, where ``s_ij`` is a cosine and
    ``y_i`` is uniform over the positives of i. With one caption per image in a batch this is CLIP's loss.

    Args:
        temperature: tau; learned from 0.07 by default.

    References:
        [0] van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018.
        [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (CLIP), ICML 2021;
            mlfoundations/open_clip: src/open_clip/loss.py.
    """

    supports_local_loss = True

    def __init__(self, temperature: Temperature | None = None) -> None:
        super().__init__({"info_nce": 1.0})
        self.temperature = temperature if temperature is not None else Temperature()

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute InfoNCE; gradient flows to both embeddings and to tau."""
        tau = self.temperature()
        return {"info_nce": image_text_contrast(pairs.image, pairs.text, pairs.image_index, tau, local_rows)}

    def after_step(self) -> None:
        """Clamp tau to its range."""
        self.temperature.clamp()

    def scalars(self) -> dict[str, Tensor]:
        """Return tau."""
        return {"temperature": self.temperature().detach()}

    def hard_negative_temperature(self) -> Tensor:
        """Return tau."""
        tau: Tensor = self.temperature()
        return tau.detach()
