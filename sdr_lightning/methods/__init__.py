"""The terms of the method as modules over :mod:`sdr_lightning.functional`, and the method itself."""

from sdr_lightning.methods.sdr import SDR, TERMS

__all__ = ["SDR", "TERMS"]
