"""Captioned image collections, their corruptions (imbalances), and the data module."""

from sdr_lightning.data.coco import CocoSource
from sdr_lightning.data.huggingface import HuggingFaceSource
from sdr_lightning.data.imbalance import KINDS, Imbalance
from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.lists import ListSource
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.precomputed import PrecomputedSource
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.shards import ShardSource
from sdr_lightning.data.tabular import TabularSource
from sdr_lightning.data.tokenizer import PretrainedTokenizer, SceneTokenizer

__all__ = [
    "KINDS",
    "CocoSource",
    "HuggingFaceSource",
    "Imbalance",
    "KarpathySource",
    "ListSource",
    "PrecomputedSource",
    "PretrainedTokenizer",
    "RetrievalDataModule",
    "SceneSource",
    "SceneTokenizer",
    "ShardSource",
    "TabularSource",
]
