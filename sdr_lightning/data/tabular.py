"""Custom collections: a table in CSV, TSV, JSONL or Parquet, and an image folder."""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdr_lightning.data.holdout import held_out
from sdr_lightning.data.records import Records, captions_in, grouped
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.strings import Strings
from sdr_lightning.tables import IMAGE_ENDINGS, SPLIT_OF


class TabularSource(FolderSource):
    """Rows with the path of an image and one or several captions.

    Rows of the same image are merged, so one row per caption, one column per caption, and lists of captions (``['a', 'b']`` in
    CSV and TSV) are all supported. Image ids are paths, caption ids are image id and number. Empty cells are ignored if another
    caption column has a caption.

    Args:
        name: name of the collection.
        table: the file: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; ``$NAME`` and ``${NAME:-default}`` are expanded.
        images: folder that the paths are relative to.
        image_column: column of the image paths.
        caption_columns: columns of the captions.
        split_column: column with ``train``, ``val`` or ``test`` (or ``dev``, ``validation``, ...). When None, splits are
            assigned by a hash of the path and ``split_seed``.
        val_share: share of the images assigned to validation.
        test_share: share of the images assigned to the test split.
        split_seed: random seed of the assignment.
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.

    Raises:
        ValueError: caption_columns is empty or a single text.
    """

    def __init__(
        self,
        name: str,
        table: FilePath,
        images: FilePath,
        image_column: str = "image",
        caption_columns: Sequence[str] = ("caption",),
        split_column: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        super().__init__(name, images, skip_missing, skip_empty, leave_out)
        if isinstance(caption_columns, str) or not caption_columns:
            raise ValueError(f"caption_columns must be a list of names, got {caption_columns!r}")
        self.file, self.image_column, self.caption_columns = table, image_column, tuple(caption_columns)
        self.split_column, self.split_seed = split_column, split_seed
        self.shares: dict[Split, float] = {"val": val_share, "test": test_share}

    def read(self) -> Records:
        """Read the records of all splits."""
        path = Path(expand(self.file))
        rows = read_rows(path, self.image_column)
        if not rows:
            raise ValueError(f"{path} holds no rows")
        captions: list[tuple[str, str, str | None]] = []
        split_of: dict[str, list[str]] = {}
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            image = self._image(where, row)
            captions += [(image, image, text) for text in self._captions(where, row)]
            if self.split_column is not None:
                value = _split(where, _cell(where, row, self.split_column, "split_column"))
                split_of.setdefault(image, []).append(value)
        records = grouped(captions)
        if self.split_column is not None:  # an image in two splits stays in both, and is reported as a leak
            return {
                split: [record for record in records if split in split_of[record.image_id]]
                for split in SPLITS
                if any(split in values for values in split_of.values())
            }
        drawn = held_out([record.image_id for record in records], self.shares, self.split_seed)
        return {
            split: [record for record, name in zip(records, drawn, strict=True) if name == split]
            for split in SPLITS
            if split in drawn
        }

    def _image(self, where: str, row: dict[str, Any]) -> str:
        cell = _cell(where, row, self.image_column, "image_column")
        if cell is not None and not isinstance(cell, str | int | float):
            holds = {"bytes": "image bytes", "dict": "structs such as {bytes, path}", "list": "lists"}
            raise ValueError(
                f"{where}: the column {self.image_column!r} holds {holds.get(type(cell).__name__, type(cell).__name__)}, "
                "expected the path of an image file; HuggingFaceSource reads images that are inside Parquet files"
            )
        image = "" if cell is None else str(cell).strip()
        if not image:
            raise ValueError(f"{where} names no image under {self.image_column!r}")
        if not Strings.holds(image):
            raise ValueError(
                f"{where} names the image {image!r}, which has a lone surrogate, half a character: correct it"
            )
        return posixpath.normpath(image)  # ./a.jpg becomes a.jpg

    def _captions(self, where: str, row: dict[str, Any]) -> Sequence[str | None]:
        cells = []
        for column in self.caption_columns:
            cell = _cell(where, row, column, "caption_columns")
            cells.append([""] if cell is None else captions_in(cell, where, column))
        filled = [texts for texts in cells if any(text.strip() for text in texts)]
        return [text for texts in filled or cells[:1] for text in texts] or [None]


def read_rows(path: Path, image_column: str) -> list[dict[str, Any]]:
    """Read the rows of a table.

    Args:
        path: the table.
        image_column: column of the image paths, used to detect rows inside a quoted cell.

    Returns:
        One dictionary per row, from column names to values.

    Raises:
        ValueError: the file is missing, has another suffix, is not UTF-8, or has a malformed line (with its number).
    """
    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        ".csv": partial(_read_csv, image_column=image_column),
        ".tsv": partial(_read_csv, image_column=image_column),
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(readers)}")
    if not path.is_file():
        raise ValueError(f"no table at {path}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _read_csv(path: Path, image_column: str) -> list[dict[str, Any]]:
    text = path.read_bytes().decode("utf-8-sig")
    if path.suffix == ".csv":
        return _parse_csv(path, text, image_column, delimiter=",")
    try:  # TSV has no quoting by definition, but most programs write quotation marks
        return _parse_csv(path, text, image_column, delimiter="\t")
    except ValueError as error:
        try:
            return _parse_csv(path, text, image_column, delimiter="\t", quoting=csv.QUOTE_NONE)
        except ValueError:
            raise error from None


def _parse_csv(path: Path, text: str, image_column: str, **dialect: Any) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, **dialect)
    rows: dict[int, dict[str, Any]] = {}  # by their first line
    line = 1
    try:
        columns = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = columns
        _check_unique_columns(path, columns)
        if len(columns) == 1 and ";" in columns[0] and dialect["delimiter"] == ",":
            raise ValueError(
                f"{path} has cells separated by semicolons, expected commas (or tabs, in a .tsv): convert it"
            )
        line = reader.line_num
        for row in reader:
            if None in row:
                where = f"{path}, line {line + 1}"
                raise ValueError(f"{where} has more cells than the header: quote cells that hold the delimiter")
            rows[line + 1] = row
            line = reader.line_num
    except csv.Error as error:
        where = f"{path}, the row that begins in line {line + 1}"
        raise ValueError(f"{where}: {error}; close or double its quotation marks") from error
    if image_column in columns:
        _check_no_quoted_rows(path, rows, image_column, columns, dialect["delimiter"])
    return list(rows.values())


def _check_unique_columns(path: Path, columns: Sequence[str]) -> None:
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"{path} has two columns {repeated[0]!r}: rename one (caption_columns may name several)")


def _check_no_quoted_rows(
    path: Path, rows: dict[int, dict[str, Any]], image_column: str, columns: Sequence[str], delimiter: str
) -> None:
    """Raise a ValueError for a quoted cell that contains rows, because a quotation mark in the text was not doubled.

    A line inside a cell counts as a row if it has as many cells as the header and an image file name in the image column.
    """
    names = [str(row[image_column]).strip() for row in rows.values()]
    endings = {posixpath.splitext(name)[1].lower() for name in names} | IMAGE_ENDINGS
    has_blanks = any(" " in name for name in names)
    place = columns.index(image_column)
    for number, row in rows.items():
        for cell in (cell for cell in row.values() if cell is not None and "\n" in cell):
            for line in cell.splitlines():
                cells = [part.strip(' "') for part in line.split(delimiter)]
                name = cells[place] if len(cells) >= len(columns) else ""
                if posixpath.splitext(name)[1].lower() in endings - {""} and (has_blanks or " " not in name):
                    raise ValueError(
                        f"{path}, line {number}: the cell {cell[:40]!r} holds whole rows: double the quotation marks in its "
                        "text and quote the cell; or, if it is one caption, remove its line breaks"
                    )


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line, object_pairs_hook=_unique_keys) if line.strip() else {}
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is no object")
            if row:
                rows.append(row)
    return rows


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object has one key twice, its keys are {', '.join(key for key, _ in pairs)}")
    return row


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    _check_unique_columns(path, table.column_names)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _cell(where: str, row: dict[str, Any], column: str, option: str | None = None) -> Any:
    if column not in row:
        remedy = f": set data.init_args.source.init_args.{option}" if option else ""
        raise ValueError(f"{where} has no {column!r}; it has {', '.join(map(str, row))}{remedy}")
    return row[column]


def _split(where: str, value: Any) -> Split:
    split = SPLIT_OF.get(str(value).strip().lower())
    if split is None:
        raise ValueError(f"{where} has the split {value!r}, expected one of {', '.join(SPLIT_OF)}")
    return split
