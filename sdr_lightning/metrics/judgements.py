"""Human judgements of image-caption pairs in Flickr8k's published format, and their agreement with cosine similarities.

Source: Hodosh, Young and Hockenmaier, "Framing Image Description as a Ranking Task", JAIR 2013. ``ExpertAnnotations.txt``
holds three ratings from 1 to 4, ``CrowdFlowerAnnotations.txt`` the share of yes and the numbers of yes and no.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.functional.search import paired_similarity
from sdr_lightning.paths import text_lines

Kind = Literal["expert", "crowd"]


@dataclass(frozen=True)
class Judgements:
    """Rated image-caption pairs.

    Attributes:
        kind: ``expert``: means of three ratings from 1 (does not describe the image) to 4 (describes it without errors);
            ``crowd``: share in [0, 1] of people who judged that the caption describes the image.
        pairs: P pairs of an image id and a caption id, ``image.jpg#k``.
        ratings: (P,) float64.
    """

    kind: Kind
    pairs: tuple[tuple[str, str], ...]
    ratings: NDArray[np.float64]


def read_judgements(path: Path) -> Judgements:
    """Read either published file; the kind is recognised from its numbers.

    Raises:
        ValueError: the file is missing or empty, a line is in neither format, both formats are mixed, or a pair is rated
            twice.
    """
    kinds: set[Kind] = set()
    ratings: dict[tuple[str, str], float] = {}
    for number, line in enumerate(text_lines(path), 1):
        if not line.strip():
            continue
        image, _, rest = line.partition("\t")
        caption, *values = rest.split("\t")
        kind, rating = _rating(values)
        name, mark, place = caption.rpartition("#")
        if kind is None or not (image and name and mark and place.isdigit()):
            raise ValueError(
                f"{path}, line {number} is {line[:80]!r}: expected image.jpg, image.jpg#k and three numbers, separated by tabs "
                "(ratings from 1 to 4, or the share of yes and the numbers of yes and no)"
            )
        kinds.add(kind)
        if len(kinds) > 1:
            raise ValueError(
                f"{path}, line {number} is a judgement of the {kind} kind, those before are of the other: use one file for each"
            )
        if (image, caption) in ratings:
            raise ValueError(f"{path}, line {number} rates {image} and {caption} again: expected one line per pair")
        ratings[image, caption] = rating
    if not ratings:
        raise ValueError(f"{path} holds no judgements: expected one per line")
    return Judgements(kinds.pop(), tuple(ratings), np.array(list(ratings.values())))


def _rating(values: Sequence[str]) -> tuple[Kind | None, float]:
    try:
        first, second, third = (float(value) for value in values)
    except ValueError:
        return None, math.nan
    whole = all(value.strip().isdigit() for value in values)
    if whole and all(1 <= value <= 4 for value in (first, second, third)):
        return "expert", (first + second + third) / 3
    asked = second + third
    if asked > 0 and min(second, third) >= 0 and abs(first - second / asked) < 0.01:
        return "crowd", first
    return None, math.nan


def agreement(
    judgements: Judgements,
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_ids: Sequence[str],
    text_image_index: Tensor,
) -> dict[str, float]:
    """Compute the agreement of cosine similarities with human judgements.

    Judged pairs whose image or caption is missing are skipped. ``image.jpg#k`` is the k-th caption of the image, 0-based, in
    the given order. Judgements of a caption with its own image are included.

    Args:
        judgements: the rated pairs.
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        image_ids: N file names.
        text_image_index: (C,) the image of each caption.

    Returns:
        With the prefix ``expert_`` or ``crowd_``:

        - ``tau_b``, ``tau_c``: Kendall's rank correlations of cosine and rating, in [-1, 1]; NaN if all ratings or all
          scores are equal.
        - ``i2t_NDCG``, ``t2i_NDCG``: in percent, over the judged captions of an image or the judged images of a caption,
          with gain rating - 1 or the share. Means over queries with at least two judgements and a positive gain; NaN if there
          is no such query.
        - ``pairs``: number of pairs used.

    Raises:
        ValueError: none of the judged pairs is among the items.
    """
    from scipy.stats import kendalltau

    place = {name.rpartition("/")[2]: row for row, name in enumerate(image_ids)}
    captions: dict[int, list[int]] = defaultdict(list)
    for column, row in enumerate(text_image_index.tolist()):
        captions[row].append(column)
    found = []
    for (image, caption), rating in zip(judgements.pairs, judgements.ratings.tolist(), strict=True):
        name, _, number = caption.rpartition("#")
        own = captions.get(place.get(name, -1), [])
        if image in place and int(number) < len(own):
            found.append((place[image], own[int(number)], rating))
    if not found:
        raise ValueError(
            f"none of the {len(judgements.pairs)} judged pairs is of these images and captions, the first is "
            f"{judgements.pairs[0][0]} with {judgements.pairs[0][1]}: are they of this split?"
        )
    rows, columns, ratings = (np.array(values) for values in zip(*found, strict=True))
    pairs = (text_image_index.new_tensor(rows), text_image_index.new_tensor(columns))
    cosines = paired_similarity(image_embeddings, text_embeddings, *pairs).cpu().numpy()
    results = {f"tau_{variant}": float(kendalltau(cosines, ratings, variant=variant).statistic) for variant in "bc"}
    gains = ratings - 1 if judgements.kind == "expert" else ratings
    for way, queries in (("i2t", rows), ("t2i", columns)):
        values = [_ndcg(cosines[queries == query], gains[queries == query]) for query in np.unique(queries)]
        kept = [value for value in values if value is not None]
        results[f"{way}_NDCG"] = 100 * math.fsum(kept) / len(kept) if kept else math.nan
    results["pairs"] = float(len(found))
    return {f"{judgements.kind}_{name}": value for name, value in results.items()}


def _ndcg(scores: NDArray[np.float32], gains: NDArray[np.float64]) -> float | None:
    """Compute NDCG over a whole list; None with fewer than two items or without a positive gain."""
    if len(gains) < 2 or gains.max() <= 0:
        return None
    discount = 1 / np.log2(np.arange(2, len(gains) + 2))
    ranked = gains[np.argsort(-scores, kind="stable")]
    return float(ranked @ discount / (np.sort(gains)[::-1] @ discount))
