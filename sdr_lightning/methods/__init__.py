"""Training methods, one file each."""

from sdr_lightning.methods.agree import AGREE
from sdr_lightning.methods.base import Measure, Method, Need, PerPair
from sdr_lightning.methods.bicro import BiCro
from sdr_lightning.methods.co_teaching import CoTeachingNCR
from sdr_lightning.methods.crcl import CRCL
from sdr_lightning.methods.decl import DECL
from sdr_lightning.methods.feature_distillation import FeatureDistillation
from sdr_lightning.methods.gce import GCE
from sdr_lightning.methods.gsc import GSC
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.ncr import NCR
from sdr_lightning.methods.ogm_ge import OGMGE
from sdr_lightning.methods.oracle import Oracle
from sdr_lightning.methods.osa import OSA
from sdr_lightning.methods.parameters import Temperature, TextShare
from sdr_lightning.methods.pcme_plus_plus import PCMEPlusPlus
from sdr_lightning.methods.rcl import RCL
from sdr_lightning.methods.rince import RINCE
from sdr_lightning.methods.rkd import RKD
from sdr_lightning.methods.sce import SCE
from sdr_lightning.methods.sdr import SDR
from sdr_lightning.methods.siglip import SigLIP
from sdr_lightning.methods.vse_plus_plus import VSEPlusPlus

__all__ = [
    "AGREE",
    "CRCL",
    "DECL",
    "GCE",
    "GSC",
    "NCR",
    "OGMGE",
    "OSA",
    "RCL",
    "RINCE",
    "RKD",
    "SCE",
    "SDR",
    "BiCro",
    "CoTeachingNCR",
    "FeatureDistillation",
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
    "VSEPlusPlus",
]
