"""Whether the Hugging Face hub can be used, found out by one short attempt: its libraries retry for more than a minute."""

from __future__ import annotations

import ssl
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_TIMEOUT_S = 3.0


def is_cached(repository: str, kind: Literal["model", "dataset"] = "model") -> bool:
    """Return whether a repository was downloaded before, complete or in part.

    Args:
        repository: its name; a timm model without a tag stands for any of its tags.
        kind: of the repository.
    """
    from huggingface_hub import constants

    folder = f"{kind}s--{repository.replace('/', '--')}"
    names = (folder, f"{folder}.*") if repository.startswith("timm/") else (folder,)
    return any(place.is_dir() for name in names for place in Path(constants.HF_HUB_CACHE).glob(name))


def why_unavailable() -> str | None:
    """Return in a few words why nothing can be downloaded; None if the hub answers.

    The hub is asked once per process, with a timeout of three seconds. ``HF_HUB_OFFLINE`` is respected.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return None if _answers(constants.ENDPOINT) else f"{constants.ENDPOINT} cannot be reached"


def check_available(repository: str, kind: Literal["model", "dataset"] = "model") -> None:
    """Check that a repository is cached or the hub answers; call it before a library that retries.

    Args:
        repository: name of a repository, or the path of a local folder, which passes.
        kind: of the repository.

    Raises:
        ConnectionError: the hub is needed and does not answer.
    """
    if not Path(repository).exists() and not is_cached(repository, kind) and (reason := why_unavailable()) is not None:
        raise ConnectionError(reason)


@cache
def _answers(endpoint: str) -> bool:
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=_TIMEOUT_S):
            return True
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the libraries have certificates of their own
    except (OSError, HTTPException):  # HTTPException: the answer is not HTTP
        return False
