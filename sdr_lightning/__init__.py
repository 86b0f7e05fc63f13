"""Image-text retrieval when one modality is poor: training methods, studies, and use of trained models.

The package is layered; imports only go down, see docs/architecture.md. :func:`load` and what it returns are
imported when they are first used, so that ``import sdr_lightning`` stays cheap.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdr_lightning.retrieval import Index, Retriever, load

__version__ = "0.2.0"
__all__ = ["Index", "Retriever", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("Index", "Retriever", "load"):
        from sdr_lightning import retrieval

        return getattr(retrieval, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
