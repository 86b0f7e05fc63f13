"""NCR: noisy correspondence rectifier, with one network."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.mixture import low_component_posterior
from sdr_lightning.functional.soft_margin import mean_costs, predicted_labels, soft_margin_costs
from sdr_lightning.methods.base import Measure, Method
from sdr_lightning.types import Pairs, TrainingPairs


class NCR(Method):
    """Estimate each epoch which pairs are mismatched, and give them a smaller margin ([0]).

    1. Warm-up: the mean hinge over all negatives, ``sum_ij [m + s_ij - s_ii]_+ / B``, in both directions, averaged over i.
    2. Before each later epoch, the warm-up loss of every pair is measured, scaled to [0, 1] over the data set, and modelled by
       two Gaussians. ``p_i``, the posterior of the one with the lower mean, is the probability that pair i is clean.
    3. Soft labels: ``y_i = p_i + (1 - p_i) y'_i`` if ``p_i`` exceeds the threshold (the pair counts as clean), else
       ``y'_i``, the prediction of the model. With the costs of step 1, ``y'_i = clamp(m - cost_i / 2, 0, m)``, divided by the
       mean of the greatest tenth of the batch and clamped to 1.
    4. Training: the hinge on the hardest negative, with the margin ``m (10^y_i - 1) / 9`` of the anchor i. Pairs that count as
       noisy contribute from ``noisy_from`` on.

    Differences from the public code: one network instead of two that label each other's pairs; clean and noisy pairs share
    batches, so they are negatives of each other; captions of the same image are not negatives; predictions are those of the
    training forward pass; no pair is made noisy where the mixture finds none; losses are means instead of sums, which AdamW does
    not see.

    Args:
        margin: m.
        warmup_epochs: epochs of step 1.
        threshold: p above which a pair counts as clean.
        noisy_from: epoch from which pairs that count as noisy contribute; the public code takes half of all epochs.

    Raises:
        ValueError: a margin that is not positive, fewer than one warm-up epoch, or a threshold outside [0, 1).

    References:
        [0] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021;
            XLearning-SCU/2021-NeurIPS-NCR: NCR/co_train.py, NCR/model.py.
    """

    supports_local_loss = True
    warming_up: Tensor
    with_noisy: Tensor

    def __init__(
        self, margin: float = 0.2, warmup_epochs: int = 1, threshold: float = 0.5, noisy_from: int = 1
    ) -> None:
        super().__init__({"triplet": 1.0})
        if not margin > 0:
            raise ValueError(f"NCR's margin must be positive, got {margin}")
        if warmup_epochs < 1:
            raise ValueError(f"NCR needs at least 1 warm-up epoch to tell pairs apart, got {warmup_epochs}")
        if not 0 <= threshold < 1:
            raise ValueError(f"NCR's threshold must be in [0, 1), got {threshold}")
        self.margin, self.warmup_epochs = margin, warmup_epochs
        self.threshold, self.noisy_from = threshold, noisy_from
        self.register_buffer("warming_up", torch.tensor(True))
        self.register_buffer("with_noisy", torch.tensor(False))

    def setup(self, training: TrainingPairs) -> None:
        """Register the probability of each pair to be clean, 1 at the start."""
        self.register_buffer("clean_probability", torch.ones(training.num_pairs, device=self.warming_up.device))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """After the warm-up, estimate which pairs are clean."""
        self.warming_up.fill_(epoch < self.warmup_epochs)
        self.with_noisy.fill_(epoch >= self.noisy_from)
        if epoch >= self.warmup_epochs:
            probability = low_component_posterior(measure(self._mean_cost))
            assert self.clean_probability is not None  # since setup
            self.clean_probability.copy_(probability)

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the triplet loss; gradient flows to both embeddings, not to soft labels.

        Raises:
            ValueError: after the warm-up, pairs without their index, or a method that was not set up.
        """
        if self.warming_up:
            return {"triplet": self._mean_cost(pairs)[local_rows].mean()}
        labels, counts = self._soft_labels(pairs)
        cost = soft_margin_costs(pairs.image, pairs.text, pairs.image_index, self.margin, labels)
        return {"triplet": (cost * counts)[local_rows].mean()}

    def scalars(self) -> dict[str, Tensor]:
        """Return the share of pairs that count as clean."""
        probability = self.clean_probability
        return {} if probability is None else {"clean_share": (probability > self.threshold).float().mean()}

    def _mean_cost(self, pairs: Pairs) -> Tensor:
        """(B,) mean hinge over the negatives, summed over both directions."""
        return mean_costs(pairs.image, pairs.text, pairs.image_index, self.margin)

    @torch.no_grad()
    def _soft_labels(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """(B,) labels in [0, 1], and (B,) whether a pair contributes to the loss."""
        predicted = predicted_labels(self._mean_cost(pairs), self.margin)
        probability = self.clean_probability_of(pairs).to(predicted.dtype)
        is_clean = probability > self.threshold
        labels = torch.where(is_clean, probability + (1 - probability) * predicted, predicted)
        return labels, (is_clean | self.with_noisy).to(predicted.dtype)
