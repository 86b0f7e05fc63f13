"""Dataclasses as JSON objects, and back with checks that follow their type hints."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from sdr_lightning.results.fields import checked_object, wrong_value

T = TypeVar("T")
_NOT_STORED = {"stored": False}
_EXPECTED = {str: "a string", Path: "a path", bool: "true or false", int: "a whole number", float: "a finite number"}


def not_stored() -> dict[str, Any]:
    """Return the metadata of a dataclass field that is no part of the JSON object."""
    return dict(_NOT_STORED)


def key(name: str) -> dict[str, Any]:
    """Return the metadata of a dataclass field whose JSON key differs from its name."""
    return {"key": name}


def to_json(value: Any) -> Any:
    """Convert a dataclass, or a collection of them, to plain JSON values. Paths become strings."""
    if is_dataclass(value) and not isinstance(value, type):
        return {_key(field): to_json(getattr(value, field.name)) for field in _stored(type(value))}
    if isinstance(value, Mapping):
        return {str(name): to_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def from_json(kind: type[T], values: object, source: str, **others: Any) -> T:
    """Build a dataclass from a JSON object.

    Unknown keys are ignored. ``null`` counts as a missing key; in a mapping to numbers, entries that are ``null`` or NaN
    are left out.

    Args:
        kind: the dataclass.
        values: the parsed JSON.
        source: where it was read from; every error starts with it.
        others: values of fields that are not stored.

    Raises:
        ValueError: not an object, a key that is missing or of another type, or values that the dataclass refuses.
    """
    values = checked_object(values, source)
    hints, arguments = get_type_hints(kind), dict(others)
    for field in _stored(kind):
        name = _key(field)
        if values.get(name) is None and (field.default is not MISSING or field.default_factory is not MISSING):
            continue
        arguments[field.name] = _decoded(hints[field.name], values, name, source)
    try:
        return kind(**arguments)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _stored(kind: type) -> list[Field[Any]]:
    return [field for field in fields(cast(Any, kind)) if field.metadata.get("stored", True)]


def _key(field: Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _decoded(hint: Any, values: Mapping[str, Any], name: str, source: str) -> Any:
    """The value under a key, as the type hint asks."""
    value, origin, arguments = values.get(name), get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(part for part in arguments if part is not type(None))
        return None if value is None else _decoded(inner, values, name, source)
    if hint is Any:
        return value
    if origin is Literal:
        if value not in arguments:
            raise wrong_value(values, name, source, " or ".join(map(str, arguments)))
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise wrong_value(values, name, source, "a list")
        inside = {f"{name}[{number}]": part for number, part in enumerate(value)}
        return tuple(_decoded(arguments[0], inside, number, source) for number in inside)
    if origin is not None:  # a mapping
        if not isinstance(value, Mapping):
            raise wrong_value(values, name, source, "an object")
        if arguments[1] is float:
            value = {inner: number for inner, number in value.items() if not _is_absent(number)}
        decoded = {inner: _decoded(arguments[1], value, inner, f"{source}: {name}") for inner in value}
        return {int(inner): part for inner, part in decoded.items()} if arguments[0] is int else decoded
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise wrong_value(values, name, source, "an object")
        return from_json(cast(Any, hint), value, f"{source}: {name}")
    return _scalar(hint, values, name, source)


def _scalar(hint: Any, values: Mapping[str, Any], name: str, source: str) -> Any:
    value: Any = values.get(name)
    if hint in (int, float):
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if is_number and (hint is float or float(value).is_integer()):
            return hint(value)
    elif isinstance(value, str if hint is Path else hint):
        return hint(value)
    raise wrong_value(values, name, source, _EXPECTED[hint])


def _is_absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
