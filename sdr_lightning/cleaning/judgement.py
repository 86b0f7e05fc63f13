"""The judgement of every pair of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from sdr_lightning.cleaning.captions import EMPTY, FLAWS, flaws, normalised, num_shared
from sdr_lightning.cleaning.duplicates import NEAR_COSINE, Group, check_cosine, duplicate_groups, image_flags
from sdr_lightning.cleaning.suggestions import suggested_captions
from sdr_lightning.cleaning.teachers import TeacherChoice, fit_data, split_features
from sdr_lightning.data.id_list import read_ids
from sdr_lightning.data.images import AnyImage
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.source import RecordSource
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.functional.agreement import Level, PairAgreement, pair_agreement
from sdr_lightning.paths import expand
from sdr_lightning.progress import progress

MISMATCH = "mismatch"
DUPLICATE_PAIR = "duplicate pair"
Removable = Literal["mismatch", "leakage", "duplicates", "uninformative"]
REMOVABLE: dict[Removable, tuple[str, ...]] = {
    "mismatch": (MISMATCH,),
    "leakage": ("leaked image (exact)", "leaked image (near)"),
    "duplicates": (DUPLICATE_PAIR,),
    "uninformative": tuple(FLAWS),
}
"""What ``kept.csv`` can do without, with the flags that it stands for. Empty captions are never kept."""
DISAGREEMENT = (
    "the teachers agree no more on these pairs than on shuffled ones, so no pair can be judged: give other teachers or "
    "more pairs"
)
FEW_IMAGES = 500
"""Below it, the estimated share is too high on average, see docs/clean.md."""
EVEN = 0.5  # probability from which a pair is more likely wrong than right
_DIGITS = 4  # of probabilities


@dataclass(frozen=True)
class Empty:
    """An empty caption, which has no features.

    Attributes:
        caption_id: its id.
        image_id: id of its image.
    """

    caption_id: str
    image_id: str


@dataclass(frozen=True)
class Cleaned:
    """What was found in a split.

    Attributes:
        data: the data module.
        split: the judged split.
        table: its captions, without empty ones.
        level: what was judged: each pair, or an image with all its captions.
        mismatch: (C,) float64 probability of each pair to be wrong, in [0, 1], rounded to four digits; NaN where the teachers do
            not agree.
        order: (C,) rows of the pairs, the likeliest wrong first.
        share: estimated share of wrong pairs; NaN where the teachers do not agree.
        interval: its 95 % interval.
        threshold: probability from which a pair counts as mismatched.
        suggestions: row of the suggested caption, by row of the pair; for pairs from the threshold, and for those that are more
            likely wrong than right.
        flags: C lists of flags.
        empty: the empty captions.
        groups: exact and near duplicates among the images of all splits in ``compared``.
        compared: splits whose images were compared.
        near: cosine from which images were near duplicates.
        shared: number of captions whose words are a caption of another split as well.
        removed: what ``kept.csv`` does without.
        notes: remarks for the user, one sentence each.
    """

    data: RetrievalDataModule
    split: Split
    table: CaptionTable
    level: Level
    mismatch: NDArray[np.float64]
    order: NDArray[np.int64]
    share: float
    interval: tuple[float, float]
    threshold: float
    suggestions: Mapping[int, int]
    flags: Sequence[Sequence[str]]
    empty: Sequence[Empty]
    groups: Sequence[Group]
    compared: Sequence[Split]
    near: float
    shared: int
    removed: Sequence[Removable]
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def agrees(self) -> bool:
        """Whether the teachers agree on anything, so that pairs could be judged."""
        return not bool(np.isnan(self.mismatch).any())

    @property
    def is_removed(self) -> NDArray[np.bool_]:
        """(C,) bool, whether ``kept.csv`` does without a pair."""
        unwanted = {flag for name in self.removed for flag in REMOVABLE[name]}
        return np.array([not unwanted.isdisjoint(flags) for flags in self.flags], dtype=bool)

    def image(self, pair: int) -> str:
        """Return the id of the image of a pair."""
        return self.table.image_ids[int(self.table.caption_image[pair])]

    def count(self, flag: str) -> int:
        """Return the number of pairs with a flag."""
        return len(self.empty) if flag == EMPTY else sum(flag in flags for flags in self.flags)


def clean(
    data: RetrievalDataModule,
    split: Split = "train",
    image_teacher: TeacherChoice = TeacherChoice(),  # noqa: B008 (frozen)
    text_teacher: TeacherChoice = TeacherChoice(),  # noqa: B008 (frozen)
    level: Level = "caption",
    threshold: float | None = None,
    near: float = NEAR_COSINE,
    remove: Sequence[Removable] = ("mismatch",),
    device: str | torch.device = "cpu",
    console: Console | None = None,
) -> Cleaned:
    """Judge the pairs of a split. Nothing of the user's is changed; features are cached in the data's cache folder.

    Args:
        data: the data module, whose splits were not read yet.
        split: the split to judge; the images of the others are compared with its images.
        image_teacher: the image teacher.
        text_teacher: the text teacher.
        level: what is right or wrong: each pair on its own (``caption``), or an image with all its captions (``image``).
        threshold: probability from which a pair counts as mismatched; None for as many pairs as are estimated to be wrong, and
            none that is more likely right than wrong.
        near: cosine of the image features from which images are near duplicates.
        remove: what ``kept.csv`` does without.
        device: device of the teachers.
        console: shows progress; None for no output.

    Raises:
        ValueError: options out of range, unusable or corrupted data, or too few images to judge.
        Stopped: on SIGTERM or Ctrl-C while features are computed; the next call continues.

    Example:
        >>> from sdr_lightning.configure import build_data
        >>> found = clean(build_data(["--data", "experiments/data/own.yaml"]))  # doctest: +SKIP
        >>> [found.table.caption_ids[pair] for pair in found.order[:20]]  # doctest: +SKIP
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"the threshold is a probability in [0, 1], or auto; got {threshold}")
    check_cosine(near)
    steps = _Steps(console)
    parts = data.train_on if split == "train" else (split,)
    empty = _empty_captions(data, parts)
    _refuse_corruption(data)
    table = data.table(split)
    fit_data(data, image_teacher, text_teacher)
    others: list[Split] = [name for name in data.source.splits if name not in {*parts, split}]
    steps.begin("image features")
    images = split_features(data, "image", [split, *others], image_teacher, torch.device(device))
    steps.begin("caption features")
    texts = split_features(data, "text", [split], text_teacher, torch.device(device))[split]
    steps.begin("probability of each pair")
    index = torch.from_numpy(table.caption_image)
    with steps.waiting(f"{len(table.captions):,} pairs"):
        found = pair_agreement(images[split], texts, index, level)
    notes = [] if _agree(found) else [DISAGREEMENT]
    if _agree(found) and len(images[split]) < FEW_IMAGES:
        notes.append(
            f"from {len(images[split]):,} images the shares are rough, and too high on average: rely on the order of the pairs "
            f"({FEW_IMAGES} images or more give better ones)"
        )
    mismatch = _mismatch(found)
    order = np.lexsort((np.arange(len(mismatch)), found.score.numpy(), -np.nan_to_num(mismatch)))
    threshold = automatic_threshold(mismatch, found.share) if threshold is None else threshold
    steps.begin("suggested captions")
    suspects = order[: int((mismatch >= min(threshold, EVEN)).sum())]
    suggestions = _suggestions(images[split], texts, index, suspects, steps.console)
    steps.begin("duplicate images")
    with progress("pairs of images compared", sum(map(len, images.values())) ** 2, console=steps.console) as advance:
        groups = duplicate_groups(images, _pictures(data), near, advance)
    missing = [name for name in others if name not in images]
    if missing:
        notes.append(f"the image banks hold no features of {' and '.join(missing)}: leakage into it is not checked")
    in_groups = sum(member.split == split for group in groups for member in group)
    if in_groups > len(table.image_ids) / 2:
        notes.append(
            f"{in_groups:,} of {len(table.image_ids):,} images have a near duplicate at a cosine of {near:g}: raise "
            "--near-duplicates for this image teacher"
        )
    shared = num_shared(table.captions, (caption for name in others for caption in data.table(name).captions))
    flags = _flags(table, mismatch >= threshold, image_flags(groups, split), _digests(groups, split))
    unknown = float("nan")
    share, interval = (found.share, found.interval) if _agree(found) else (unknown, (unknown, unknown))
    return Cleaned(
        data, split, table, level, mismatch, order, share, interval, threshold, suggestions, flags, empty, groups,
        list(images), near, shared, remove, notes,
    )  # fmt: skip


def automatic_threshold(mismatch: NDArray[np.float64], share: float) -> float:
    """Return the probability from which as many pairs are mismatched as are estimated to be wrong; at least 0.5.

    >>> automatic_threshold(np.array([0.9, 0.1, 0.8, 0.7, 0.0]), 0.4)
    0.8
    """
    expected = min(len(mismatch), round(share * len(mismatch)))
    if not expected or bool(np.isnan(mismatch).any()):
        return 1.0
    return max(EVEN, float(np.sort(mismatch)[-expected]))


def _agree(found: PairAgreement) -> bool:
    return bool(found.probability.any())


def _mismatch(found: PairAgreement) -> NDArray[np.float64]:
    if not _agree(found):
        return np.full(len(found.probability), np.nan)
    return np.round(1 - found.probability.double().numpy(), _DIGITS)


def _refuse_corruption(data: RetrievalDataModule) -> None:
    done = [part for part in data.imbalances if part.active]
    if done:
        raise ValueError(
            f"sdr clean judges data as they are, and the configuration corrupts them ({done[0].kind}, ratio "
            f"{done[0].ratio:g}): add --data.init_args.imbalance null"
        )


def _empty_captions(data: RetrievalDataModule, parts: Sequence[Split]) -> list[Empty]:
    """Find empty captions, which a source refuses, and let it skip them."""
    source = data.source
    if not isinstance(source, RecordSource):
        return []
    source.skip_empty = True
    left_out = set() if source.leave_out is None else read_ids(Path(expand(source.leave_out)))
    return [
        Empty(caption_id, record.image_id)
        for part, records in source.read().items()
        if part in parts
        for record in records
        if record.image_id not in left_out
        for caption_id, caption in zip(record.caption_ids, record.captions, strict=True)
        if not caption
    ]


def _suggestions(
    image: Tensor, text: Tensor, index: Tensor, suspects: NDArray[np.int64], console: Console
) -> dict[int, int]:
    if not len(suspects):
        return {}
    rows, place = torch.unique(index[torch.from_numpy(suspects)], return_inverse=True)
    with progress("captions compared", len(rows) * len(text), console=console) as advance:
        captions = suggested_captions(image, text, index, rows, advance)[place]
    return dict(zip(suspects.tolist(), captions.tolist(), strict=True))


def _pictures(data: RetrievalDataModule) -> Callable[[Split, int], AnyImage]:
    return lambda split, row: data.split(split).original(row)


def _digests(groups: Sequence[Group], split: Split) -> dict[int, str]:
    return {member.row: member.digest for group in groups for member in group if member.split == split}


def _flags(
    table: CaptionTable,
    is_wrong: NDArray[np.bool_],
    of_images: Mapping[int, tuple[str, str]],
    digests: Mapping[int, str],
) -> list[list[str]]:
    found = []
    seen: set[tuple[int | str, str]] = set()
    of_captions = flaws(table.captions, table.caption_image, table.image_ids)
    for row, (caption, image, flaw) in enumerate(
        zip(table.captions, table.caption_image.tolist(), of_captions, strict=True)
    ):
        pair = (digests.get(image, image), normalised(caption) or caption)
        copy, leak = of_images.get(image, ("", ""))
        flags = {
            MISMATCH: bool(is_wrong[row]),
            flaw: bool(flaw),
            DUPLICATE_PAIR: pair in seen,
            f"duplicate image ({copy})": bool(copy),
            f"leaked image ({leak})": bool(leak),
        }
        seen.add(pair)
        found.append([flag for flag, applies in flags.items() if applies])
    return found


class _Steps:
    """Prints the steps, and progress with the time left within them."""

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(quiet=True)
        self.number = 0

    def begin(self, what: str) -> None:
        self.number += 1
        self.console.print(f"{self.number}/5 {what}", highlight=False)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        columns = (TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            bar.add_task(what, total=None)
            yield
