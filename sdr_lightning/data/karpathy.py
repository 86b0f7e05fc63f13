"""Karpathy's annotation files with an image folder: Flickr8k, Flickr30K and MS-COCO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdr_lightning.data.records import Record, Records, one_line
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import Split
from sdr_lightning.paths import FilePath, expand, read_json

_SPLIT_OF: dict[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class KarpathySource(FolderSource):
    """Annotations in Karpathy's JSON schema, with an image folder.

    Image ids are file names, caption ids are ``sentid``; ``restval`` is part of the training split.

    Args:
        annotations: the JSON file; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        images: folder of the images; paths below it are ``filepath/filename`` or ``filename``.
        name: name of the collection; the file's name without ``dataset_`` when None.
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.
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
        """Read the records of all splits in the file."""
        return read_karpathy(Path(expand(self.annotations)))


def read_karpathy(path: Path) -> Records:
    """Read an annotation file in Karpathy's schema.

    Args:
        path: the JSON file.

    Returns:
        Records by split, with ``filepath/filename`` as reference.

    Raises:
        ValueError: the file is missing or malformed; with the entry.
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
