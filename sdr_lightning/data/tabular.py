"""A user's own collection: a table in CSV, TSV, JSONL or Parquet, and an image folder."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdr_lightning.data.holdout import held_out
from sdr_lightning.data.records import Records, grouped
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.paths import expand

_SPLIT_OF: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


class TabularSource(FolderSource):
    """Rows with the path of an image and one or several captions.

    Rows of the same image are put together, so a row per caption, a column per caption and, in JSONL and Parquet, a list of
    captions all work. Images are known by their path, captions by image and number. Empty cells of further caption columns
    are no captions.

    Args:
        name: of the collection.
        table: the file: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; ``$NAME`` and ``${NAME:-default}`` are filled in.
        images: the folder that the paths are relative to.
        image_column: the path of the image.
        caption_columns: where the captions are.
        split_column: ``train``, ``val`` or ``test`` (``dev``, ``validation`` ... are understood); when None, images are
            drawn into splits by a hash of their path and ``split_seed``.
        val_share: share of the images that are drawn for validation.
        test_share: share of the images that are drawn for the test.
        split_seed: of the draw.
        skip_missing: leave out images that are not in the folder, instead of refusing the collection.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line.
    """

    def __init__(
        self,
        name: str,
        table: str,
        images: str,
        image_column: str = "image",
        caption_columns: Sequence[str] = ("caption",),
        split_column: str | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        split_seed: int = 0,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: str | None = None,
    ) -> None:
        super().__init__(name, images, skip_missing, skip_empty, leave_out)
        if isinstance(caption_columns, str) or not caption_columns:
            raise ValueError(f"caption_columns must be a list of names, got {caption_columns!r}")
        self.file, self.image_column, self.caption_columns = table, image_column, tuple(caption_columns)
        self.split_column, self.split_seed = split_column, split_seed
        self.shares: dict[Split, float] = {"val": val_share, "test": test_share}

    def read(self) -> Records:
        """The records of all splits."""
        path = Path(expand(self.file))
        rows = read_rows(path)
        if not rows:
            raise ValueError(f"{path} holds no rows")
        captions: list[tuple[str, str, str | None]] = []
        split_of: dict[str, list[str]] = {}
        for number, row in enumerate(rows, start=1):
            where = f"{path}, row {number}"
            image = str(_cell(where, row, self.image_column) or "").strip()
            image = posixpath.normpath(image) if image else ""  # ./a.jpg is a.jpg
            if not image:
                raise ValueError(f"{where} names no image under {self.image_column!r}")
            captions += [(image, image, text) for text in self._captions(where, row)]
            if self.split_column is not None:
                value = _split(where, _cell(where, row, self.split_column))
                split_of.setdefault(image, []).append(value)
        records = grouped(captions)
        if self.split_column is not None:  # an image that rows put into two splits stays in both, to be found as a leak
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

    def _captions(self, where: str, row: dict[str, Any]) -> list[str | None]:
        cells: list[list[str]] = []
        for column in self.caption_columns:
            value = _cell(where, row, column)
            texts = list(value) if isinstance(value, list | tuple) else [value]
            if not all(text is None or isinstance(text, str) for text in texts):
                raise ValueError(f"{where} has {value!r} under {column!r}, expected text or a list of texts")
            cells.append([text or "" for text in texts])
        told = [texts for texts in cells if any(text.strip() for text in texts)]
        captions: list[str | None] = [text for texts in told or cells[:1] for text in texts]
        return captions or [None]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a table.

    Raises:
        ValueError: no such file, another suffix, not UTF-8, or a line that cannot be read (which).
    """
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path} ends in {path.suffix!r}, expected one of {', '.join(readers)}")
    if not path.is_file():
        raise ValueError(f"no table at {path}")
    try:
        return readers[path.suffix](path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _read_csv(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        rows = []
        try:
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}, line {reader.line_num} has more cells than the header: quote its commas")
                rows.append(row)
        except csv.Error as error:
            where = f"{path}, the row that begins in line {reader.line_num + 1}"
            raise ValueError(f"{where}: {error}; close or double its quotation marks") from error
        return rows


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number} is no object")
            if row:
                rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    return rows


def _cell(where: str, row: dict[str, Any], column: str) -> Any:
    if column not in row:
        raise ValueError(f"{where} has no {column!r}; it has {', '.join(map(str, row))}")
    return row[column]


def _split(where: str, value: Any) -> Split:
    split = _SPLIT_OF.get(str(value).strip().lower())
    if split is None:
        raise ValueError(f"{where} has the split {value!r}, expected one of {', '.join(_SPLIT_OF)}")
    return split
