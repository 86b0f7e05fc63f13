"""Text files with image ids, one per line: written by ``sdr data check --unusable``, read by ``leave_out``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sdr_lightning.paths import text_lines, write_text

_HEADER = "# ids of unusable images, written by sdr data check"


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write ids atomically; an id with line breaks or outer spaces is written as a JSON string."""
    write_text(path, "".join(f"{line}\n" for line in (_HEADER, *map(_line, ids))))


def read_ids(path: Path) -> set[str]:
    """Read ids from a file written by :func:`write_ids` or from a plain list of one id per line; skip blank lines.

    Raises:
        ValueError: the file is missing or not UTF-8.
    """
    lines = (line.strip() for line in text_lines(path))
    return {_id(line) for line in lines if line and line != _HEADER}


def is_id_list(path: Path) -> bool:
    """Whether a file was written by :func:`write_ids`."""
    return path.is_file() and path.read_bytes().startswith(_HEADER.encode())


def _line(name: str) -> str:
    plain = name == name.strip() and len(name.splitlines()) == 1 and name != _HEADER and not name.startswith('"')
    return name if plain else json.dumps(name)


def _id(line: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except json.JSONDecodeError:  # not JSON, but an id that begins with a quotation mark
        return line
