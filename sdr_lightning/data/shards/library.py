"""Import of webdataset, an optional package."""

from __future__ import annotations

from typing import Any


def library() -> Any:
    """Import webdataset.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ValueError("shards need the package webdataset: pip install 'sdr_lightning[shards]'") from error
    return webdataset
