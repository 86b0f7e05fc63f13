"""CRCL: cross-modal robust complementary learning."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.pair_softmax import pair_log_softmax
from sdr_lightning.methods.base import Measure
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Pairs, TrainingPairs


class CRCL(InfoNCE):
    """Learn from matched pairs as far as their label says, and from negatives always; correct the labels while training ([0]).

    With ``p_ij = softmax_j(s_ij / tau)``, the same of captions over images, and a label ``y_i`` in [0, 1] of each pair:

    - ``active``: the mean over i of ``-y_i log p_ii``, summed over both directions.
    - ``complementary``: the mean over i of ``sum_{j != i} tan p_ij / (sum_j tan p_ij)^(1 - y_i)``, summed over both directions.
      It is at most ``2 tan 1``, so the loss of a pair with label 0 is bounded.

    The labels are an exponential moving average (self-refining correspondence correction): ``y_i <- a y_i + (1 - a) p_i``, where
    ``p_i`` is the mean of ``p_ii`` over both directions, in the forward pass of the pair's step and without gradient. A label
    below the floor becomes 0. During the warm-up labels are 1; in its last epoch they are set to ``p_i``, for the next.

    Differences from the public code: it trains four times from newly initialised networks, each with the labels of the one
    before; a method does not initialise the encoder, so there is one training. Other captions of the same image take no part in
    the softmax.

    New labels are computed from those at the start of the epoch, in which each pair is seen once. So :meth:`terms` may be called
    again with the same pairs, and all processes, which see the pairs of all, have the same labels.

    Args:
        temperature: tau; fixed at 0.05 by default.
        warmup_epochs: epochs in which all labels are 1, at least 0.
        momentum: a, in [0, 1].
        floor: labels below it become 0; in [0, 1].
        complementary: weight of the term ``complementary``, at least 0.

    Raises:
        ValueError: an argument out of range.

    References:
        [0] Qin et al., "Cross-modal Active Complementary Learning with Self-refining Correspondence", NeurIPS 2023;
            QinYang79/CRCL: CRCL_NeurIPS23/model/CRCL.py, CRCL_NeurIPS23/opts.py.
    """

    epoch: Tensor
    previous_label: Tensor

    def __init__(
        self,
        temperature: Temperature | None = None,
        warmup_epochs: int = 2,
        momentum: float = 0.8,
        floor: float = 0.1,
        complementary: float = 5.0,
    ) -> None:
        super().__init__(temperature if temperature is not None else Temperature(0.05, learnable=False))
        if warmup_epochs < 0:
            raise ValueError(f"CRCL's warm-up must be at least 0 epochs, got {warmup_epochs}")
        if not 0 <= momentum <= 1:
            raise ValueError(f"CRCL's momentum must be in [0, 1], got {momentum}")
        if not 0 <= floor <= 1:
            raise ValueError(f"CRCL's floor of labels must be in [0, 1], got {floor}")
        if not 0 <= complementary < float("inf"):
            raise ValueError(f"CRCL's weight of the complementary term must be finite and >= 0, got {complementary}")
        self.weights = {"active": 1.0, "complementary": complementary}
        self.warmup_epochs, self.momentum, self.floor = warmup_epochs, momentum, floor
        self.register_buffer("epoch", torch.tensor(0))

    def setup(self, training: TrainingPairs) -> None:
        """Register the label of each pair, 1 at the start, as ``clean_probability``."""
        self.register_buffer("clean_probability", torch.ones(training.num_pairs, device=self.epoch.device))
        self.register_buffer("previous_label", torch.ones(training.num_pairs, device=self.epoch.device))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """Keep the labels that the epoch starts from."""
        self.epoch.fill_(epoch)
        assert self.clean_probability is not None  # since setup
        self.previous_label.copy_(self.clean_probability)

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute both terms and update the labels of all pairs; gradient flows to both embeddings and to tau, not to labels.

        Raises:
            ValueError: pairs without their index, or a method that was not set up.
        """
        both = pair_log_softmax(pairs.image @ pairs.text.T, pairs.image_index, self.temperature())
        matched = torch.stack([log_p.diag() for log_p in both])  # (2, B)
        labels = self._update_labels(pairs, matched.detach().exp().mean(dim=0))
        active = -labels * matched.sum(dim=0)
        complementary = torch.stack([complementary_loss(log_p.exp(), labels) for log_p in both]).sum(dim=0)
        return {"active": active[local_rows].mean(), "complementary": complementary[local_rows].mean()}

    def scalars(self) -> dict[str, Tensor]:
        """Return tau, the mean label and the share of labels that are 0."""
        label = self.clean_probability
        found = (
            {}
            if label is None
            else {"mean_label": label.float().mean(), "zero_label_share": (label == 0).float().mean()}
        )
        return super().scalars() | found

    @torch.no_grad()
    def _update_labels(self, pairs: Pairs, predicted: Tensor) -> Tensor:
        """(B,) labels of this step; stores those that the next epoch starts from."""
        stored = self.clean_probability_of(pairs)  # refuses pairs without their index
        labels = self.previous_label[pairs.pair_index].to(predicted.dtype)
        if self.epoch >= self.warmup_epochs:
            labels = torch.lerp(predicted, labels, self.momentum)
            labels = labels.masked_fill(labels < self.floor, 0)
        last_of_warm_up = self.epoch == self.warmup_epochs - 1
        assert self.clean_probability is not None
        self.clean_probability[pairs.pair_index] = torch.where(last_of_warm_up, predicted, labels).to(stored.dtype)
        return labels


def complementary_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Compute the complementary loss of each row: ``sum_{j != i} tan p_ij / (sum_j tan p_ij)^(1 - y_i)``.

    Args:
        probabilities: (B, B) p, rows sum to 1.
        labels: (B,) y in [0, 1].

    Returns:
        (B,) in [0, tan 1]; gradient flows to ``probabilities``.

    Example:
        >>> complementary_loss(torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.5463])
    """
    tangents = probabilities.tan()
    itself = torch.eye(len(tangents), dtype=torch.bool, device=tangents.device)
    return tangents.masked_fill(itself, 0).sum(dim=1) / tangents.sum(dim=1) ** (1 - labels)
