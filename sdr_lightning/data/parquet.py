"""Collections that Hugging Face ``datasets`` reads: parquet from the hub or from disk, one row per image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import numpy as np

from sdr_lightning.data.files import to_rgb
from sdr_lightning.data.source import Pixels, Source
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.paths import expand


class ParquetSource(Source):
    """Rows with an image and a list of captions, through :func:`datasets.load_dataset`.

    Args:
        path: a hub name, or a folder of parquet files named after their splits. ``$NAME`` and ``${NAME:-default}`` are
            filled in from the environment.
        name: of the collection; part of every fingerprint.
        revision: commit of the hub's repository; pin it, so that the data cannot change under a study.
        id_column: unique name of an image, such as its file name.
        image_column: the image.
        caption_column: the captions, a list or a single one.
        splits: name of each split there.
    """

    def __init__(
        self,
        path: str,
        name: str,
        revision: str | None = None,
        id_column: str = "filename",
        image_column: str = "image",
        caption_column: str = "caption",
        splits: dict[str, str] | None = None,
    ) -> None:
        self.path, self.name, self.revision = expand(path), name, revision
        self.id_column, self.image_column, self.caption_column = id_column, image_column, caption_column
        self.splits = splits or {"train": "train", "val": "val", "test": "test"}

    def table(self, split: Split) -> CaptionTable:
        """Images and captions of a split; caption k of image ``x`` has the id ``x#k``.

        Raises:
            ValueError: the collection cannot be had, or lacks a column.
        """
        rows = self._rows(split)
        names = [str(name) for name in rows[self.id_column]]
        captions = [
            [" ".join(str(text).split()) for text in ([texts] if isinstance(texts, str) else texts or [])]
            for texts in rows[self.caption_column]
        ]
        empty = [name for name, texts in zip(names, captions, strict=True) if not texts or not all(texts)]
        if empty:
            raise ValueError(
                f"{self.name} {split}: {len(empty)} images have no caption or an empty one, first {empty[0]!r}"
            )
        return CaptionTable(
            self.name,
            split,
            names,
            [text for texts in captions for text in texts],
            [f"{name}#{k}" for name, texts in zip(names, captions, strict=True) for k in range(len(texts))],
            np.repeat(np.arange(len(names)), [len(texts) for texts in captions]),
        )

    def images(self, split: Split) -> Sequence[Pixels]:
        """The images of a split, decoded when they are asked for."""
        return _ParquetImages(self._rows(split), self.image_column)

    def _rows(self, split: Split) -> Any:
        if split not in self.splits:
            raise ValueError(f"{self.name} has no split {split!r}; its splits are {self.splits}")
        rows = _load(self.path, self.revision, self.splits[split])
        for column in (self.id_column, self.image_column, self.caption_column):
            if column not in rows.column_names:
                raise ValueError(f"{self.path} has no column {column!r}; it has {', '.join(rows.column_names)}")
        return rows


class _ParquetImages(Sequence[Pixels]):
    def __init__(self, rows: Any, column: str) -> None:
        self.rows, self.column = rows, column

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, row: int) -> Pixels: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, row: int | slice) -> Pixels | Sequence[Pixels]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        try:
            return to_rgb(self.rows[int(row)][self.column])
        except (AttributeError, OSError) as error:  # null, or bytes that are no image
            raise ValueError(f"row {row} of the column {self.column!r} holds no readable image: {error}") from error


@lru_cache(maxsize=6)
def _load(path: str, revision: str | None, split: str) -> Any:
    from datasets import load_dataset

    where = Path(path)
    try:
        if where.is_dir():
            files = sorted(str(file) for file in where.glob(f"**/{split}*.parquet"))
            if not files:
                raise ValueError(f"no parquet files for the split {split!r} in {path}: expected {split}*.parquet")
            return load_dataset("parquet", data_files={split: files}, split=split)
        return load_dataset(path, revision=revision, split=split)
    except (OSError, ConnectionError, RuntimeError) as error:
        raise ValueError(
            f"the data set {path!r} is neither a local folder nor to be had from the hub ({type(error).__name__}): "
            "download it where there is a network and pass its folder as data.init_args.source.init_args.path"
        ) from error
