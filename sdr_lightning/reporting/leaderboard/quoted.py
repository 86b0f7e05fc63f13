"""Numbers that others published, read from a YAML file; they are shown in tables of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sdr_lightning.paths import read_yaml
from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.tables.table import Block, Table, text_row
from sdr_lightning.results.codec import from_json


@dataclass(frozen=True)
class QuotedRow:
    """A published result of one method at one noise ratio.

    Attributes:
        method: as the source names it.
        ratio: share of mismatched items, in [0, 1].
        metrics: values by name; recalls in percent.
        note: what else the source says.

    Raises:
        ValueError: the ratio is out of range.
    """

    method: str
    ratio: float
    metrics: Mapping[str, float]
    note: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"the ratio of {self.method} must lie in [0, 1], got {self.ratio:g}")


@dataclass(frozen=True)
class QuotedTable:
    """A table of one source.

    Attributes:
        source: publication, repository, commit and place of the table.
        data: data set.
        noise: meaning of the noise, as far as the source states it.
        rows: its rows.
    """

    source: str
    data: str
    noise: str
    rows: tuple[QuotedRow, ...]


@dataclass(frozen=True)
class Quoted:
    """The content of the file.

    Attributes:
        note: shown above all tables.
        tables: by source.
    """

    note: str
    tables: tuple[QuotedTable, ...]


def read_quoted(path: Path) -> Quoted:
    """Read published numbers.

    Raises:
        ValueError: not YAML, a key that is missing, unknown or of another type, or a ratio outside [0, 1]; the message names the
            place.
    """
    values = read_yaml(path, "published numbers")
    _check_keys(values, Quoted, str(path))
    for number, table in enumerate(_listed(values, "tables", str(path))):
        where = f"{path}: tables[{number}]"
        _check_keys(table, QuotedTable, where)
        for position, row in enumerate(_listed(table, "rows", where)):
            _check_keys(row, QuotedRow, f"{where}: rows[{position}]")
    return from_json(Quoted, values, str(path))


def quoted_tables(quoted: Quoted) -> tuple[Table, ...]:
    """Make a table for each source."""
    return tuple(_table(number, table) for number, table in enumerate(quoted.tables))


def _table(number: int, table: QuotedTable) -> Table:
    metrics = list(dict.fromkeys(name for row in table.rows for name in row.metrics))
    has_notes = any(row.note for row in table.rows)
    rows = tuple(
        text_row(
            row.method,
            formatting.percent(row.ratio),
            *(formatting.number(row.metrics[name]) if name in row.metrics else formatting.MISSING for name in metrics),
            *([row.note] if has_notes else []),
        )
        for row in table.rows
    )
    headings = ("Method", "Ratio", *(name.replace("_", " ") for name in metrics), *(["Note"] if has_notes else []))
    caption = f"{table.data}. Noise: {table.noise}. Source: {table.source}"
    return Table(f"quoted-{number}", caption, headings, (Block(rows),), numeric=not has_notes)


def _check_keys(values: Any, kind: type, where: str) -> None:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a mapping, found {type(values).__name__}")
    known = [field.name for field in fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}: expected some of {', '.join(known)}")


def _listed(values: Mapping[str, Any], name: str, where: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{where}: {name} must be a list with entries, found {found!r}")
    return found
