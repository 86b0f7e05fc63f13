"""Use of a trained model: embeddings, search, export."""

from sdr_lightning.retrieval.index import Hit, Index
from sdr_lightning.retrieval.loading import load
from sdr_lightning.retrieval.preprocessing import ImageLike, Preprocessing
from sdr_lightning.retrieval.retriever import Hits, Retriever, search

__all__ = ["Hit", "Hits", "ImageLike", "Index", "Preprocessing", "Retriever", "load", "search"]
