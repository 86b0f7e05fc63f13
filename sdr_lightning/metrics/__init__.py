"""Evaluation of retrieval: cross-modal, single-modal and mixed."""

from sdr_lightning.metrics.evaluation import evaluate
from sdr_lightning.metrics.metric import ImageTextRetrieval
from sdr_lightning.metrics.relevance import CaptionRelevance, FactRelevance, Relevance, RougeLRelevance

__all__ = ["CaptionRelevance", "FactRelevance", "ImageTextRetrieval", "Relevance", "RougeLRelevance", "evaluate"]
