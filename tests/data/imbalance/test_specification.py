import hashlib
from dataclasses import replace
from itertools import combinations
from typing import Any, get_args

import numpy as np
import pytest

from sdr_lightning.data.imbalance import KINDS, Imbalance, Level
from sdr_lightning.data.imbalance.specification import Kind
from sdr_lightning.data.table import CaptionTable
from tests.data.imbalance import shuffled, worded

TEXTS: tuple[Kind, ...] = ("drop_words", "mask_words", "truncate", "content_words", "typos")
PICTURES: tuple[Kind, ...] = ("gaussian_noise", "blur", "occlusion", "low_resolution", "low_light", "jpeg")
WITHOUT_DEGREES = ("none", "mismatch", "content_words", "missing")
TABLE = worded((5,) * 200)
EVERY_KIND = [
    Imbalance("mismatch"),
    *(Imbalance(kind, level="image") for kind in TEXTS),
    *(Imbalance(kind) for kind in PICTURES),
    Imbalance("missing", modality="image"),
    Imbalance("missing", modality="text", level="image"),
]


def named(names: list[str]) -> CaptionTable:
    """One caption to each of some images."""
    return CaptionTable("named", "train", names, names, names, np.arange(len(names)))


def smallest_hashes(salt: list[object], ids: list[str], count: int) -> list[int]:
    """The choice as it is defined, by sorting one 64-bit hash after another."""

    def number(name: str) -> int:
        digest = hashlib.blake2b("\x1f".join([*map(str, salt), name]).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    return sorted(range(len(ids)), key=lambda row: number(ids[row]))[:count]


def test_invalid_specifications_are_refused() -> None:
    for arguments, message in [
        ({"kind": "mismach"}, "unknown imbalance 'mismach', expected one of none, mismatch, drop_words"),
        ({"ratio": -0.1}, r"ratio must lie in \[0, 1\], got -0.1"),
        ({"ratio": 1.0001}, r"ratio must lie in \[0, 1\], got 1.0001"),
        ({"ratio": float("nan")}, r"ratio must lie in \[0, 1\], got nan"),
        ({"kind": "none", "ratio": 0.4}, "ratio 0.4 without a kind corrupts nothing"),
        ({"severity": 0}, "severity must be 1, 2, 3, 4 or 5, got 0"),
        ({"severity": 6}, "severity must be 1, 2, 3, 4 or 5, got 6"),
        ({"severity": 2.5}, "severity must be 1, 2, 3, 4 or 5, got 2.5"),
        ({"splits": ()}, r"splits must be some of train, val, test, got \[\]"),
        ({"splits": ("train", "dev")}, r"splits must be some of train, val, test, got \['train', 'dev'\]"),
        ({"splits": "train"}, "splits must be some of train, val, test"),
        ({"level": "word"}, "level must be image or caption, got word"),
        ({"kind": "blur", "level": "caption"}, "blur is done to images: its level is image, got caption"),
        ({"kind": "missing"}, "which modality is missing[?] expected modality image or text"),
        ({"kind": "missing", "modality": "pair"}, "missing is done to image or text, got modality pair"),
        ({"kind": "typos", "modality": "image"}, "typos is done to text, got modality image"),
        ({"kind": "mismatch", "modality": "text"}, "mismatch is done to pair, got modality text"),
        (
            {"kind": "missing", "modality": "image", "level": "caption"},
            "missing is done to images: its level is image, got caption",
        ),
        ({"severity": 2.0}, "the imbalance severity must be 1, 2, 3, 4 or 5, got 2.0"),
        ({"ratio": 0.2, "file": "a.npz"}, "the file a.npz decides the imbalance: drop the ratio, or drop the file"),
        ({"kind": "mismatch", "partner": "similar"}, "must be one of random, shared_word, nearest, got 'similar'"),
        (
            {"kind": "blur", "partner": "nearest"},
            "partner nearest is of kind mismatch, got kind blur: leave partner out",
        ),
        ({"kind": "mismatch", "splits": ("train", "test")}, "a mismatched test split has no truth to measure against"),
    ]:
        with pytest.raises(ValueError, match=message):
            Imbalance(**arguments)


def test_every_kind_is_described() -> None:
    assert set(KINDS) == set(get_args(Kind)) == {"none", "mismatch", *TEXTS, *PICTURES, "missing"}
    assert {kind for kind, about in KINDS.items() if not about.has_degrees} == set(WITHOUT_DEGREES)
    assert all(about.description for about in KINDS.values())


def test_the_kind_decides_modality_and_level() -> None:
    for kinds, modality, level in [
        (("none", "mismatch"), "pair", "image"),
        (TEXTS, "text", "caption"),
        (PICTURES, "image", "image"),
    ]:
        for kind in kinds:
            imbalance = Imbalance(kind, 0.0 if kind == "none" else 0.1)
            assert (imbalance.modality, imbalance.level, imbalance.splits) == (modality, level, ("train",))


def test_missing_takes_its_level_from_its_modality() -> None:
    for modality, level in [("image", "image"), ("text", "caption")]:
        assert Imbalance("missing", 0.1, modality=modality).level == level


@pytest.mark.parametrize("level", ["image", "caption"])
def test_pairs_and_texts_can_be_chosen_at_both_levels(level: Level) -> None:
    for kind in ["mismatch", *TEXTS]:
        rows = Imbalance(kind, 1.0, level=level).choose(worded((1, 3)))
        assert sorted(rows.tolist()) == list(range({"image": 2, "caption": 4}[level]))


def test_splits_may_be_a_list_as_it_comes_from_a_file() -> None:
    listed: Any = ["val", "train"]
    assert Imbalance(splits=listed) == Imbalance(splits=("val", "train"))
    assert hash(Imbalance(splits=listed)) == hash(Imbalance(splits=("val", "train")))


def test_corruptions_other_than_mismatch_allow_any_split() -> None:
    for kind in ["blur", "drop_words"]:
        assert Imbalance(kind, 0.5, splits=("train", "val", "test")).splits == ("train", "val", "test")


def test_active() -> None:
    for imbalance, active in [
        (Imbalance(), False),
        (Imbalance("mismatch"), False),
        (Imbalance("mismatch", 0.01), True),
        (Imbalance(file="a.npz"), True),
    ]:
        assert imbalance.active is active


def test_chosen_items_do_not_change_between_versions() -> None:
    """Another answer would change every number that is published with this code."""
    table = named([f"{i}.jpg" for i in range(20)])
    assert Imbalance("mismatch", 0.25, seed=7).choose(table).tolist() == [2, 17, 6, 5, 1]


@pytest.mark.parametrize("level", ["image", "caption"])
def test_the_count_is_exact(level: Level) -> None:
    for ratio in [0, 0.0004, 0.001, 0.0025, 0.3, 0.4567, 0.9999, 1]:
        rows = Imbalance("mismatch", ratio, level=level).choose(TABLE)
        assert len(rows) == len(set(rows.tolist())) == round(ratio * {"image": 200, "caption": 1000}[level])
        assert rows.dtype == np.int64


def test_the_smallest_hashes_are_chosen() -> None:
    for imbalance in EVERY_KIND:
        name = f"missing {imbalance.modality}" if imbalance.kind == "missing" else imbalance.kind
        rows = replace(imbalance, ratio=0.3, seed=-4).choose(TABLE)
        assert rows.tolist() == smallest_hashes([name, -4], list(TABLE.image_ids), 60)


def test_greater_ratios_choose_the_same_and_more() -> None:
    for imbalance in EVERY_KIND:
        previous: list[int] = []
        for ratio in (0.1, 0.2, 0.5, 0.9, 1.0):
            rows = replace(imbalance, ratio=ratio, seed=3).choose(TABLE).tolist()
            assert rows[: len(previous)] == previous
            assert len(rows) > len(previous)
            previous = rows


@pytest.mark.parametrize("level", ["image", "caption"])
def test_the_order_of_reading_does_not_matter(level: Level) -> None:
    for kind in ["mismatch", "drop_words"]:
        imbalance = Imbalance(kind, 0.3, level=level, seed=1)
        chosen = []
        for table in (TABLE, shuffled(TABLE)):
            ids = table.image_ids if level == "image" else table.caption_ids
            chosen.append([ids[row] for row in imbalance.choose(table).tolist()])
        assert chosen[0] == chosen[1]


def test_severity_and_splits_do_not_change_the_choice() -> None:
    for kind in ["drop_words", "gaussian_noise"]:
        base = Imbalance(kind, 0.5, severity=5)
        for other in (replace(base, severity=1), replace(base, splits=("val",))):
            np.testing.assert_array_equal(other.choose(TABLE), base.choose(TABLE))


def test_kinds_and_seeds_choose_independently() -> None:
    table = named([f"image {i}.jpg" for i in range(1000)])
    halves = [replace(kind, ratio=0.5, seed=seed).choose(table) for kind in EVERY_KIND for seed in (0, 1)]
    shared = [len(np.intersect1d(a, b)) for a, b in combinations(halves, 2)]
    # Of two random halves of 1000 the overlap is 250, with a standard deviation of 7.9.
    assert np.mean(shared) == pytest.approx(250, abs=2)
    assert 250 - 5 * 7.9 < min(shared) <= max(shared) < 250 + 5 * 7.9


def drawn(imbalance: Imbalance, item: str) -> list[int]:
    return [int(number) for number in imbalance.generator(item).integers(1000, size=5)]


def test_generator_depends_on_item_kind_severity_and_seed() -> None:
    base = Imbalance("drop_words", 0.5, severity=3, seed=1)
    assert drawn(base, "a") == drawn(replace(base, ratio=0.9, splits=("val",), level="image"), "a")
    others = [
        drawn(base, "b"),
        drawn(replace(base, severity=4), "a"),
        drawn(replace(base, seed=2), "a"),
        drawn(replace(base, kind="mask_words"), "a"),
        drawn(replace(base, kind="blur", level=None, modality=None), "a"),
    ]
    assert len({tuple(numbers) for numbers in (drawn(base, "a"), *others)}) == 6


def test_the_severity_of_a_kind_without_degrees_means_nothing() -> None:
    base = Imbalance("content_words", 0.5, severity=3)
    assert base.content_key == replace(base, severity=4).content_key
    assert drawn(base, "a") == drawn(replace(base, severity=4), "a")


def test_generator_does_not_change_between_versions() -> None:
    """As with the choice: another answer would change the noise of every published number."""
    assert drawn(Imbalance("drop_words", severity=5, seed=7), "0.jpg") == [543, 259, 737, 80, 195]
