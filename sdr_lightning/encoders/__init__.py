"""Towers that turn images and captions into features, and the dual encoder that joins them in one space."""

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.image import TimmImageTower
from sdr_lightning.encoders.precomputed import PrecomputedImageTower
from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.text import TransformersTextTower
from sdr_lightning.encoders.tower import Tower

__all__ = ["DualEncoder", "PrecomputedImageTower", "Projection", "TimmImageTower", "Tower", "TransformersTextTower"]
