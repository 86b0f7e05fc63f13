"""The layout of an exported model: a folder that stands alone."""

from __future__ import annotations

from pathlib import Path

FORMAT = "sdr-model-1"
CONFIGURATION = "sdr_model.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
_DOWNLOADED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.md"]  # never pickled files


def is_exported(folder: Path) -> bool:
    """Whether a folder was written by ``sdr export``."""
    return (folder / CONFIGURATION).is_file()


def downloaded(name: str) -> Path:
    """Download an exported model from the hub, or find it in the hub's cache.

    Args:
        name: USER/NAME.

    Raises:
        ValueError: it is not there, is no exported model, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_DOWNLOADED))
    except (OSError, HFValidationError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"no model at {name}: there is no such folder, and the hub has none or cannot be reached ({reason})"
        ) from error
    if not is_exported(folder):
        raise ValueError(f"{name} on the hub was not written by sdr export: it has no {CONFIGURATION}")
    return folder


def push(folder: Path, name: str, private: bool = False) -> str:
    """Upload an exported model to the hub, with the hub's own client and login.

    Args:
        folder: folder of ``sdr export``.
        name: USER/NAME; the repository is created if it does not exist.
        private: make a new repository private.

    Returns:
        Address of the commit.

    Raises:
        ValueError: no exported model, or the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    # HTTPError is that of the HTTP library that this version of the client uses.
    from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]

    if not is_exported(folder):
        raise ValueError(f"{folder} was not written by sdr export: it has no {CONFIGURATION}")
    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Model exported by sdr_lightning")
    except (HTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"the hub did not take {name}: {' '.join(str(error).split())[:200]}") from error
    return str(done.commit_url)
