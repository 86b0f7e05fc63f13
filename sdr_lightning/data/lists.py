"""Annotation lists of the public SDR code, in the format of ALBEF."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from sdr_lightning.data.records import Record, Records, grouped
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import Split
from sdr_lightning.paths import FilePath, expand, read_json


class ListSource(FolderSource):
    """JSON lists of ``{"image": path, "caption": text or list of texts}``, one or several files per split.

    Published training files have one entry per caption, evaluation files one per image; both forms are accepted for every
    split. Image ids are paths, caption ids are image id and number.

    Args:
        name: name of the collection.
        images: folder that the paths are relative to.
        train: files of the training split; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        val: files of the validation split.
        test: files of the test split.
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.
    """

    def __init__(
        self,
        name: str,
        images: FilePath,
        train: list[FilePath] | None = None,
        val: list[FilePath] | None = None,
        test: list[FilePath] | None = None,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        super().__init__(name, images, skip_missing, skip_empty, leave_out)
        files: dict[Split, list[str] | None] = {"train": train, "val": val, "test": test}
        self.files = {split: names for split, names in files.items() if names}

    def read(self) -> Records:
        """Read the records of the splits that have files."""
        return {split: _read([Path(expand(name)) for name in names]) for split, names in self.files.items()}


def _read(paths: list[Path]) -> list[Record]:
    rows: list[tuple[str, str, str | None]] = []
    for path in paths:
        document = read_json(path, 'a list of {"image", "caption"}')
        if not isinstance(document, list):
            raise ValueError(f"{path} holds {type(document).__name__}, expected a list of objects")
        for number, entry in enumerate(document):
            image, captions = _checked(f"{path}: [{number}]", entry)
            rows += [(image, image, caption) for caption in captions]
    return grouped(rows)


def _checked(where: str, entry: Any) -> tuple[str, list[str | None]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
        raise ValueError(f"{where} is no object with a path under 'image'")
    captions = entry.get("caption")
    captions = [captions] if isinstance(captions, str) else captions
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{where} ({entry['image']}) has no text and no list of texts under 'caption'")
    return posixpath.normpath(entry["image"]), captions or [None]  # ./a.jpg becomes a.jpg
