"""Embedding of many items in batches, which continues after it was stopped or killed.

Embeddings are appended to a file and, once they are on disk, the batch to a journal. Whoever continues drops what the journal
does not know, so that the result has the same bytes as without interruption.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.retrieval.retriever import Embeddings


class Batch(NamedTuple):
    """Embeddings of consecutive rows.

    Attributes:
        stop: the row after the last.
        embeddings: (n, d) float32, of the rows that could be embedded.
        failures: rows that could not, with the reason.
    """

    stop: int
    embeddings: Embeddings
    failures: list[tuple[int, str]]


class Embedded(NamedTuple):
    """All embeddings.

    Attributes:
        embeddings: (n, d) float32, memory-mapped.
        rows: (n,) int64 rows that they are of, ascending.
        failures: the other rows, with the reason.
    """

    embeddings: Embeddings
    rows: NDArray[np.int64]
    failures: list[tuple[int, str]]


def embed(store: Path, width: int, number: int, batches: Callable[[int], Iterator[Batch]]) -> Embedded:
    """Embed rows 0 to ``number`` - 1, from where an earlier call stopped.

    Args:
        store: path of the two files, without suffix.
        width: d.
        number: number of rows.
        batches: yields the batches from a row on. It may raise an exception to stop; finished batches are kept.
    """
    data, journal = store.with_suffix(".f32"), store.with_suffix(".journal")
    entries = _restored(data, journal, width)
    if (entries[-1]["stop"] if entries else 0) < number:
        with data.open("ab") as rows, journal.open("ab") as done:
            for batch in batches(entries[-1]["stop"] if entries else 0):
                rows.write(np.ascontiguousarray(batch.embeddings, dtype=np.float32).tobytes())
                _to_disk(rows)
                entries.append({"stop": batch.stop, "rows": len(batch.embeddings), "failures": batch.failures})
                done.write(json.dumps(entries[-1]).encode() + b"\n")
                _to_disk(done)
    failures = [(int(row), str(reason)) for entry in entries for row, reason in entry["failures"]]
    kept = np.setdiff1d(np.arange(number), np.array([row for row, _ in failures], dtype=np.int64), assume_unique=True)
    embeddings = np.memmap(data, np.float32, "r", shape=(len(kept), width)) if len(kept) else np.empty((0, width))
    return Embedded(embeddings.astype(np.float32, copy=False), kept, failures)


def finished_rows(store: Path) -> int:
    """Return the number of rows that an earlier call has finished."""
    entries = _entries(store.with_suffix(".journal"))
    return int(entries[-1]["stop"]) if entries else 0


def _restored(data: Path, journal: Path, width: int) -> list[dict[str, Any]]:
    """Return the finished batches; cut off what was written after the last of them."""
    size = data.stat().st_size if data.exists() else 0
    entries, rows = [], 0
    for entry in _entries(journal):
        if (rows + entry["rows"]) * width * 4 > size:
            break
        entries.append(entry)
        rows += entry["rows"]
    if data.exists():
        os.truncate(data, rows * width * 4)
    if journal.exists():
        lines = journal.read_bytes().splitlines(keepends=True)[: len(entries)]
        os.truncate(journal, sum(map(len, lines)))
    return entries


def _entries(journal: Path) -> list[dict[str, Any]]:
    """Return the complete entries of a journal; a kill may have cut off the last."""
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
