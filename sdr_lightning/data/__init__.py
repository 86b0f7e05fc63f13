"""Captioned images: collections, imbalance, and the data module that serves them."""

from sdr_lightning.data.imbalance import KINDS, Imbalance
from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.parquet import ParquetSource
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.tokenizer import PretrainedTokenizer, SceneTokenizer

__all__ = [
    "KINDS",
    "Imbalance",
    "KarpathySource",
    "ParquetSource",
    "PretrainedTokenizer",
    "RetrievalDataModule",
    "SceneSource",
    "SceneTokenizer",
]
