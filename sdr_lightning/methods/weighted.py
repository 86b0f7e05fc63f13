"""InfoNCE with a weight of each training pair, the common part of AGREE and the oracle."""

from __future__ import annotations

from torch import Tensor

from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.types import Pairs


class WeightedInfoNCE(InfoNCE):
    """InfoNCE in which each pair counts by its probability to be clean.

    ``info_nce``: in each direction ``sum_i p_i l_i / sum_i p_i`` over the batch, where ``l_i`` is the loss of the query i of
    :class:`~sdr_lightning.methods.InfoNCE`, whose targets are its positives in proportion to their p. A wrong pair remains a
    negative of queries of other images. A subclass registers p in ``setup``.
    """

    def register_probability(self, probability: Tensor) -> None:
        """Register p as the buffer ``clean_probability``.

        Args:
            probability: (C,) float32 in [0, 1], by pair index.
        """
        self.register_buffer("clean_probability", probability.to(self.temperature.value.device))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the weighted InfoNCE; gradient flows to both embeddings and to tau.

        Raises:
            ValueError: pairs without their index, or a method that was not set up.
        """
        tau, weights = self.temperature(), self.pair_weights(pairs)
        return {"info_nce": image_text_contrast(pairs.image, pairs.text, pairs.image_index, tau, local_rows, weights)}

    def pair_weights(self, pairs: Pairs) -> Tensor | None:
        """Return (B,) weights of some pairs; None for equal weights."""
        return self.clean_probability_of(pairs)
