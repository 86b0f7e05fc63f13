"""Images and captions of one split from an annotation file alone, whichever of the known formats it is in."""

from __future__ import annotations

from pathlib import Path

from sdr_lightning.data.coco import CocoSource
from sdr_lightning.data.karpathy import read_karpathy
from sdr_lightning.data.lists import ListSource
from sdr_lightning.data.records import Records, find_problems, tabulate
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.paths import read_json


def read_annotations(path: Path, split: Split) -> CaptionTable:
    """The captions of a split, and which image each is of; no image is looked for.

    Args:
        path: Karpathy's JSON (which names the splits), a list of ``{"image", "caption"}`` or a COCO-style file (each of which
            is one split).
        split: which split.

    Raises:
        ValueError: the file is absent, malformed, in none of these formats, or without the split.
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
            f"{path} is in no known format: expected Karpathy's JSON, a list of objects with 'image' and 'caption', or a "
            "COCO-style file"
        )
    if split not in records:
        raise ValueError(f"{path} has no {split} split; it has {', '.join(records) or 'none'}")
    problems = [problem for problem in find_problems(split, records[split], {split: records[split]}) if problem.fatal]
    if problems:
        raise ValueError(f"{path} {problems[0]}")
    return tabulate(name, split, records[split])
