"""Modal imbalance: corruption of a share of the data, a pure function of item ids and the specification."""

from sdr_lightning.data.imbalance.application import Imbalanced, Realised, imbalanced
from sdr_lightning.data.imbalance.noise_table import NoiseTable, is_noise_table, read_noise
from sdr_lightning.data.imbalance.specification import KINDS, PARTNERS, Imbalance, Level

__all__ = [
    "KINDS",
    "PARTNERS",
    "Imbalance",
    "Imbalanced",
    "Level",
    "NoiseTable",
    "Realised",
    "imbalanced",
    "is_noise_table",
    "read_noise",
]
