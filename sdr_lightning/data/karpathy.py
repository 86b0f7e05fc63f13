"""Karpathy's annotation files with an image folder: Flickr8k, Flickr30K, MS-COCO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sdr_lightning.data.files import ImageFiles
from sdr_lightning.data.source import Pixels, Source
from sdr_lightning.data.table import SPLITS, CaptionTable, Split
from sdr_lightning.paths import expand

_SPLIT_OF: dict[str, Split] = {"train": "train", "restval": "train", "val": "val", "test": "test"}


class KarpathySource(Source):
    """Annotations in Karpathy's JSON schema and the images that they name.

    Images are known by their file name, captions by their ``sentid``; ``restval`` counts as training data.

    Args:
        annotations: the JSON file; ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        images: the folder that the file names (with ``filepath`` where an entry has one) are relative to.
        name: of the collection; the file's name without ``dataset_`` when None.
        skip_missing: leave out images that are not in the folder, instead of refusing the collection.
    """

    def __init__(self, annotations: str, images: str, name: str | None = None, skip_missing: bool = False) -> None:
        self.annotations, self.root = annotations, images
        self.name = name if name is not None else Path(annotations).stem.removeprefix("dataset_")
        self.skip_missing = skip_missing

    def table(self, split: Split) -> CaptionTable:
        """Images and captions of a split.

        Raises:
            ValueError: a variable is not set, the file is absent or malformed, or images are missing (counted, the
                first five named).
        """
        entries = self._entries(split)
        return CaptionTable(
            self.name,
            split,
            [entry["filename"] for entry in entries],
            [" ".join(sentence["raw"].split()) for entry in entries for sentence in entry["sentences"]],
            [str(sentence["sentid"]) for entry in entries for sentence in entry["sentences"]],
            np.repeat(np.arange(len(entries)), [len(entry["sentences"]) for entry in entries]),
        )

    def images(self, split: Split) -> Sequence[Pixels]:
        """The image files of a split."""
        return ImageFiles([self._path(entry) for entry in self._entries(split)])

    def _path(self, entry: dict[str, Any]) -> Path:
        return Path(expand(self.root)) / str(entry.get("filepath", "")) / str(entry["filename"])

    def _entries(self, split: Split) -> list[dict[str, Any]]:
        entries = _read(Path(expand(self.annotations)))[split]
        missing = [entry for entry in entries if not self._path(entry).is_file()]
        if missing and not self.skip_missing:
            first = ", ".join(str(self._path(entry)) for entry in missing[:5])
            raise ValueError(
                f"{len(missing)} of {len(entries)} {split} images of {self.name} are missing, first: {first}; "
                "complete the folder, or leave them out with --data.init_args.source.init_args.skip_missing true"
            )
        return [entry for entry in entries if self._path(entry).is_file()] if missing else entries


@lru_cache(maxsize=2)
def _read(path: Path) -> dict[Split, list[dict[str, Any]]]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no annotation file at {path} ({error.strerror}): expected Karpathy's JSON") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        raise ValueError(f"{path} is not in Karpathy's schema: expected an object with a list under 'images'")
    splits: dict[Split, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for number, entry in enumerate(document["images"]):
        _check(path, number, entry)
        if entry["sentences"]:
            splits[_SPLIT_OF[entry["split"]]].append(entry)
    return splits


def _check(path: Path, number: int, entry: Any) -> None:
    where = f"{path}: images[{number}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is {type(entry).__name__}, expected an object")
    for key in ("filename", "split", "sentences"):
        if key not in entry:
            raise ValueError(f"{where} has no {key!r}; it has {', '.join(sorted(entry))}")
    if not isinstance(entry["split"], str) or entry["split"] not in _SPLIT_OF:
        raise ValueError(f"{where} has the split {entry['split']!r}, expected one of {', '.join(_SPLIT_OF)}")
    if not isinstance(entry["sentences"], list):
        raise ValueError(f"{where} ({entry['filename']}) has no list under 'sentences'")
    for sentence in entry["sentences"]:
        text = sentence.get("raw") if isinstance(sentence, dict) else None
        if not isinstance(text, str) or not text.strip() or "sentid" not in sentence:
            raise ValueError(
                f"{where} ({entry['filename']}) has a sentence without text under 'raw' or without 'sentid'"
            )
