"""Evaluation of retrieval: cross-modal, single-modal and mixed."""

from sdr_lightning.metrics.evaluation import evaluate
from sdr_lightning.metrics.relevance import FactRelevance, Relevance, RougeLRelevance

__all__ = ["FactRelevance", "Relevance", "RougeLRelevance", "evaluate"]
