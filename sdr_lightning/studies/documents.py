"""The content of configurations as plain YAML, with the fragments that they refer to. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml


def documents(config: Path) -> Iterator[Any]:
    """Yield the content of a configuration, and of the fragments that it refers to."""
    document = _parsed(config.read_text(encoding="utf-8"))
    yield document
    for _, value in strings(document):
        if value.endswith(".yaml"):
            yield from documents(config.parent / value)


def strings(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every string of a document with the keys that lead to it; items of a list add an empty one."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from strings(inside, (*path, name))
    elif isinstance(value, list):
        for inside in value:
            yield from strings(inside, (*path, ""))
    elif isinstance(value, str):
        yield path, value


def merged(configs: list[Path]) -> Any:
    """Return configurations as one document: fragments in their place, later values over earlier ones.

    A section of another class replaces the earlier one, as in ``sdr fit``.
    """
    document: Any = {}
    for config in configs:
        document = _over(document, _inlined(_parsed(config.read_text(encoding="utf-8")), config.parent))
    return document


def _inlined(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {key: _inlined(inside, folder) for key, inside in value.items()}
    if isinstance(value, str) and value.endswith(".yaml"):
        file = folder / value
        return _inlined(_parsed(file.read_text(encoding="utf-8")), file.parent)
    return value


def _over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    if "class_path" in above and above["class_path"] != below.get("class_path"):
        return above
    return below | {key: _over(below.get(key), value) for key, value in above.items()}


_parsed = cache(yaml.safe_load)
