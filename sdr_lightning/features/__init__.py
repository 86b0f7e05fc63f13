"""Features computed once and kept: the teachers' banks, and what frozen towers say of the data."""

from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import encode, extract

__all__ = ["FeatureBank", "encode", "extract"]
