from collections import Counter
from itertools import permutations
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdr_lightning.data.imbalance import Imbalance, Level, NoiseTable, imbalanced
from sdr_lightning.data.imbalance.pairs import mismatched
from sdr_lightning.data.table import CaptionTable
from tests.data.collection import make_table
from tests.data.imbalance import image_of_caption, shuffled, worded

FIVE_EACH = worded((5,) * 2000)
RAGGED = st.lists(st.integers(1, 6), min_size=1, max_size=8)


def sets_of(captions_image: list[int]) -> list[frozenset[int]]:
    """Captions by image."""
    found: dict[int, set[int]] = {}
    for caption, image in enumerate(captions_image):
        found.setdefault(image, set()).add(caption)
    return [frozenset(found.get(image, ())) for image in range(max(captions_image) + 1)]


def can_be_deranged(own: list[int]) -> bool:
    """Whether some order of the images gives nobody their own, by trying them all."""
    return any(all(a != b for a, b in zip(own, order, strict=True)) for order in permutations(own))


@given(RAGGED, st.data())
@settings(max_examples=150, deadline=None)
def test_image_level_moves_whole_sets_of_any_size(counts: list[int], data: st.DataObject) -> None:
    table = make_table(counts)
    rows = data.draw(st.lists(st.integers(0, len(counts) - 1), unique=True).filter(lambda rows: len(rows) != 1))
    paired = mismatched(table, np.array(rows, dtype=np.int64), "image").caption_image.tolist()
    before, after = sets_of(table.caption_image.tolist()), sets_of(paired)
    assert sorted(map(sorted, after)) == sorted(map(sorted, before))
    for image in range(len(counts)):
        assert (after[image] != before[image]) == (image in rows)


@given(RAGGED, st.data())
@settings(max_examples=150, deadline=None)
def test_caption_level_gives_every_chosen_caption_another_image(counts: list[int], data: st.DataObject) -> None:
    table = make_table(counts)
    rows = data.draw(st.lists(st.integers(0, sum(counts) - 1), unique=True))
    own = table.caption_image[rows].tolist()
    if any(2 * many > len(own) for many in Counter(own).values()):
        with pytest.raises(ValueError, match="too many of one image"):
            mismatched(table, np.array(rows, dtype=np.int64), "caption")
        return
    paired = mismatched(table, np.array(rows, dtype=np.int64), "caption").caption_image
    assert set(np.flatnonzero(paired != table.caption_image).tolist()) == set(rows)
    assert sorted(paired[rows].tolist()) == sorted(own)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_caption_level_is_refused_exactly_where_it_is_impossible(own: list[int]) -> None:
    ids = [f"c{k}" for k in range(len(own))]
    table = CaptionTable("memory", "train", ["a", "b", "c", "d"], ids, ids, np.array(own))
    try:
        paired = mismatched(table, np.arange(len(own)), "caption").caption_image.tolist()
    except ValueError:
        assert not can_be_deranged(own)
    else:
        assert Counter(paired) == Counter(own)
        assert all(a != b for a, b in zip(own, paired, strict=True))


@pytest.mark.parametrize("level", ["image", "caption"])
def test_the_realised_ratio_is_the_asked_one(level: Level) -> None:
    for ratio in [0.1, 0.4, 0.6, 1.0]:
        noise = NoiseTable.draw(FIVE_EACH, Imbalance("mismatch", ratio, level=level, seed=5))
        wrong = noise.caption_image != FIVE_EACH.caption_image
        assert wrong.mean() == pytest.approx(ratio, abs=0.005)
        assert noise.ratio == pytest.approx(ratio, abs=0.005)


def test_image_level_leaves_an_image_all_its_captions_or_none() -> None:
    for ratio in [0.2, 0.4]:
        noise = NoiseTable.draw(FIVE_EACH, Imbalance("mismatch", ratio))
        assert noise.wrong_captions_per_image == {0: 2000 - round(2000 * ratio), 5: round(2000 * ratio)}


def test_caption_level_makes_the_wrong_captions_of_an_image_binomial() -> None:
    for seed in [0, 1]:
        for ratio in [0.2, 0.4, 0.6]:
            histogram = NoiseTable.draw(
                FIVE_EACH, Imbalance("mismatch", ratio, level="caption", seed=seed)
            ).wrong_captions_per_image
            assert sum(histogram.values()) == 2000
            assert sum(wrong * images for wrong, images in histogram.items()) == round(10000 * ratio)
            for wrong in range(6):
                share = comb(5, wrong) * ratio**wrong * (1 - ratio) ** (5 - wrong)
                deviation = sqrt(2000 * share * (1 - share))
                assert abs(histogram.get(wrong, 0) - 2000 * share) < 4 * deviation


def test_caption_level_at_forty_per_cent_leaves_eight_per_cent_of_images_intact() -> None:
    noise = NoiseTable.draw(FIVE_EACH, Imbalance("mismatch", 0.4, level="caption"))
    assert noise.wrong_captions_per_image[0] / 2000 == pytest.approx(0.078, abs=0.018)


@pytest.mark.parametrize("level", ["image", "caption"])
def test_every_other_image_is_as_likely(level: Level) -> None:
    table = make_table((1,) * 6)
    seeds = range(500)
    partners = Counter(
        int(NoiseTable.draw(table, Imbalance("mismatch", 1.0, level=level, seed=seed)).caption_image[0])
        for seed in seeds
    )
    assert set(partners) == {1, 2, 3, 4, 5}
    # 500 draws among five: 100 each, with a standard deviation of 8.9.
    assert all(abs(count - 100) < 4.5 * 8.9 for count in partners.values())


@pytest.mark.parametrize("level", ["image", "caption"])
def test_the_order_of_reading_does_not_matter(level: Level) -> None:
    for seed in range(3):
        table = make_table((3, 1, 2, 5, 4) * 5)
        imbalance = Imbalance("mismatch", 0.6, level=level, seed=seed)
        here, there = (imbalanced(order, [imbalance]).table for order in (table, shuffled(table)))
        assert image_of_caption(here) == image_of_caption(there)


@pytest.mark.parametrize(
    ("level", "message"),
    [("image", "needs at least two chosen images, the ratio gives one"), ("caption", "of 1 captions, .*: choose more")],
)
def test_ratio_that_chooses_one_item_is_refused(level: Level, message: str) -> None:
    table = make_table((1,) * 30)
    with pytest.raises(ValueError, match=f"memory train: a mismatch {message}"):
        NoiseTable.draw(table, Imbalance("mismatch", 1 / 30, level=level))


def test_ratio_that_chooses_no_item_changes_nothing() -> None:
    for level in ["image", "caption"]:
        noise = NoiseTable.draw(make_table(), Imbalance("mismatch", 0.001, level=level))
        assert (len(noise.rows), noise.ratio) == (0, 0)
        np.testing.assert_array_equal(noise.caption_image, make_table().caption_image)


def test_too_many_captions_of_one_image_are_refused() -> None:
    with pytest.raises(ValueError, match="memory train: a mismatch of 6 captions, too many of one image"):
        NoiseTable.draw(make_table((4, 1, 1)), Imbalance("mismatch", 1.0, level="caption"))
