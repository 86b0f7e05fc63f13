"""Contents of configuration files, without building what they describe. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdr_lightning.paths import read_yaml


def merged_settings(words: Sequence[str]) -> dict[str, Any]:
    """Merge the configurations that arguments name by ``--config`` and ``--data``, with referenced fragments inserted.

    Raises:
        ValueError: a file cannot be read or is no configuration.
    """
    merged: dict[str, Any] = {}
    for option, value in pairwise(words):
        if option in ("-c", "--config"):
            merged = _over(merged, _mapping(Path(value), _read(Path(value))))
        elif option == "--data":
            merged = _over(merged, {"data": _mapping(Path(value), _read(Path(value)))})
    return merged


def _mapping(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no configuration: expected keys and values, got {type(value).__name__}")
    return value


def _read(path: Path) -> Any:
    try:
        return _filled(read_yaml(path, "configuration"), path.parent)
    except RecursionError as error:
        raise ValueError(f"no configuration at {path} ({type(error).__name__})") from error


def _filled(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _filled(part, folder) for key, part in value.items()}
    if isinstance(value, str) and value.endswith((".yaml", ".yml")) and (folder / value).is_file():
        return _read(folder / value)
    return value


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        key: _over(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return {**below, **above, **both}
