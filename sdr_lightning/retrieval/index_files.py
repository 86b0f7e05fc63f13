"""The files of an index. ``index.json`` names the others, which are named by their content and never change.

An update writes new files, then replaces ``index.json``, then removes the files that nothing names any more: a reader sees the
old index or the new one.
"""

from __future__ import annotations

import json
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.functional.search import chunks
from sdr_lightning.metrics.files import file_hash
from sdr_lightning.paths import read_json, write_json

FORMAT = "sdr-index-1"
RECORD = "index.json"
MODEL = "model"
_ROWS = 65536  # rows copied at a time

Entry = dict[str, str]
"""``file``, the name of a file in the index, and ``sha256``, of its content."""


class JsonLines(Sequence[dict[str, Any]]):
    """A file with one JSON object in a line, memory-mapped; a line is parsed when it is read.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes: bytes | mmap.mmap = b""
            if path.stat().st_size:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        codes = np.frombuffer(self._bytes, dtype=np.uint8)
        ends = [np.flatnonzero(codes[part] == ord("\n")) + part.start for part in chunks(len(codes), 2**24)]
        self._starts = np.concatenate(([0], *(end + 1 for end in ends))).astype(np.int64)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, row: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, row: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, row: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        item: dict[str, Any] = json.loads(self._bytes[self._starts[row] : self._starts[row + 1]])
        return item

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each id."""
        return {item["id"]: row for row, item in enumerate(self)}


def read_record(folder: Path) -> dict[str, Any]:
    """Read ``index.json``.

    Raises:
        ValueError: no index, or one of another format.
    """
    if not (folder / RECORD).is_file():
        raise ValueError(f"no index at {folder}: expected a folder of sdr index, with {RECORD}")
    record = read_json(folder / RECORD, "the record of an index")
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"{folder / RECORD} has the format {found}, expected {FORMAT}: build the index again")
    return record


def stored(folder: Path, record: dict[str, Any], *keys: str, verify: bool = True) -> Path:
    """Return the path of a file that the record names.

    Args:
        folder: the index.
        record: its record.
        keys: where in the record its :data:`Entry` is.
        verify: whether to compare the content with the checksum.

    Raises:
        ValueError: it is missing or was changed.
    """
    try:
        entry: Any = record
        for key in keys:
            entry = entry[key]
        name, expected = str(entry["file"]), str(entry["sha256"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder} is damaged: {RECORD} lacks {'.'.join(keys)}; build it again") from error
    path = folder / Path(name).name
    if not path.is_file():
        raise ValueError(f"{folder} is damaged: {path.name} is missing; build it again")
    if verify and file_hash(path) != expected:
        raise ValueError(
            f"{folder} is damaged: the checksum of {path.name} is not that in {RECORD}; copy or build it again"
        )
    return path


def store(folder: Path, name: str, suffix: str, write: Callable[[Path], None]) -> Entry:
    """Write a file of an index under a name that ends with a hash of its content.

    Args:
        folder: the index.
        name: start of the name.
        suffix: end of the name.
        write: writes the content to a path.
    """
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".new-", suffix=suffix)
    os.close(handle)
    path = Path(temporary)
    try:
        write(path)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        digest = file_hash(path)
        path.chmod(0o644)
        path.replace(folder / f"{name}-{digest[:12]}{suffix}")
    finally:
        path.unlink(missing_ok=True)
    return {"file": f"{name}-{digest[:12]}{suffix}", "sha256": digest}


def store_items(folder: Path, name: str, items: Iterable[dict[str, Any]]) -> Entry:
    """Write items as JSON lines."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(json.dumps(item, ensure_ascii=False) + "\n" for item in items)

    return store(folder, name, ".jsonl", write)


def store_rows(folder: Path, name: str, parts: Sequence[tuple[NDArray[Any], NDArray[np.int64]]]) -> Entry:
    """Write selected rows of matrices of one width and type, one matrix after another, as ``.npy``.

    Args:
        folder: the index.
        name: start of the name.
        parts: matrices and the rows of each.
    """

    def write(path: Path) -> None:
        shape = (sum(len(rows) for _, rows in parts), parts[0][0].shape[1])
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for matrix, rows in parts:
                for some in chunks(len(rows), _ROWS):
                    file.write(np.ascontiguousarray(matrix[rows[some]], dtype="<f4").tobytes())

    return store(folder, name, ".npy", write)


def publish(folder: Path, record: dict[str, Any]) -> None:
    """Replace ``index.json``, then remove the files of earlier states of the index."""
    write_json(folder / RECORD, record)
    named = {entry["file"] for entry in _entries(record)}
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".npy", ".jsonl", ".faiss") and path.name not in named:
            path.unlink()


def _entries(value: Any) -> Iterable[Entry]:
    if isinstance(value, dict):
        if value.keys() == {"file", "sha256"}:
            yield value
        for part in value.values():
            yield from _entries(part)
