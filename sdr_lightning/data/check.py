"""Check of a collection on disk: all problems are reported at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdr_lightning.data.images import ImageFiles, Images, orientation, reason, to_rgb
from sdr_lightning.data.imbalance import imbalanced
from sdr_lightning.data.known import KNOWN_SIZES
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.records import Problem
from sdr_lightning.data.table import CaptionTable, Split


class SplitSize(NamedTuple):
    """Size of a split.

    Attributes:
        split: the split.
        images: number of images.
        captions: number of captions.
        fewest: smallest number of captions of an image.
        most: largest number of captions of an image.
        expected: published numbers of images and captions; None for an unknown collection.
    """

    split: Split
    images: int
    captions: int
    fewest: int
    most: int
    expected: tuple[int, int | None] | None


class Findings(NamedTuple):
    """Results of a check.

    Attributes:
        sizes: sizes of the readable splits.
        problems: errors and notes.
        unusable: ids of images that are missing or unreadable.
    """

    sizes: list[SplitSize]
    problems: list[Problem]
    unusable: list[str]

    @property
    def fatal(self) -> bool:
        """Whether training would fail."""
        return any(problem.fatal for problem in self.problems)


def check(data: RetrievalDataModule, decode: bool, progress: Callable[[Split, int, int], object]) -> Findings:
    """Check everything that training and evaluation read.

    Args:
        data: the data module.
        decode: decode every image; otherwise only check that it exists.
        progress: callback with the split, the number of images done and the total number.

    Returns:
        Sizes, problems and ids of unusable images.

    Raises:
        ValueError: the annotations cannot be read.
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
            if split != "train":
                findings.problems.extend(_settings(data, table))
            if decode:
                findings.problems.extend(_tokens(data, table))
        if decode:
            ids, images = data.source.there(split)
            look = _stream if images.one_after_another else _decode
            read = look(split, ids, images, progress)
            findings.problems.extend(read.problems)
            findings.unusable.extend(read.unusable)
    for split in dict.fromkeys((*data.train_on, data.select_on)):
        if split not in data.source.splits:
            remedy = "sdr fit needs it"
            findings.problems.append(Problem(split, "splits are not there", 1, 1, (split,), remedy))
    if not findings.fatal:
        findings.problems.extend(_settings(data, data.table("train")))
    if (error := _no_tokenizer(data)) is not None:
        findings.problems.append(Problem("all", "tokenizers cannot be had", 1, 1, (error,), "see there"))
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
    items = table.captions if data.batches == "pairs" else table.image_ids
    if table.split == "train" and len(items) < data.batch_size:
        first = (f"batch size {data.batch_size} for {len(items)} training items",)
        remedy = "lower data.init_args.batch_size"
        problems.append(Problem("train", "batches are larger than the split", 1, 1, first, remedy))
    for what, refuse in (
        ("imbalances do not fit", lambda: imbalanced(table, data.imbalances)),
        ("settings do not fit the images", lambda: data.refuse(table.split, data.source.images(table.split))),
    ):
        try:
            refuse()
        except ValueError as error:
            problems.append(Problem(table.split, what, 1, 1, (str(error),), "see there"))
    return problems


def _no_tokenizer(data: RetrievalDataModule) -> str | None:
    try:
        _ = data.tokenizer.vocabulary_size
    except ValueError as error:
        return str(error)
    return None


def _tokens(data: RetrievalDataModule, table: CaptionTable) -> list[Problem]:
    """Report truncated captions and unknown words."""
    if _no_tokenizer(data) is not None:
        return []
    wording = data.train_wording if table.split == "train" else data.evaluation_wording
    captions = wording(table.captions)
    cut, unknown = data.tokenizer.losses(captions)
    limit = data.tokenizer.max_tokens
    found = (
        (
            f"captions are cut at {limit} tokens",
            cut,
            "raise data.init_args.tokenizer.init_args.max_tokens to keep them",
        ),
        ("captions have words that the tokenizer does not know", unknown, "they are read as its unknown token"),
    )
    return [
        Problem(
            table.split, what, len(rows), len(captions), tuple(_shown(captions[row]) for row in rows[:5]), remedy, False
        )
        for what, rows, remedy in found
        if rows
    ]


def _shown(caption: str) -> str:
    return caption if len(caption) <= 100 else f"{caption[:100]} ..."


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
    def look(row: int) -> tuple[str, ...] | ValueError:
        try:
            return _look(images, row)
        except ValueError as error:
            return error

    broken: dict[str, str] = {}  # id to reason
    kinds: Counter[str] = Counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, seen in enumerate(pool.map(look, range(len(images)))):
            if isinstance(seen, ValueError):
                broken[ids[row]] = str(seen)
            else:
                kinds.update(seen)
            progress(split, row + 1, len(images))
    problems = []
    if broken:
        remedy = "replace them, or write their ids with --unusable FILE and name it as the source's leave_out"
        first = tuple(f"{name}: {why}" for name, why in list(broken.items())[:5])
        problems.append(Problem(split, "images cannot be read", len(broken), len(images), first, remedy))
    for kind, number in sorted(kinds.items()):
        remedy = "they are read as upright RGB, with transparency on white"
        problems.append(Problem(split, f"images are {kind}", number, len(images), (kind,), remedy, False))
    return Findings([], problems, list(broken))


def _look(images: Images, row: int) -> tuple[str, ...]:
    """Decode an image as in training, at an eighth of the size if the format supports it, and name the conversions.

    Raises:
        ValueError: the image cannot be decoded; with the reason.
    """
    if not isinstance(images, ImageFiles):
        _ = images[row]
        return ()
    try:
        with Image.open(images.path(row)) as image:
            kinds = [image.mode] if image.mode != "RGB" else []
            kinds += ["turned by EXIF"] if orientation(image) != 1 else []
            eighth = max(1, image.width // 8), max(1, image.height // 8)
            image.draft(image.mode, eighth)  # JPEG: reads the whole stream, but computes fewer pixels
            _ = to_rgb(image)
    except Exception as error:  # decoders raise different exceptions for broken files
        raise ValueError(reason(error)) from error
    return tuple(kinds)
