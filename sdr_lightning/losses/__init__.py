"""The terms of the objective as modules over :mod:`sdr_lightning.functional`, and the objective itself."""

from sdr_lightning.losses.objective import TERMS, RebalancingObjective

__all__ = ["TERMS", "RebalancingObjective"]
