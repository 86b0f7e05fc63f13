"""The table of the kept pairs, which a student is trained on."""

from __future__ import annotations

import csv
import json
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import yaml

from sdr_lightning.data.images import ImageFiles
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.records import captions_in, one_line
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import SPLITS
from sdr_lightning.data.tabular import TabularSource, read_rows
from sdr_lightning.paths import expand

_HEADER = """\
# Overlay: train on the pairs that sdr clean kept: sdr fit --config EXPERIMENT.yaml --config FOLDER/kept.yaml
"""


def write_kept(data: RetrievalDataModule, removed: Set[str], path: Path) -> None:
    """Write the pairs of all splits without the removed ones, verbatim, as CSV in UTF-8.

    The table of a :class:`~sdr_lightning.data.TabularSource` keeps its columns, and what remains of its rows. Other collections
    become a table with the columns image, caption and split.

    Args:
        data: the data module.
        removed: ids of captions.
        path: the file.

    Raises:
        ValueError: the user's table has changed since it was read.
    """
    source = data.source
    if isinstance(source, TabularSource):
        rows = read_rows(Path(expand(source.file)), source.image_column)
        columns = list({column: None for row in rows for column in row})
        _write(path, columns, _kept_rows(source, rows, removed))
        _check(source, path, removed)
    else:
        _write(path, ["image", "caption", "split"], _pairs(data, removed))


def kept_overlay(data: RetrievalDataModule, table: Path) -> str | None:
    """Return a configuration that trains on the kept pairs instead of all, as YAML; None if their images are no files.

    Args:
        data: the data module.
        table: where the kept pairs will be.
    """
    source: dict[str, Any]
    if isinstance(data.source, TabularSource):
        source = {"init_args": {"table": str(table)}}
    elif isinstance(data.source, FolderSource):
        images = str(expand(data.source.root))
        arguments = {"name": data.source.name, "table": str(table), "images": images, "split_column": "split"}
        source = {"class_path": "sdr_lightning.data.TabularSource", "init_args": arguments}
    else:
        return None
    overlay = {"data": {"init_args": {"source": source}}}
    return _HEADER + yaml.safe_dump(overlay, sort_keys=False, allow_unicode=True, width=1000)


def _kept_rows(source: TabularSource, rows: Sequence[Mapping[str, Any]], removed: Set[str]) -> Iterator[dict[str, Any]]:
    """Yield rows without the removed captions; rows without any caption left are dropped if one was removed."""
    numbers: Counter[str] = Counter()
    for where, row in enumerate(rows, start=1):
        image = posixpath.normpath(str(row[source.image_column]).strip())
        kept, changed, left = dict(row), False, False
        for column, texts in _filled(source, row, where).items():
            names = [f"{image}#{numbers[image] + place}" for place in range(len(texts))]
            numbers[image] += len(texts)
            remaining = [text for name, text in zip(names, texts, strict=True) if name not in removed]
            left = left or bool(remaining)
            if len(remaining) < len(texts):
                changed = True
                kept[column] = "" if not remaining else remaining if len(texts) > 1 else remaining[0]
        if left or not changed:
            yield kept


def _filled(source: TabularSource, row: Mapping[str, Any], where: int) -> dict[str, list[str]]:
    """Return the captions by column, as :class:`TabularSource` reads them: empty cells count only if all are empty."""
    texts: dict[str, list[str]] = {}
    for column in source.caption_columns:
        cell = row[column]
        texts[column] = [""] if cell is None else [text or "" for text in captions_in(cell, f"row {where}", column)]
    filled = {column: found for column, found in texts.items() if any(text.strip() for text in found)}
    return filled or dict([next(iter(texts.items()))])


def _check(source: TabularSource, path: Path, removed: Set[str]) -> None:
    """Read the table back: every caption that was not removed must be in it, in order, and no other."""
    written = TabularSource(
        source.name, str(path), source.root, source.image_column, source.caption_columns, source.split_column,
        source.shares["val"], source.shares["test"], source.split_seed,
    )  # fmt: skip
    before, after = source.read(), written.read()
    for split in SPLITS:
        expected = [
            (record.image_id, caption)
            for record in before.get(split, [])
            for name, caption in zip(record.caption_ids, record.captions, strict=True)
            if name not in removed
        ]
        found = [(record.image_id, caption) for record in after.get(split, []) for caption in record.captions]
        if found != expected:
            raise ValueError(f"{source.file} changed while its pairs were judged: run the command again")


def _pairs(data: RetrievalDataModule, removed: Set[str]) -> Iterator[dict[str, Any]]:
    for split in data.source.splits:
        table, images = data.source.table(split), data.source.images(split)
        names = images.names if isinstance(images, ImageFiles) else table.image_ids
        for name, caption, image in zip(table.caption_ids, table.captions, table.caption_image.tolist(), strict=True):
            if name not in removed:
                yield {"image": names[image], "caption": caption, "split": split}


def _write(path: Path, columns: Sequence[str], rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return json.dumps([one_line(text) if isinstance(text, str) else text for text in value], ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, default=str)
