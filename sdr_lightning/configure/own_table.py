"""What the columns of a table of pairs are, guessed from its first rows. Imports nothing heavy."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sdr_lightning.tables import IMAGE_ENDINGS, SPLIT_OF

SAMPLE = 1_000
"""Rows that the columns are guessed from."""

_CAPTION_NAMES = ("caption", "sentence", "text", "description", "alt", "title", "comment", "raw")  # best first
_IMAGE_NAMES = ("image", "img", "photo", "picture", "file", "path")
_LOOKED_FOR = 50  # images whose files are looked for
_Row = Mapping[str, Any]


@dataclass(frozen=True)
class TableGuess:
    """The columns of a table, and the folder of its images.

    Attributes:
        table: the file.
        images: folder that the image paths are relative to.
        image_column: column of the image paths.
        caption_columns: columns of the captions.
        split_column: column of the split; None if there is none.
        rows: number of rows that the columns were guessed from, at most :data:`SAMPLE`.
        training_rows: rows of the whole table that are for training; their expected number where the split is drawn.
        found: number of images whose files exist, of those looked for.
        looked_for: number of images looked for.
        unused: the other columns.
    """

    table: Path
    images: Path
    image_column: str
    caption_columns: tuple[str, ...]
    split_column: str | None
    rows: int
    training_rows: int
    found: int
    looked_for: int
    unused: tuple[str, ...]


def guess_table(
    table: Path,
    images: Path | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] = (),
    split_column: str | None = None,
) -> TableGuess:
    """Guess what the columns of a table are.

    The image column is the one whose values end as image files do, or else one with the name of one; caption columns are
    chosen by name, or else by the number of words; the split column by its values.

    Args:
        table: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        images: folder of the images; None to look in the folder of the table and in those inside it.
        image_column: the image column, if known.
        caption_columns: the caption columns, if known.
        split_column: the split column, if known.

    Raises:
        ValueError: an unreadable or empty table, columns that do not exist or cannot be guessed, or no image is found.
    """
    reading = _rows(table)
    rows = list(islice(reading, SAMPLE))
    if not rows:
        raise ValueError(f"{table} holds no rows")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for name in (image_column, *caption_columns, split_column):
        if name is not None and name not in columns:
            raise ValueError(f"{table} has no column {name!r}; it has {', '.join(columns)}")
    image = image_column or _image_column(table, rows, columns)
    split = split_column or _split_column(rows, [name for name in columns if name not in (image, *caption_columns)])
    others = [name for name in columns if name not in (image, split)]
    captions = tuple(caption_columns) or _caption_columns(table, rows, others)
    paths = list(dict.fromkeys(str(row[image]).strip() for row in rows if row.get(image)))[:_LOOKED_FOR]
    folder, found = _image_folder(table, images, paths, image)
    splits = Counter("" if split is None else _split_of(row.get(split)) for row in chain(rows, reading))
    return TableGuess(
        table=table.resolve(),
        images=folder.resolve(),
        image_column=image,
        caption_columns=captions,
        split_column=split,
        rows=len(rows),
        training_rows=int(0.8 * splits[""]) if split is None else splits["train"],
        found=found,
        looked_for=len(paths),
        unused=tuple(name for name in others if name not in captions),
    )


def _rows(table: Path) -> Iterator[_Row]:
    """Read the rows, one after the other."""
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    if table.suffix not in readers:
        raise ValueError(f"{table} ends in {table.suffix!r}, expected a table: {', '.join(readers)}")
    if not table.is_file():
        raise ValueError(f"no table at {table}")
    try:
        yield from readers[table.suffix](table)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError) as error:
        raise ValueError(f"{table} cannot be read: {error}") from error


def _csv_rows(table: Path) -> Iterator[_Row]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{table}, line {reader.line_num} has more cells than the header: quote cells that hold the delimiter"
                )
            yield row


def _json_rows(table: Path) -> Iterator[_Row]:
    with table.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            row = json.loads(line) if line.strip() else None
            if not isinstance(row, dict | None):
                raise ValueError(f"{table}, line {number} is no object")
            if row:
                yield row


def _parquet_rows(table: Path) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        for batch in pq.ParquetFile(table).iter_batches(batch_size=SAMPLE):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{table} is not a parquet file: {error}") from error


def _image_column(table: Path, rows: Sequence[_Row], columns: Sequence[str]) -> str:
    for name in columns:
        if any(isinstance(row.get(name), bytes | dict) for row in rows[:_LOOKED_FOR]):
            raise ValueError(
                f"the column {name!r} of {table} holds images, not their paths: use HuggingFaceSource, see docs/data.md"
            )
    shares = {name: _share(rows, name, _is_image) for name in columns}
    likely = [name for name in columns if shares[name] > 0.5] or [name for name in columns if _rank(name, _IMAGE_NAMES)]
    if not likely:
        raise ValueError(
            f"no column of {table} holds paths of images (it has {', '.join(columns)}): give --image-column"
        )
    return max(likely, key=lambda name: (shares[name] > 0.5, _rank(name, _IMAGE_NAMES)))


def _caption_columns(table: Path, rows: Sequence[_Row], columns: Sequence[str]) -> tuple[str, ...]:
    words = {name: _mean_words(rows, name) for name in columns}
    named = [name for name in columns if _rank(name, _CAPTION_NAMES) and words[name] >= 1]
    likely = named or [name for name in columns if words[name] >= 2]
    if not likely:
        raise ValueError(f"no column of {table} holds captions (it has {', '.join(columns)}): give --caption-column")
    best = max(likely, key=lambda name: (_rank(name, _CAPTION_NAMES), words[name]))
    stem = _without_number(best)  # caption_0, caption_1, ... belong together
    return tuple(name for name in likely if name == best or (_without_number(name) == stem and name[-1:].isdigit()))


def _split_column(rows: Sequence[_Row], columns: Sequence[str]) -> str | None:
    return next((name for name in columns if _share(rows, name, _split_of) == 1), None)


def _image_folder(table: Path, images: Path | None, paths: Sequence[str], column: str) -> tuple[Path, int]:
    """The folder in which most images are, and how many of them."""
    if images is not None and not images.is_dir():
        raise ValueError(f"no folder of images at {images}")
    inside = [path for path in sorted(table.resolve().parent.iterdir()) if path.is_dir()]
    folders = [images] if images is not None else [table.resolve().parent, *inside]
    counts = {folder: sum((folder / path).is_file() for path in paths) for folder in folders}
    folder = max(folders, key=counts.__getitem__)
    if not counts[folder]:
        where = str(images) if images is not None else f"{folders[0]} and the folders in it"
        example = f", such as {paths[0]}" if paths else ""
        raise ValueError(
            f"none of the first {len(paths)} images of the column {column!r}{example} is in {where}: give "
            f"{'another ' if images is not None else ''}--images FOLDER, or --image-column"
        )
    return folder, counts[folder]


def _share(rows: Sequence[_Row], column: str, holds: Any) -> float:
    values = [row.get(column) for row in rows]
    return sum(bool(holds(value)) for value in values) / len(values)


def _split_of(value: Any) -> str | None:
    return SPLIT_OF.get(value.strip().lower()) if isinstance(value, str) else None


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and Path(value.strip()).suffix.lower() in IMAGE_ENDINGS


def _mean_words(rows: Sequence[_Row], column: str) -> float:
    """Words per filled cell; 0 for numbers."""
    cells = [row[column] for row in rows if row.get(column)]
    texts = [" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells]
    return sum(len(re.findall(r"[^\W\d_]+", text)) for text in texts if isinstance(text, str)) / max(1, len(texts))


def _rank(name: str, names: Sequence[str]) -> int:
    """How good the name of a column is, the greater the better: 0 for one that holds none of the names."""
    found = [place for place, word in enumerate(names) if word in name.lower()]
    return len(names) - found[0] if found else 0


def _without_number(name: str) -> str:
    return re.sub(r"[\W_]*\d+$", "", name)
