"""Precomputed features: the banks of teachers and of frozen towers."""

from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import encode, extract

__all__ = ["FeatureBank", "encode", "extract"]
