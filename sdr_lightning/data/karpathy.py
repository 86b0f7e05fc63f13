"""Karpathy's annotation files with an image folder: Flickr8k, Flickr30K, MS-COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdr_lightning.data.records import Record, Records, one_line
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import Split
from sdr_lightning.paths import FilePath, expand, read_json

_SPLIT_OF: dict[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class KarpathySource(FolderSource):
    """Annotations in Karpathy's JSON schema and the images that they name.

    Images are known by their file name, captions by their ``sentid``; ``restval`` counts as training data.

    Args:
        annotations: the JSON file; ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        images: the folder that the file names (with ``filepath`` where an entry has one) are relative to.
        name: of the collection; the file's name without ``dataset_`` when None.
        skip_missing: leave out images that are not in the folder, instead of refusing the collection.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line.
    """

    def __init__(
        self,
        annotations: FilePath,
        images: FilePath,
        name: str | None = None,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        name = name if name is not None else Path(annotations).stem.removeprefix("dataset_")
        super().__init__(name, images, skip_missing, skip_empty, leave_out)
        self.annotations = annotations

    def read(self) -> Records:
        """The records of all splits that occur in the file."""
        return read_karpathy(Path(expand(self.annotations)))


def read_karpathy(path: Path) -> Records:
    """Read an annotation file.

    Args:
        path: the JSON file.

    Returns:
        Records by split, each with ``filepath/filename`` as its reference.

    Raises:
        ValueError: the file is absent or malformed; names the entry.
    """
    document = read_json(path, "Karpathy's JSON")
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise ValueError(f"{path} is not in Karpathy's schema: expected an object with a list under 'images'")
    splits: dict[Split, list[Record]] = {}
    for number, entry in enumerate(document["images"]):
        _check(path, number, entry)
        folder, name, sentences = entry.get("filepath"), entry["filename"], entry["sentences"]
        splits.setdefault(_SPLIT_OF[entry["split"]], []).append(
            Record(
                name,
                f"{folder}/{name}" if folder else name,
                [one_line(sentence["raw"]) for sentence in sentences],
                [str(sentence["sentid"]) for sentence in sentences],
            )
        )
    return splits


def _check(path: Path, number: int, entry: Any) -> None:
    where = f"{path}: images[{number}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {type(entry).__name__}, expected an object")
    for key in ("filename", "split", "sentences"):
        if key not in entry:
            raise ValueError(f"{where} has no {key!r}; it has {', '.join(sorted(entry))}")
    if not isinstance(entry["filename"], str):
        raise ValueError(f"{where} has the filename {entry['filename']!r}, expected text")
    if not isinstance(entry["split"], str) or entry["split"] not in _SPLIT_OF:
        raise ValueError(f"{where} has the split {entry['split']!r}, expected one of {', '.join(_SPLIT_OF)}")
    if not isinstance(entry["sentences"], list):
        raise ValueError(f"{where} ({entry['filename']}) has no list under 'sentences'")
    for sentence in entry["sentences"]:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str) or "sentid" not in sentence:
            raise ValueError(
                f"{where} ({entry['filename']}) has a sentence without text under 'raw' or without 'sentid'"
            )
