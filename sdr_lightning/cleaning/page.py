"""The page of what was found: self-contained, with thumbnails inside."""

from __future__ import annotations

import base64
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sdr_lightning.cleaning.captions import EMPTY, FLAWS
from sdr_lightning.cleaning.duplicates import Group, Member
from sdr_lightning.cleaning.judgement import DUPLICATE_PAIR, Cleaned
from sdr_lightning.data.table import Split
from sdr_lightning.reporting.pages.html import render_page

_SHOWN_PAIRS, _SHOWN_GROUPS, _SHOWN_MEMBERS, _SHOWN_CAPTIONS = 30, 24, 6, 60
_SHOWN_NEAR = 10  # pairs on each side of the threshold
_SIDE = 240  # pixels of a thumbnail
_THRESHOLDS = 100  # steps of the slider


class Shown(NamedTuple):
    """A pair on the page."""

    caption_id: str
    image: str
    picture: str | None
    caption: str
    suggestion: str | None
    mismatch: float
    flags: Sequence[str]


class ShownImage(NamedTuple):
    """An image of a group of duplicates on the page."""

    image: str
    split: str
    picture: str | None
    caption: str


class ShownGroup(NamedTuple):
    """A group of duplicates on the page."""

    images: Sequence[ShownImage]
    size: int
    exact: bool
    leak: bool


def render(found: Cleaned, summary: Mapping[str, Any]) -> str:
    """Render the page from what was found and the content of summary.json."""
    return render_page(
        "report.html",
        "sdr_lightning.cleaning",
        found=found,
        summary=summary,
        sentences=sentences(found, summary),
        curve=curve(found) if found.agrees else None,
        pairs=_pairs(found, found.order[:_SHOWN_PAIRS]),
        near=_pairs(found, rows_near_threshold(found)),
        groups=_groups(found),
        captions=_captions(found),
        flaws=FLAWS,
        fit=None if summary["overlay"] is None else f"--config {shlex.quote(summary['overlay'])}",
        unjudged=unjudged(found),
        shown={"pairs": _SHOWN_PAIRS, "groups": _SHOWN_GROUPS, "captions": _SHOWN_CAPTIONS},
    )


def sentences(found: Cleaned, summary: Mapping[str, Any]) -> list[str]:
    """Say in four sentences what was found."""
    judged, images = f"{len(found.table.captions):,} pairs", f"{summary['images']:,} images"
    if not found.agrees:
        first = f"The {judged} of {images} could not be judged: the teachers agree on none of them."
        second = "No probability is given, and no pair is counted as mismatched."
    else:
        first = f"Of {judged} of {images}, {_estimate(found)}."
        precision = summary["expected_precision"]
        second = (
            "No pair is marked as mismatched."
            if precision is None
            else f"Pairs with a probability of mismatch of at least {found.threshold:.2f}: {summary['mismatched']:,}; by their "
            f"probabilities, {100 * precision:.0f} % of these are wrong."
        )
    doubled, leaked = duplicated_images(found.groups, found.split)
    others = [split for split in found.compared if split != found.split]
    into = f", {leaked:,} in {' or '.join(others)}" if others else ""
    silent = sum(found.count(flaw) for flaw in FLAWS)
    third = f"Images with an exact or near duplicate: {doubled:,} in {found.split}{into}."
    return [first, second, third, f"Captions that say little or nothing: {silent:,}."]


def _estimate(found: Cleaned) -> str:
    low, high = found.interval
    if high == 0:
        return "an estimated 0 % are mismatched"
    return (
        f"an estimated {100 * found.share:.1f} % are mismatched (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
    )


def unjudged(found: Cleaned) -> str:
    """Say which splits of kept.csv were not judged; empty if there is no other."""
    others = [split for split in found.data.source.splits if split != found.split]
    if not others:
        return ""
    names = " and ".join(others)
    return (
        f"this judged the {found.split} split only: kept.csv has the pairs of {names} as the table that was read has them; wrong "
        f"pairs among them lower the measured recall of every model (--split {others[-1]} judges those of {others[-1]})"
    )


def duplicated_images(groups: Sequence[Group], split: Split) -> tuple[int, int]:
    """Return how many images of a split have a duplicate in it, and how many in other splits."""
    doubled = leaked = 0
    for group in groups:
        inside = sum(member.split == split for member in group)
        doubled += inside if inside > 1 else 0
        leaked += inside if inside < len(group) else 0
    return doubled, leaked


def curve(found: Cleaned) -> dict[str, list[float]]:
    """Count, for every threshold of the slider, the pairs that would be removed and the wrong ones expected among them."""
    reached = np.floor(_THRESHOLDS * found.mismatch + 1e-9).astype(np.int64)  # the last threshold that a pair reaches
    counts = np.bincount(reached, minlength=_THRESHOLDS + 1)
    wrong = np.bincount(reached, found.mismatch, minlength=_THRESHOLDS + 1)
    return {
        "pairs": counts[::-1].cumsum()[::-1].tolist(),
        "wrong": [round(value, 2) for value in wrong[::-1].cumsum()[::-1].tolist()],
    }


def rows_near_threshold(found: Cleaned) -> NDArray[np.int64]:
    """Return the pairs on both sides of the threshold, likeliest wrong first, without the most suspicious ones."""
    removed = int((found.mismatch >= found.threshold).sum())
    return found.order[max(_SHOWN_PAIRS, removed - _SHOWN_NEAR) : removed + _SHOWN_NEAR]


def _pairs(found: Cleaned, rows: NDArray[np.int64]) -> list[Shown]:
    shown = []
    for row in rows.tolist() if found.agrees else []:
        suggestion = found.suggestions.get(row)
        shown.append(
            Shown(
                found.table.caption_ids[row],
                found.image(row),
                _thumbnail(found, found.split, int(found.table.caption_image[row])),
                found.table.captions[row],
                None if suggestion is None else found.table.captions[suggestion],
                float(found.mismatch[row]),
                found.flags[row],
            )
        )
    return shown


def _groups(found: Cleaned) -> list[ShownGroup]:
    """Leakage first, then exact duplicates, then the larger groups."""
    groups = []
    for group in found.groups:
        digests = Counter(member.digest for member in group)
        groups.append((len({member.split for member in group}) > 1, max(digests.values()) > 1, group))
    groups.sort(key=lambda item: (not item[0], not item[1], -len(item[2])))
    shown = []
    for leak, exact, group in groups[:_SHOWN_GROUPS]:
        images = []
        for member in _spread(group)[:_SHOWN_MEMBERS]:
            table = found.data.table(member.split)
            captions = np.flatnonzero(table.caption_image == member.row)
            caption = table.captions[int(captions[0])] if len(captions) else ""
            images.append(
                ShownImage(
                    table.image_ids[member.row], member.split, _thumbnail(found, member.split, member.row), caption
                )
            )
        shown.append(ShownGroup(images, len(group), exact, leak))
    return shown


def _spread(group: Group) -> list[Member]:
    """Order a group so that the first image of every split comes before the second of any."""
    seen: Counter[str] = Counter()
    ranked = []
    for member in group:
        ranked.append((seen[member.split], member))
        seen[member.split] += 1
    return [member for _, member in sorted(ranked, key=lambda item: item[0])]


def _captions(found: Cleaned) -> list[tuple[str, str, str, str]]:
    """(id, image, caption, what is wrong) of captions that say little or nothing."""
    rows = [(empty.caption_id, empty.image_id, "", EMPTY) for empty in found.empty]
    for row, flags in enumerate(found.flags):
        for flag in flags:
            if flag in FLAWS or flag == DUPLICATE_PAIR:
                rows.append((found.table.caption_ids[row], found.image(row), found.table.captions[row], flag))
    return rows[:_SHOWN_CAPTIONS]


def _thumbnail(found: Cleaned, split: Split, row: int) -> str | None:
    pixels = found.data.split(split).original(row)
    if pixels.dtype != np.uint8:
        return None
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    enlarged = _SIDE // (2 * max(image.size))
    if enlarged > 1:  # the browser would blur the pixels of a tiny picture
        image = image.resize((image.width * enlarged, image.height * enlarged), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
