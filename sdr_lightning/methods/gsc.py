"""GSC: geometrical structure consistency."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.mixture import low_component_posterior
from sdr_lightning.functional.pair_softmax import pair_log_softmax
from sdr_lightning.methods.base import Measure
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs, TrainingPairs


class GSC(InfoNCE):
    """Align the structures of both modalities within a batch, and weight pairs by how well they fit both structures ([0]).

    Of the known methods it is the nearest to :class:`~sdr_lightning.methods.SDR`: both match rows of intra-modal similarities.
    SDR takes them from the teachers; here, those of the student's own modalities are matched with each other.

    ``t_i`` in [0, 1] is the target of pair i, constant within an epoch.

    - ``info_nce``, cross-modal: the mean over i of ``-t_i (log p_ii + log p'_ii) / 2``, where ``p_ij = softmax_j(s_ij / tau)``,
      and p' is the same of captions over images.
    - ``structure``, intra-modal: ``v_i = (t_k s^I_ik)_k`` and ``w_i = (t_k s^T_ik)_k`` are the cosines of the image, or of the
      caption, of pair i with those of all pairs k of the batch. The mean over i of ``-t_i log softmax_j(v_i . w_j)_i``.

    Before each epoch but the first, the targets are updated from what the forward passes of the last epoch measured: the mean
    of ``p_ii`` and ``p'_ii``, and the cosine of ``v_i`` and ``w_i``. The cosines of all pairs are modelled by two Gaussians;
    ``g_i`` is the posterior of the one with the higher mean. Both are averaged exponentially, and the lower counts:

        a_i <- (1 - b) a_i + b (p_ii + p'_ii) / 2      c_i <- (1 - b) c_i + b g_i      t_i = min(a_i, c_i)

    Targets are 1 at first. Those of pairs that have not been in a batch yet stay 1.

    Differences from the public code: cosines take the place of a learned similarity in (0, 1), between and within the modalities;
    other captions of the same image take no part in the softmax. The option ``structure`` is 0.01 in the public scripts and 1 in
    the public defaults.

    :meth:`terms` stores what it measures and changes no target. So it may be called again with the same pairs, and all processes,
    which see the pairs of all, have the same targets.

    Args:
        temperature: tau; fixed at 0.07 by default.
        structure: weight of the term ``structure``, at least 0.
        update: b, in (0, 1].

    Raises:
        ValueError: an argument out of range.

    References:
        [0] Zhao et al., "Mitigating Noisy Correspondence by Geometrical Structure Consistency Learning", CVPR 2024;
            MediaBrain-SJTU/GSC: GSC/model/RINCE.py, GSC/opts.py, GSC/train_f30k.sh.
    """

    seen: Tensor
    measured: Tensor
    averages: Tensor

    def __init__(self, temperature: Temperature | None = None, structure: float = 0.01, update: float = 0.7) -> None:
        super().__init__(temperature if temperature is not None else Temperature(0.07, learnable=False))
        if not 0 <= structure < float("inf"):
            raise ValueError(f"GSC's weight of the term structure must be finite and >= 0, got {structure}")
        if not 0 < update <= 1:
            raise ValueError(f"GSC's update must be in (0, 1], got {update}")
        self.weights = {"info_nce": 1.0, "structure": structure}
        self.update = update

    def setup(self, training: TrainingPairs) -> None:
        """Register the target of each pair, 1 at the start, as ``clean_probability``, and what it is computed from."""
        number, device = training.num_pairs, self.temperature.value.device
        self.register_buffer("clean_probability", torch.ones(number, device=device))
        self.register_buffer("seen", torch.zeros(number, dtype=torch.bool, device=device))
        # Rows: of the probability of the pair, and of its structures.
        self.register_buffer("measured", torch.ones(2, number, device=device))
        self.register_buffer("averages", torch.ones(2, number, device=device))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """Update the targets from what the last epoch measured."""
        if not bool(self.seen.any()):
            return
        assert self.clean_probability is not None  # since setup
        probability, cosine = self.measured[:, self.seen]
        posterior = low_component_posterior(-cosine).to(cosine)
        self.averages[:, self.seen] = torch.lerp(
            self.averages[:, self.seen], torch.stack([probability, posterior]), self.update
        )
        self.clean_probability.copy_(self.averages.amin(dim=0))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute both terms and store what they measure of each pair; gradient flows to both embeddings and to tau.

        Raises:
            ValueError: pairs without their index, or a method that was not set up.
        """
        targets = self.clean_probability_of(pairs).to(pairs.image.dtype)
        both = pair_log_softmax(pairs.image @ pairs.text.T, pairs.image_index, self.temperature())
        matched = torch.stack([log_p.diag() for log_p in both])  # (2, B)
        image, text = (embeddings @ embeddings.T * targets for embeddings in (pairs.image, pairs.text))
        aligned, _ = pair_log_softmax(image @ text.T, pairs.image_index)
        self._store(pairs, matched.detach().exp().mean(dim=0), F.cosine_similarity(image.detach(), text.detach()))
        return {
            "info_nce": -(targets * matched.mean(dim=0))[local_rows].mean(),
            "structure": -(targets * aligned.diag())[local_rows].mean(),
        }

    def scalars(self) -> dict[str, Tensor]:
        """Return tau, and the means over all pairs of the target and of both averages."""
        if self.clean_probability is None:
            return super().scalars()
        means = dict(zip(("mean_probability", "mean_structure"), self.averages.float().mean(dim=1), strict=True))
        return super().scalars() | {"mean_target": self.clean_probability.float().mean()} | means

    def _store(self, pairs: Pairs, probability: Tensor, cosine: Tensor) -> None:
        self.measured[:, pairs.pair_index] = torch.stack([probability, cosine]).to(self.measured.dtype)
        self.seen[pairs.pair_index] = True
