"""Training methods, one file each."""

from sdr_lightning.methods.agree import AGREE
from sdr_lightning.methods.base import Measure, Method, Need, PerPair
from sdr_lightning.methods.gce import GCE
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.ncr import NCR
from sdr_lightning.methods.ogm_ge import OGMGE
from sdr_lightning.methods.oracle import Oracle
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.methods.pcme_plus_plus import PCMEPlusPlus
from sdr_lightning.methods.sdr import SDR
from sdr_lightning.methods.siglip import SigLIP

__all__ = [
    "AGREE",
    "GCE",
    "NCR",
    "OGMGE",
    "SDR",
    "InfoNCE",
    "Measure",
    "Method",
    "Need",
    "Oracle",
    "PCMEPlusPlus",
    "PerPair",
    "SigLIP",
    "Temperature",
    "TextShare",
]
