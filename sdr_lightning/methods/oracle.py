"""Oracle: InfoNCE over the pairs that are known to be right."""

from __future__ import annotations

from sdr_lightning.methods.weighted import WeightedInfoNCE
from sdr_lightning.types import TrainingPairs


class Oracle(WeightedInfoNCE):
    """InfoNCE whose queries are the pairs that no corruption changed.

    An upper bound for methods that detect mismatched pairs: it reads the truth, ``TrainingPairs.is_original``, which real data
    does not have. For comparison in experiments only. Under other corruptions it is no bound, because pairs with missing words or
    a noisy image are left out as well. Changed pairs remain negatives of queries of other images. On clean data it is InfoNCE.

    Args:
        temperature: tau; learned from 0.07 by default.
    """

    def setup(self, training: TrainingPairs) -> None:
        """Register 1 for each pair that is unchanged and 0 for the others.

        Raises:
            ValueError: no pair is unchanged.
        """
        if not bool(training.is_original.any()):
            raise ValueError(
                "the corruption changed every training pair, so the oracle has none to train on: lower its ratio"
            )
        self.register_probability(training.is_original.float())
