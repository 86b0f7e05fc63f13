"""InfoNCE with a weight of each training pair, the common part of AGREE and the oracle."""

from __future__ import annotations

from torch import Tensor

from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.types import Pairs


class WeightedInfoNCE(InfoNCE):
    """InfoNCE in which each pair counts by its probability of being right.

    ``info_nce``: in each direction ``sum_i p_i l_i / sum_i p_i`` over the batch, where ``l_i`` is the loss of the query i of
    :class:`~sdr_lightning.methods.InfoNCE`. A wrong pair is still a negative of other queries, which is right. A subclass
    registers p in ``setup``.
    """

    clean_probability: Tensor

    def register_probability(self, probability: Tensor) -> None:
        """Register p as a buffer.

        Args:
            probability: (C,) float32 in [0, 1], by pair index.
        """
        self.register_buffer("clean_probability", probability.to(self.temperature.value.device))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the weighted InfoNCE; gradient flows to both embeddings and to tau.

        Raises:
            ValueError: pairs without their index.
        """
        if pairs.pair_index is None:
            name = type(self).__name__
            raise ValueError(f"{name} keeps a probability of each training pair: the batch must hold pair_index")
        tau, weights = self.temperature(), self.clean_probability[pairs.pair_index]
        return {"info_nce": image_text_contrast(pairs.image, pairs.text, pairs.image_index, tau, local_rows, weights)}

    def scalars(self) -> dict[str, Tensor]:
        """Return tau and the mean probability of the training pairs to be right."""
        probability = getattr(self, "clean_probability", None)
        return super().scalars() | ({} if probability is None else {"clean_share": probability.float().mean()})
