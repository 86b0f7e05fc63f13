"""Oracle: InfoNCE over the pairs that are known to be right."""

from __future__ import annotations

from sdr_lightning.methods.weighted import WeightedInfoNCE
from sdr_lightning.types import TrainingPairs


class Oracle(WeightedInfoNCE):
    """InfoNCE whose queries are the pairs that no corruption changed.

    An upper bound for methods that detect wrong pairs: it reads the truth, ``TrainingPairs.is_original``, which real data does
    not have. For comparison in experiments only. Changed pairs keep their place among the candidates of other queries. On clean
    data it is InfoNCE.

    Args:
        temperature: tau; learned from 0.07 by default.
    """

    def setup(self, training: TrainingPairs) -> None:
        """Register 1 for each pair that is unchanged and 0 for the others."""
        self.register_probability(training.is_original.float())
