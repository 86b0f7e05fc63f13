"""A page and a JSON interface to search an index."""

from sdr_lightning.retrieval.serve.server import Limits, SearchServer

__all__ = ["Limits", "SearchServer"]
