"""Contents of configuration files, without building what they describe. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sdr_lightning.paths import read_yaml

HasOption = Callable[[str, str], bool]
"""Whether a class, by its ``class_path``, has an option of a name."""


def _none(class_path: str, name: str) -> bool:
    return False


def merged(configs: Sequence[Path], has_option: HasOption = _none) -> dict[str, Any]:
    """Return configurations as one document: fragments in their place, later values over earlier ones.

    Where a later section is of another class, ``sdr fit`` keeps those options of the earlier one that the other class has too.

    Args:
        configs: the files.
        has_option: which options a class has; by default none are kept, since the classes are not imported.

    Raises:
        ValueError: a file cannot be read or is no configuration.
    """
    document: dict[str, Any] = {}
    for config in configs:
        document = _over(document, _mapping(config), has_option)
    return document


def merged_settings(words: Sequence[str], has_option: HasOption = _none) -> dict[str, Any]:
    """Merge the configurations that arguments name by ``--config`` and ``--data``; see :func:`merged`.

    Raises:
        ValueError: a file cannot be read or is no configuration.
    """
    document: dict[str, Any] = {}
    for option, value in pairwise(words):
        if option in ("-c", "--config"):
            document = _over(document, _mapping(Path(value)), has_option)
        elif option == "--data":
            document = _over(document, {"data": _mapping(Path(value))}, has_option)
    return document


def _mapping(path: Path) -> dict[str, Any]:
    value = _read(path)
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


def _over(below: Any, above: Any, has_option: HasOption) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        options = below.get("init_args") or {}
        kept = {name: value for name, value in options.items() if has_option(above["class_path"], name)}
        below = {"init_args": kept} if kept else {}
    return below | {key: _over(below.get(key), value, has_option) for key, value in above.items()}
