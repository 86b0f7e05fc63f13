"""The annotation lists of the public SDR code, which are ALBEF's."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any

from sdr_lightning.data.records import Record, Records, grouped
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import Split
from sdr_lightning.paths import FilePath, expand, read_json


class ListSource(FolderSource):
    """JSON lists of ``{"image": path, "caption": text or list of texts}``, one file or several a split.

    Training files have an entry per caption, evaluation files an entry per image; either form is read in either place.
    Images are known by their path, captions by image and number.

    Args:
        name: of the collection.
        images: the folder that the paths are relative to.
        train: files of the training split; ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        val: files of the validation split.
        test: files of the test split.
        skip_missing: leave out images that are not in the folder, instead of refusing the collection.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line.
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
        """The records of the splits that have files."""
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
    return posixpath.normpath(entry["image"]), captions or [None]  # ./a.jpg is a.jpg
