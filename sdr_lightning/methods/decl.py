"""DECL: deep evidential cross-modal learning."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import positives
from sdr_lightning.functional.evidential import evidential_losses
from sdr_lightning.functional.pair_softmax import same_image_others
from sdr_lightning.functional.triplet import hinge_costs
from sdr_lightning.methods.base import Measure, Method
from sdr_lightning.types import Pairs, TrainingPairs

_LEAST_TEMPERATURE = 0.05


class DECL(Method):
    """Learn evidence for matches instead of their probability, and a hinge on fewer and fewer, harder negatives ([0]).

    ``e_ij = exp(s_ij / tau)`` is the evidence for caption j to match image i, out of the captions of the batch, and the other
    way around. ``y_i`` is 1 if pair i counts as right, else 0: then none of the batch matches.

    - ``evidential``: the mean over i of the expected squared error of a Dirichlet distribution with the parameters ``e_ij + 1``,
      summed over both directions.
    - ``divergence``: the mean over i of its divergence from the uniform one, by the evidence for wrong matches alone, summed over
      both directions. Both are defined in :func:`~sdr_lightning.functional.evidential.evidential_losses`.
    - ``hinge``: the sum over i of ``y_i`` times the mean of the K greatest ``[m + s_ij - s_ii]_+``, summed over both directions.
      ``K = max(B - decay step, hardest)``, below B; steps are those of the optimiser, from 1.

    All pairs count as right in the warm-up. Before each later epoch, every pair is measured in a batch of consecutive pairs; it
    counts as right if it has the most evidence of the batch, ``2 e_ii >= e_ij + e_ji`` for all j. No mixture is fitted.
    ``clean_probability`` is ``2 e_ii / (2 e_ii + max_{j != i} (e_ij + e_ji))``, which is at least 0.5 for these pairs.

    Differences from the public code: the cosine takes the place of the hyperbolic tangent of a learned score; other captions of
    the same image are no classes and no negatives; the public code measures pairs in random batches.

    Args:
        tau: scale of the evidence, at least 0.05.
        margin: m, positive.
        hinge: weight of the term ``hinge``, at least 0. The term is a sum, so its share grows with the batch.
        divergence: weight of the term ``divergence``, at least 0.
        decay: negatives fewer per step, at least 0.
        hardest: least K, at least 1.
        warmup_epochs: epochs in which all pairs count as right, at least 0. The public code takes 5 with 20 and 40 % mismatched
            pairs and 2 with 60 and 80 %, before 40 further epochs.

    Raises:
        ValueError: an argument out of range.

    References:
        [0] Qin et al., "Deep Evidential Learning with Noisy Correspondence for Cross-modal Retrieval", ACM MM 2022;
            QinYang79/DECL: 2022-ACMMM-DECL/model/DECL.py, 2022-ACMMM-DECL/train.py, 2022-ACMMM-DECL/opts.py.
    """

    supports_local_loss = True
    step: Tensor

    def __init__(
        self,
        tau: float = 0.1,
        margin: float = 0.2,
        hinge: float = 0.8,
        divergence: float = 0.1,
        decay: float = 0.025,
        hardest: int = 5,
        warmup_epochs: int = 2,
    ) -> None:
        super().__init__({"evidential": 1.0, "divergence": divergence, "hinge": hinge})
        if not tau >= _LEAST_TEMPERATURE:  # exp(1 / tau) is summed over the batch and compared with 1
            raise ValueError(f"DECL's tau must be at least {_LEAST_TEMPERATURE}, got {tau}: evidence is exp(1 / tau)")
        if not margin > 0:
            raise ValueError(f"DECL's margin must be positive, got {margin}")
        if not (0 <= hinge < float("inf") and 0 <= divergence < float("inf")):
            raise ValueError(f"DECL's weights must be finite and >= 0, got hinge {hinge}, divergence {divergence}")
        if not decay >= 0 or hardest < 1:
            raise ValueError(f"DECL's decay must be >= 0 and hardest at least 1, got {decay} and {hardest}")
        if warmup_epochs < 0:
            raise ValueError(f"DECL's warm-up must be at least 0 epochs, got {warmup_epochs}")
        self.tau, self.margin, self.decay, self.hardest = tau, margin, decay, hardest
        self.warmup_epochs = warmup_epochs
        self.register_buffer("step", torch.tensor(0))

    def setup(self, training: TrainingPairs) -> None:
        """Register the probability of each pair to be right, 1 at the start."""
        self.register_buffer("clean_probability", torch.ones(training.num_pairs, device=self.step.device))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """After the warm-up, measure which pairs count as right."""
        if epoch >= self.warmup_epochs:
            assert self.clean_probability is not None  # since setup
            self.clean_probability.copy_(measure(self._probability))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the three terms; gradient flows to both embeddings.

        Raises:
            ValueError: pairs without their index, or a method that was not set up.
        """
        labels = (self.clean_probability_of(pairs) >= 0.5).to(pairs.image.dtype)
        scores = pairs.image @ pairs.text.T
        evidence, classes = (scores / self.tau).exp(), ~same_image_others(pairs.image_index)
        error, divergence = (
            torch.stack(both).sum(dim=0)
            for both in zip(*(evidential_losses(e, labels, classes) for e in (evidence, evidence.T)), strict=True)
        )
        hinge = len(labels) * labels * self._hinge(scores, pairs.image_index)
        terms = {"evidential": error, "divergence": divergence, "hinge": hinge}
        return {name: values[local_rows].mean() for name, values in terms.items()}

    def after_step(self) -> None:
        """Count the step, which K depends on."""
        self.step += 1

    def scalars(self) -> dict[str, Tensor]:
        """Return the share of pairs that count as right."""
        probability = self.clean_probability
        return {} if probability is None else {"clean_share": (probability >= 0.5).float().mean()}

    def negatives(self, pairs: int) -> int:
        """Return K, the number of negatives in the hinge of the coming step.

        Args:
            pairs: B, in the batch.
        """
        annealed = max(int(pairs - self.decay * (int(self.step) + 1)), self.hardest)
        return max(1, min(annealed, pairs - 1))

    def _hinge(self, scores: Tensor, image_index: Tensor) -> Tensor:
        """(B,) mean of the K greatest hinges, summed over both directions."""
        costs = hinge_costs(scores, self.margin, positives(image_index, image_index))
        greatest = [cost.topk(self.negatives(len(cost)), dim=1).values.mean(dim=1) for cost in costs]
        return torch.stack(greatest).sum(dim=0)

    def _probability(self, pairs: Pairs) -> Tensor:
        """(B,) evidence of each pair against that of its strongest rival, in [0, 1]; 1 without a rival."""
        logits = pairs.image @ pairs.text.T / self.tau
        logits = torch.logaddexp(logits, logits.T)
        same = positives(pairs.image_index, pairs.image_index)
        rival = logits.masked_fill(same, float("-inf")).amax(dim=1)
        return torch.sigmoid(logits.diag() - rival)
