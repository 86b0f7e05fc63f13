"""Text files with the ids of images, one a line: what ``sdr data check --unusable`` writes and ``leave_out`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from sdr_lightning.paths import text_lines, write_text

_HEADER = "# ids of unusable images, written by sdr data check"


def write_ids(path: Path, ids: Iterable[str]) -> None:
    """Write ids, atomically; one that would not survive as a line (line breaks, outer blanks) is written as a JSON string."""
    write_text(path, "".join(f"{line}\n" for line in (_HEADER, *map(_line, ids))))


def read_ids(path: Path) -> set[str]:
    """The ids in a file of :func:`write_ids`, or in a plain list of one id a line; blank lines are passed over.

    Raises:
        ValueError: no such file, or not UTF-8.
    """
    lines = (line.strip() for line in text_lines(path))
    return {_id(line) for line in lines if line and line != _HEADER}


def is_id_list(path: Path) -> bool:
    """Whether :func:`write_ids` wrote a file."""
    return path.is_file() and path.read_bytes().startswith(_HEADER.encode())


def _line(name: str) -> str:
    plain = name == name.strip() and len(name.splitlines()) == 1 and name != _HEADER and not name.startswith('"')
    return name if plain else json.dumps(name)


def _id(line: str) -> str:
    if not line.startswith('"'):
        return line
    try:
        return str(json.loads(line))
    except json.JSONDecodeError:  # an id that begins with a quotation mark
        return line
