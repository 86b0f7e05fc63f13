"""RINCE: robust InfoNCE."""

from __future__ import annotations

import warnings

from torch import Tensor

from sdr_lightning.functional.robust_contrastive import robust_info_nce
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs

_GREATEST_EXPONENT = 80.0  # exp of it fits float32


class RINCE(InfoNCE):
    """Contrast images and captions by a loss that lies between InfoNCE and a symmetric, noise-tolerant one ([0]).

    ``rince``: the mean over both directions and over queries i of ``(lambda sum_j e_ij)^q / q - sum_j y_ij e_ij^q / q``, where
    ``e_ij = exp(s_ij / tau)``, ``s_ij`` is a cosine and ``y_i`` is uniform over the positives of i. For q to 0 it is InfoNCE plus
    the constant ``log lambda``; with q = 1 it is ``lambda sum_j e_ij - e_ii``. The gradient of a positive grows with ``e_ij^q``,
    so pairs of low similarity, which may be mismatched, count less.

    Differences from the public code: contrast is between modalities only, as between the two encoders of its MoCo v3, not within
    one, as in its SimCLR; captions of the same image are positives; directions are averaged and not multiplied by ``2 tau``.

    Args:
        q: in (0, 1]; greater values are more robust. The scripts of [0] have 0.1 and 0.6, its class 0.5, with
            which small students hardly learn.
        density: lambda > 0, the weight of all pairs against positives. It should exceed 1 / B for batches of B pairs: where all
            similarities are equal, lambda B < 1 pulls all embeddings together. A warning says so.
        temperature: tau; 0.1 and fixed by default. The loss has no lower bound in tau, so it cannot be learned.

    Raises:
        ValueError: q outside (0, 1], lambda that is not positive, tau that is learned, or q / tau above 80, which float32 does
            not hold.

    References:
        [0] Chuang et al., "Robust Contrastive Learning against Noisy Views", CVPR 2022; chingyaoc/RINCE: README.md,
            ImageNet/moco-v3/moco/builder.py, ImageNet/simclr/simclr_module.py.
    """

    def __init__(self, q: float = 0.1, density: float = 0.01, temperature: Temperature | None = None) -> None:
        super().__init__(temperature if temperature is not None else Temperature(0.1, learnable=False))
        if not 0 < q <= 1:
            raise ValueError(f"RINCE's q must be in (0, 1], got {q}: for its limit 0, use InfoNCE")
        if not 0 < density < float("inf"):
            raise ValueError(f"RINCE's density must be positive, got {density}")
        tau = self.temperature()
        if tau.requires_grad:
            raise ValueError(
                "RINCE's temperature cannot be learned, because its loss has no lower bound: set learnable to false"
            )
        if q / tau.item() > _GREATEST_EXPONENT:
            raise ValueError(
                f"RINCE's q / temperature must be at most {_GREATEST_EXPONENT:g}, got {q:g} / {tau.item():g}: float32 overflows"
            )
        self.weights = {"rince": 1.0}
        self.q, self.density = q, density

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute RINCE; gradient flows to both embeddings."""
        if self.density * len(pairs.image) < 1:
            warnings.warn(
                f"RINCE's density {self.density:g} is below 1 / {len(pairs.image)}, one over the batch: "
                "embeddings may collapse. Raise it, or the batch size",
                stacklevel=2,
            )
        tau = self.temperature()
        loss = robust_info_nce(pairs.image, pairs.text, pairs.image_index, tau, self.q, self.density, local_rows)
        return {"rince": loss}
