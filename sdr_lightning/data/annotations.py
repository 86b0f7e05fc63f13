"""Images and captions of one split, read from an annotation file in any of the supported formats."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.coco import CocoSource
from sdr_lightning.data.karpathy import read_karpathy
from sdr_lightning.data.lists import ListSource
from sdr_lightning.data.records import Records, find_problems, tabulate
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.paths import read_json


class Annotations(NamedTuple):
    """The captions of a split and their order in the file.

    Attributes:
        table: images in the order of the file, captions image by image.
        file_rows: (C,) int64, the position of each caption of the table among the split's captions in the file.
    """

    table: CaptionTable
    file_rows: NDArray[np.int64]

    @property
    def are_grouped(self) -> bool:
        """Whether the file lists the captions image by image."""
        return bool((np.diff(self.file_rows) == 1).all())


def read_annotations(path: Path, split: Split) -> Annotations:
    """Read the captions of a split and their images' ids; image files are not required.

    Args:
        path: Karpathy's JSON (which names the splits), or a list of ``{"image", "caption"}`` or a COCO-style file (which hold
            one split).
        split: the split.

    Returns:
        The captions and their order in the file.

    Raises:
        ValueError: the file is missing, malformed, in an unknown format, or lacks the split.
    """
    document = read_json(path, "an annotation file")
    name = path.stem.removeprefix("dataset_")
    records: Records
    if isinstance(document, list):
        records = ListSource(name, "", **{split: [str(path)]}).read()  # type: ignore[arg-type]
    elif isinstance(document, dict) and "annotations" in document:
        records = CocoSource(name, "", {split: str(path)}).read()
    elif isinstance(document, dict) and "images" in document:
        records = read_karpathy(path)
    else:
        raise ValueError(
            f"{path} is in an unknown format: expected Karpathy's JSON, a list of objects with 'image' and 'caption', or a "
            "COCO-style file"
        )
    if split not in records:
        raise ValueError(f"{path} has no {split} split; it has {', '.join(records) or 'none'}")
    problems = [problem for problem in find_problems(split, records[split], {split: records[split]}) if problem.fatal]
    if problems:
        raise ValueError(f"{path} {problems[0]}")
    table = tabulate(name, split, records[split])
    row = {image: number for number, image in enumerate(table.image_ids)}
    in_file = np.array([row[image] for image in _images_of_captions(document, table)], dtype=np.int64)
    return Annotations(table, np.argsort(in_file, kind="stable"))


def _images_of_captions(document: Any, table: CaptionTable) -> list[str]:
    """Return the image of each caption in the order of the file; the document has been validated."""
    if isinstance(document, list):
        captions = [[entry["caption"]] if isinstance(entry["caption"], str) else entry["caption"] for entry in document]
        return [posixpath.normpath(entry["image"]) for entry, own in zip(document, captions, strict=True) for _ in own]
    if "annotations" in document:
        place = dict(zip((image["id"] for image in document["images"]), table.image_ids, strict=True))
        used = set(table.caption_ids)  # without rejected captions
        images = ((place[entry["image_id"]], entry["id"]) for entry in document["annotations"])
        return [image for image, number in images if f"{image}#{number}" in used]
    return [table.image_ids[row] for row in table.caption_image.tolist()]  # Karpathy: captions are grouped by image
