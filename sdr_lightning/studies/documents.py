"""The content of configurations as plain YAML, with the fragments that they refer to. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml


def documents(config: Path) -> Iterator[Any]:
    """Yield the content of a configuration, and of the fragments that it refers to.

    Raises:
        ValueError: a file is not YAML in UTF-8.
    """
    try:
        document = _parsed(config.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
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


_parsed = cache(yaml.safe_load)
