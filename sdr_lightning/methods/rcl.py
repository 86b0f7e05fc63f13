"""RCL: robust cross-modal learning by a complementary contrastive loss."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from sdr_lightning.functional.robust_contrastive import Complementary, complementary_contrast
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs

_DEFAULT_Q = 0.5


class RCL(InfoNCE):
    """Learn from what does not belong together: push negatives apart, and never pull a pair together directly ([0]).

    ``complementary``: the mean over both directions and over queries i of ``sum_j f(p_ij)`` over the negatives j of i, where
    ``p_i = softmax_j(s_ij / tau)`` and ``s_ij`` is a cosine. f is ``-log(1 - p)`` (``log``), ``tan p``, ``p`` (``abs``),
    ``exp(p - 1)`` (``exp``) or ``(1 - (1 - p)^q) / q`` (``gce``). Where a pair is wrong, most of its negatives are still right.

    With one positive, ``abs`` is ``1 - p_ii``, which is :class:`~sdr_lightning.methods.GCE` with q = 1; the method GCE applies
    the formula of ``gce`` to ``1 - p_ij`` of positives instead.

    Differences from the public code: captions of the same image are not negatives of each other; directions are averaged, not
    summed; ``1 - p`` has no constant added, and has a gradient where p rounds to 1; all negatives count, as in the scripts of
    [0], whose code can also draw a random share of them.

    Args:
        kind: f: ``log``, ``tan``, ``abs``, ``exp`` or ``gce``.
        q: in (0, 1], only for ``gce``; 0.5 when None.
        temperature: tau; fixed at 0.05 by default, as in [0].

    Raises:
        ValueError: an unknown kind, q outside (0, 1], or q for a kind that has none.

    References:
        [0] Hu et al., "Cross-Modal Retrieval with Partially Mismatched Pairs", TPAMI 2023; penghu-cs/RCL: RCL-SGRAF/model.py.
    """

    def __init__(
        self, kind: Complementary = "log", q: float | None = None, temperature: Temperature | None = None
    ) -> None:
        super().__init__(temperature if temperature is not None else Temperature(0.05, learnable=False))
        if kind not in get_args(Complementary):
            raise ValueError(f"RCL's kind must be one of {', '.join(get_args(Complementary))}, got {kind!r}")
        if q is not None and kind != "gce":
            raise ValueError(f"RCL's kind {kind!r} has no q, got {q}: leave it out, or set kind to 'gce'")
        if q is not None and not 0 < q <= 1:
            raise ValueError(f"RCL's q must be in (0, 1], got {q}")
        self.weights = {"complementary": 1.0}
        self.kind, self.q = kind, _DEFAULT_Q if q is None else q

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the complementary loss; gradient flows to both embeddings and to a learned tau."""
        tau = self.temperature()
        loss = complementary_contrast(pairs.image, pairs.text, pairs.image_index, tau, self.kind, self.q, local_rows)
        return {"complementary": loss}
