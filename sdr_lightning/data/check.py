"""Whether a collection on disk is complete and right: everything that is wrong with it, at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdr_lightning.data.images import UNREADABLE, ImageFiles, Images
from sdr_lightning.data.imbalance import imbalanced
from sdr_lightning.data.known import KNOWN_SIZES
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.records import Problem
from sdr_lightning.data.table import CaptionTable, Split

_ORIENTATION = 0x0112  # the EXIF tag
_ORDINARY = ("RGB", "upright")


class SplitSize(NamedTuple):
    """How large a split is.

    Attributes:
        split: which split.
        images: number of images.
        captions: number of captions.
        fewest: captions of the image with the fewest.
        most: captions of the image with the most.
        expected: images and captions of the known split; None where the collection is not known.
    """

    split: Split
    images: int
    captions: int
    fewest: int
    most: int
    expected: tuple[int, int | None] | None


class Findings(NamedTuple):
    """What a check found.

    Attributes:
        sizes: of the splits that can be read.
        problems: everything that is wrong, or worth knowing.
        unusable: ids of images that are missing or cannot be read.
    """

    sizes: list[SplitSize]
    problems: list[Problem]
    unusable: list[str]

    @property
    def fatal(self) -> bool:
        """Whether training would fail."""
        return any(problem.fatal for problem in self.problems)


def check(data: RetrievalDataModule, decode: bool, progress: Callable[[Split, int, int], object]) -> Findings:
    """Check everything that training and evaluation would read.

    Args:
        data: the data module.
        decode: read every image; otherwise only see whether it is there.
        progress: called with a split, the images done and the images there are.

    Raises:
        ValueError: the annotations cannot be read at all.
    """
    findings = Findings([], [], [])
    for split in data.source.splits:
        found = data.source.problems(split)
        findings.problems.extend(found)
        findings.unusable.extend(data.source.absent(split))
        if not any(problem.fatal for problem in found):
            table = data.source.table(split)
            size = _size(table)
            findings.sizes.append(size)
            findings.problems.extend(_known(size))
            findings.problems.extend(_settings(data, table))
        if decode:
            ids, images = data.source.there(split)
            look = _stream if images.one_after_another else _decode
            read = look(split, ids, images, progress)
            findings.problems.extend(read.problems)
            findings.unusable.extend(read.unusable)
    for split in ("train", "val"):
        if split not in data.source.splits:
            remedy = "sdr fit needs it"
            findings.problems.append(Problem(split, "splits are not there", 1, 1, (split,), remedy))
    try:
        _ = data.tokenizer.vocabulary_size
    except ValueError as error:
        findings.problems.append(Problem("all", "tokenizers cannot be had", 1, 1, (str(error),), "see there"))
    return findings


def _size(table: CaptionTable) -> SplitSize:
    counts = np.bincount(table.caption_image, minlength=len(table.image_ids))
    expected = KNOWN_SIZES.get(table.name, {}).get(table.split)
    return SplitSize(table.split, len(counts), len(table.captions), int(counts.min()), int(counts.max()), expected)


def _known(size: SplitSize) -> list[Problem]:
    if size.expected is None:
        return []
    images, captions = size.expected
    if size.images == images and captions in (None, size.captions):
        return []
    found = f"{size.images:,} images and {size.captions:,} captions"
    remedy = "results are not comparable with published ones"
    missing = abs(images - size.images)
    return [Problem(size.split, "images more or fewer than published", missing, images, (found,), remedy, False)]


def _settings(data: RetrievalDataModule, table: CaptionTable) -> list[Problem]:
    problems = []
    for what, refuse in (
        ("imbalances do not fit", lambda: imbalanced(table, data.imbalances)),
        ("settings do not fit the images", lambda: data.refuse(table.split, data.source.images(table.split))),
    ):
        try:
            refuse()
        except ValueError as error:
            problems.append(Problem(table.split, what, 1, 1, (str(error),), "see there"))
    return problems


def _stream(
    split: Split, ids: Sequence[str], images: Images, progress: Callable[[Split, int, int], object]
) -> Findings:
    done = 0
    try:
        for _ in images.stream():
            done += 1
            progress(split, done, len(images))
    except ValueError as error:
        remedy = f"name its id in the source's leave_out; {len(images) - done - 1} images behind it were not read"
        return Findings([], [Problem(split, "images cannot be read", 1, len(images), (str(error),), remedy)], [])
    return Findings([], [], [])


def _decode(
    split: Split, ids: Sequence[str], images: Images, progress: Callable[[Split, int, int], object]
) -> Findings:
    def look(row: int) -> tuple[str, str] | None:
        try:
            return _look(images, row)
        except ValueError:
            return None

    broken: list[int] = []
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, seen in enumerate(pool.map(look, range(len(images)))):
            if seen is None:
                broken.append(row)
            else:
                kinds.update(kind for kind in seen if kind not in _ORDINARY)
            progress(split, row + 1, len(images))
    problems = []
    unusable = [ids[row] for row in broken]
    if broken:
        remedy = "replace them, or write their ids with --unusable FILE and name it as the source's leave_out"
        problems.append(Problem(split, "images cannot be read", len(broken), len(images), tuple(unusable[:5]), remedy))
    for kind, number in sorted(kinds.items()):
        problems.append(
            Problem(split, f"images are {kind}", number, len(images), (kind,), "they are read as upright RGB", False)
        )
    return Findings([], problems, unusable)


def _look(images: Images, row: int) -> tuple[str, str]:
    """Mode and orientation of an image that can be read to its end."""
    if not isinstance(images, ImageFiles):
        _ = images[row]
        return _ORDINARY
    path = images.path(row)
    try:
        with Image.open(path) as image:
            mode = image.mode
            turned = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
            image.draft(mode, (image.width // 8, image.height // 8))  # JPEG: the whole stream, an eighth of the pixels
            image.load()
    except UNREADABLE as error:
        raise ValueError(f"{path}: {error}") from error
    return mode, "turned by EXIF" if turned else "upright"
