"""Image and text towers, the dual encoder and the fusion encoder."""

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.gpo import GPOTower
from sdr_lightning.encoders.head import HeadTower
from sdr_lightning.encoders.image import TimmImageTower, TransformersImageTower
from sdr_lightning.encoders.precomputed import PrecomputedImageTower
from sdr_lightning.encoders.probabilistic import ProbabilisticEncoder
from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.text import BagOfWordsTextTower, TransformersTextTower
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.twin import TwinEncoder, split_embedding

__all__ = [
    "BagOfWordsTextTower",
    "DualEncoder",
    "FusionEncoder",
    "GPOTower",
    "HeadTower",
    "PrecomputedImageTower",
    "ProbabilisticEncoder",
    "Projection",
    "TimmImageTower",
    "Tower",
    "TransformersImageTower",
    "TransformersTextTower",
    "TwinEncoder",
    "split_embedding",
]
