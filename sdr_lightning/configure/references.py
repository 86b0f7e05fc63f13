"""Parsing of paths in options: relative paths in a YAML file are relative to that file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type

from sdr_lightning.paths import FilePath, PathOrName, anchored, expand


def _reader(kind: type, may_be_name: bool) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str):
            raise ValueError(f"expected a path, got {value!r}")
        # While parsing a YAML file, jsonargparse changes to its folder.
        return kind(anchored(value, Path.cwd(), may_be_name))  # type: ignore[no-any-return]

    return read


def _is_one(value: object, kind: type) -> bool:
    return isinstance(value, kind)


register_type(FilePath, str, _reader(FilePath, may_be_name=False), type_check=_is_one)
register_type(PathOrName, str, _reader(PathOrName, may_be_name=True), type_check=_is_one)


def path_parser() -> ArgumentParser:
    """Return a parser of options, typed by signatures, that reads paths as this module describes and raises its errors."""
    return ArgumentParser(exit_on_error=False, allow_abbrev=False)


def resolved(settings: Namespace) -> Namespace:
    """Copy parsed options and expand the environment variables in paths; unset variables are kept."""
    copy = settings.clone()
    for key, value in list(copy.items()):
        copy[key] = _resolved(value)
    return copy


def _resolved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolved(part) for part in value)
    if isinstance(value, FilePath | PathOrName):
        try:
            return type(value)(expand(value))
        except ValueError:  # unset variables of a part that is not used
            return value
    return value
