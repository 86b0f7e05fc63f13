"""JSON objects and typed access to those without a dataclass; every error names the file and the key."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_object(path: Path) -> Mapping[str, Any]:
    """Read a JSON object from a file.

    Raises:
        ValueError: not UTF-8, not JSON, or not an object.
    """
    try:
        return checked_object(json.loads(path.read_text(encoding="utf-8")), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error.msg}, line {error.lineno})") from error


def checked_object(value: object, source: str) -> Mapping[str, Any]:
    """Return parsed JSON that is an object.

    Raises:
        ValueError: it is something else; the message starts with the source.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{source}: expected an object, found {type(value).__name__}")
    return value


def wrong_value(values: Mapping[str, Any], key: str, source: str, expected: str) -> ValueError:
    """Return the error for a value of a JSON object that is missing or of another type."""
    found = f"found {values[key]!r}" if key in values else "the key is missing"
    return ValueError(f"{source}: {key!r} must be {expected}, {found}")


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a nested configuration to dotted names.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: item
        for key, part in value.items()
        for name, item in flat(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }


class Fields:
    """A JSON object, ``values``, with its source.

    A getter without a default raises ``ValueError`` when the key is missing; every getter raises when the
    value has the wrong type. ``null`` counts as missing.
    """

    def __init__(self, values: object, source: str) -> None:
        self.values: Mapping[str, object] = checked_object(values, source)
        self.source = source

    @classmethod
    def read(cls, path: Path) -> "Fields":
        """Read a JSON object from a file."""
        return cls(read_object(path), str(path))

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def complaint(self, key: str, expected: str) -> ValueError:
        """Return the error for a value that is missing or of another type."""
        return wrong_value(self.values, key, self.source, expected)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.complaint(key, "a string")
        return value

    def optional_text(self, key: str) -> str | None:
        """A string, or None when the key is absent."""
        return self.text(key) if key in self else None

    def number(self, key: str) -> float:
        """A finite number."""
        value = self.values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.complaint(key, "a finite number")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None when the key is absent."""
        return self.number(key) if key in self else None

    def integer(self, key: str) -> int:
        """A whole number."""
        value = self.number(key)
        if not value.is_integer():
            raise self.complaint(key, "a whole number")
        return int(value)

    def optional_integer(self, key: str) -> int | None:
        """A whole number, or None when the key is absent."""
        return self.integer(key) if key in self else None

    def flag(self, key: str, default: bool) -> bool:
        """A truth value."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.complaint(key, "true or false")
        return value

    def child(self, key: str) -> "Fields":
        """A nested object."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            raise self.complaint(key, "an object")
        return Fields(value, f"{self.source}: {key}")

    def optional_child(self, key: str) -> "Fields":
        """A nested object, empty when the key is absent."""
        return self.child(key) if key in self else Fields({}, f"{self.source}: {key}")

    def items(self, key: str) -> list[object]:
        """A list, empty when the key is absent."""
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.complaint(key, "a list")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty when the key is absent."""
        values = self.items(key)
        strings = tuple(value for value in values if isinstance(value, str))
        if len(strings) != len(values):
            raise self.complaint(key, "a list of strings")
        return strings

    def table(self) -> dict[str, float]:
        """All keys as numbers; ``null`` and ``NaN`` are left out."""
        missing = {key for key, v in self.values.items() if v is None or (isinstance(v, float) and math.isnan(v))}
        return {key: self.number(key) for key in self.values if key not in missing}

    def words(self) -> dict[str, str]:
        """All keys as text."""
        return {key: str(value) for key, value in self.values.items() if value is not None}
