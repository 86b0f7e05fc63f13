"""COCO-style annotations: MS-COCO's own files, and VizWiz-Captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdr_lightning.data.holdout import held_out
from sdr_lightning.data.records import Record, Records, one_line
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import SPLITS
from sdr_lightning.paths import FilePath, expand, read_json


class CocoSource(FolderSource):
    """JSON with a list of ``images`` and a list of ``annotations`` that refer to them by ``image_id``.

    Image ids are folder and file name; caption ids are image id and annotation ``id``.

    Args:
        name: name of the collection.
        images: folder that contains ``folders``.
        annotations: file of each split; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        folders: image folder of each split; the name of the split by default.
        validation_share: share of the training images used as validation split if ``annotations`` has none, in [0, 1);
            chosen by a hash of folder and file name.
        keep_rejected: keep captions marked ``is_rejected`` (VizWiz: spam).
        keep_precanned: keep captions marked ``is_precanned`` (VizWiz: "Quality issues are too severe ...").
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.

    Raises:
        ValueError: an unknown split, or a validation_share together with a validation file or without a training file.
    """

    def __init__(
        self,
        name: str,
        images: FilePath,
        annotations: dict[str, FilePath],
        folders: dict[str, str] | None = None,
        validation_share: float = 0.0,
        keep_rejected: bool = False,
        keep_precanned: bool = False,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        super().__init__(name, images, skip_missing, skip_empty, leave_out)
        wrong = sorted({*annotations, *(folders or {})} - set(SPLITS))
        if wrong:
            raise ValueError(f"{name} has files for {wrong[0]!r}, expected splits among {', '.join(SPLITS)}")
        if validation_share and "val" in annotations:
            raise ValueError(f"{name} names a validation file and a validation_share: drop one of the two")
        if validation_share and "train" not in annotations:
            raise ValueError(f"{name} names a validation_share and no training file to take it from: add the file")
        self.annotations, self.folders, self.validation_share = annotations, folders or {}, validation_share
        flags = {"is_rejected": keep_rejected, "is_precanned": keep_precanned}
        self.unwanted = [flag for flag, keep in flags.items() if not keep]

    def read(self) -> Records:
        """Read the records of the splits that have files."""
        found = {
            split: self._read(Path(expand(self.annotations[split])), self.folders.get(split, split))
            for split in SPLITS
            if split in self.annotations
        }
        if self.validation_share:
            chosen = held_out([r.image_id for r in found["train"]], {"val": self.validation_share}, seed=0)
            found["val"] = [r for r, split in zip(found["train"], chosen, strict=True) if split == "val"]
            found["train"] = [r for r, split in zip(found["train"], chosen, strict=True) if split == "train"]
        return found

    def _read(self, path: Path, folder: str) -> list[Record]:
        document = read_json(path, "COCO-style JSON")
        if not isinstance(document, dict) or not isinstance(document.get("images"), list):
            raise ValueError(
                f"{path} is not COCO-style: expected an object with lists under 'images' and 'annotations'"
            )
        if not isinstance(document.get("annotations"), list):
            raise ValueError(f"{path} has no list under 'annotations': its captions are hidden, or it is another file")
        images: dict[int | str, str] = {}
        for number, image in enumerate(document["images"]):
            identifier = _image_id(path, number, image)
            if identifier in images:
                raise ValueError(f"{path}: images[{number}] has the id {identifier!r} of an image before it")
            images[identifier] = image["file_name"]
        captions: dict[int | str, list[tuple[str, str]]] = {identifier: [] for identifier in images}
        for number, entry in enumerate(document["annotations"]):
            caption = _caption(path, number, entry)
            if entry["image_id"] not in captions:
                raise ValueError(
                    f"{path}: annotations[{number}] is of the image {entry['image_id']!r}, which is not under 'images'"
                )
            if not any(entry.get(flag) for flag in self.unwanted):
                captions[entry["image_id"]].append((caption, str(entry["id"])))
        records = []
        for identifier, name in images.items():
            place = f"{folder}/{name}" if folder else name
            texts = [caption for caption, _ in captions[identifier]]
            records.append(Record(place, place, texts, [f"{place}#{number}" for _, number in captions[identifier]]))
        return records


def _image_id(path: Path, number: int, image: Any) -> int | str:
    if not isinstance(image, dict) or not isinstance(image.get("file_name"), str):
        raise ValueError(f"{path}: images[{number}] is no object with 'id' and 'file_name'")
    identifier = image.get("id")
    if not isinstance(identifier, int | str):
        raise ValueError(f"{path}: images[{number}] has no number and no text under 'id'")
    return identifier


def _caption(path: Path, number: int, entry: Any) -> str:
    known = isinstance(entry, dict) and "id" in entry and isinstance(entry.get("image_id"), int | str)
    if not known or not isinstance(entry.get("caption"), str):
        raise ValueError(f"{path}: annotations[{number}] is no object with 'id', 'image_id' and text under 'caption'")
    return one_line(entry["caption"])
