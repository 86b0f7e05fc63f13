from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from math import ceil, sqrt

import numpy as np
import pytest

from sdr_lightning.data.imbalance import Imbalance, imbalanced
from sdr_lightning.data.imbalance.specification import Kind
from sdr_lightning.data.imbalance.texts import TEXT_KINDS
from sdr_lightning.data.table import CaptionTable
from tests.data.imbalance import shuffled, worded, words_of_caption

TABLE = worded((5,) * 60, words=12)
RAGGED = worded((3, 1, 2, 5, 2, 4, 1, 2), words=9)
RANDOM: tuple[Kind, ...] = ("drop_words", "mask_words", "typos")
EVERY_KIND = tuple(Imbalance(kind, 1.0, modality="text") for kind in TEXT_KINDS)  # type: ignore[arg-type]
SEVERITIES = (1, 2, 3, 4, 5)
by_kind = pytest.mark.parametrize("imbalance", EVERY_KIND, ids=lambda imbalance: imbalance.kind)


def saying(captions: list[str]) -> CaptionTable:
    """One image to each caption."""
    return replace(worded((1,) * len(captions)), captions=captions)


def reworded(table: CaptionTable, imbalance: Imbalance) -> list[str]:
    return list(imbalanced(table, [imbalance]).table.captions)


def is_subsequence(few: list[str], many: list[str]) -> bool:
    rest = iter(many)
    return all(word in rest for word in few)


def deviations(count: int, trials: int, probability: float) -> float:
    """How many standard deviations a count is away from its binomial mean."""
    return abs(count - trials * probability) / sqrt(trials * probability * (1 - probability))


def test_drop_words_keeps_words_in_order_each_with_one_probability() -> None:
    for severity in SEVERITIES:
        kept = 0
        for before, after in zip(
            TABLE.captions, reworded(TABLE, Imbalance("drop_words", 1.0, severity=severity)), strict=True
        ):
            assert is_subsequence(after.split(), before.split())
            assert after
            kept += len(after.split())
        assert deviations(kept, 12 * len(TABLE.captions), 1 - 0.15 * severity) < 4.5


def test_mask_words_puts_masks_in_place_of_words() -> None:
    for severity in SEVERITIES:
        masks = 0
        for before, after in zip(
            TABLE.captions, reworded(TABLE, Imbalance("mask_words", 1.0, severity=severity)), strict=True
        ):
            pairs = list(zip(before.split(), after.split(), strict=True))
            assert all(new in (old, "[MASK]") for old, new in pairs)
            assert any(new == old for old, new in pairs)
            masks += after.split().count("[MASK]")
        assert deviations(masks, 12 * len(TABLE.captions), 0.15 * severity) < 4.5


def test_words_are_dropped_independently() -> None:
    for kind in ["drop_words", "mask_words"]:
        table = saying(["first second third"] * 2000)
        left = Counter(
            frozenset(caption.split()) - {"[MASK]"} for caption in reworded(table, Imbalance(kind, 1.0, severity=2))
        )
        for words, count in left.items():
            # Each stays with probability 0.7; the third of the 0.3 ** 3 without any goes to each single word.
            expected = 0.7 ** len(words) * 0.3 ** (3 - len(words)) + (0.3**3 / 3 if len(words) == 1 else 0)
            assert deviations(count, 2000, expected) < 4
        assert len(left) == 7


@pytest.mark.parametrize("kind", ["drop_words", "mask_words"])
def test_one_random_word_is_always_kept(kind: Kind) -> None:
    imbalance = Imbalance(kind, 1.0)
    left = [caption.replace("[MASK]", "").split() for caption in reworded(saying(["one two"] * 500), imbalance)]
    assert set(map(tuple, left)) == {("one",), ("two",), ("one", "two")}
    # Each alone with probability 0.75 x 0.25 + 0.75 x 0.75 / 2; were it always the first that stays, 0.75 and 0.19.
    for word in ("one", "two"):
        assert deviations(left.count([word]), 500, 0.46875) < 4
    assert set(reworded(saying(["word"] * 200), imbalance)) == {"word"}


def test_truncate_keeps_the_first_words() -> None:
    for severity in SEVERITIES:
        captions = [" ".join(f"w{k}" for k in range(count)) for count in range(1, 201)]
        for count, after in enumerate(
            reworded(saying(captions), Imbalance("truncate", 1.0, severity=severity)), start=1
        ):
            left = max(1, ceil(count * (1 - Fraction(15 * severity, 100))))
            assert after.split() == [f"w{k}" for k in range(left)]


def test_content_words_loses_function_words() -> None:
    for before, after in [
        ("a man and a woman are sitting on the bench", "man woman sitting bench"),
        ("The two dogs, which were running, did not stop.", "two dogs, running, stop."),
        ("THE dog barks at it.", "dog barks"),
        ("children playing", "children playing"),
        ("he is with them", "them"),
        ("another", "another"),
    ]:
        assert reworded(saying([before]), Imbalance("content_words", 1.0)) == [after]


def test_typos_drop_double_replace_and_swap_characters_equally_often() -> None:
    for severity in SEVERITIES:
        count, probability = 20_000, 0.03 * severity
        word = "".join(chr(0x4E00 + k) for k in range(count))  # every character once, none of them a Latin letter
        (after,) = reworded(saying([word]), Imbalance("typos", 1.0, severity=severity))
        times = Counter(after)
        replaced = sum(times[letter] for letter in "abcdefghijklmnopqrstuvwxyz")
        assert set(after) - set("abcdefghijklmnopqrstuvwxyz") <= set(word)
        dropped = sum(letter not in times for letter in word) - replaced
        doubled = sum(times[letter] == 2 for letter in word)
        swapped = sum(a > b for a, b in pairwise(letter for letter in after if letter in word))
        for number in (replaced, dropped, doubled):
            assert deviations(number, count, probability / 4) < 4.5
        # A swap is seen where a greater character comes first; the next place's own drop, replacement or swap hides it.
        assert deviations(swapped, count, probability / 4 * (1 - 3 * probability / 4)) < 4.5


def test_typos_keep_the_number_of_words() -> None:
    table = saying(["a b c d e f g h"] * 500)
    after = reworded(table, Imbalance("typos", 1.0))
    assert after != list(table.captions)
    assert {len(caption.split()) for caption in after} == {8}


def test_missing_captions_are_empty() -> None:
    for level in ["image", "caption"]:
        imbalance = Imbalance("missing", 0.5, "text", level)
        after = reworded(TABLE, imbalance)
        assert after.count("") == 150
        assert all(new in ("", old) for old, new in zip(TABLE.captions, after, strict=True))


@pytest.mark.parametrize("kind", ["drop_words", "mask_words", "truncate", "typos"])
def test_intact_words_decrease_with_severity(kind: Kind) -> None:
    intact = []
    for severity in SEVERITIES:
        after = reworded(TABLE, Imbalance(kind, 1.0, severity=severity))
        intact.append(
            sum(word in new.split() for old, new in zip(TABLE.captions, after, strict=True) for word in old.split())
        )
    assert intact == sorted(set(intact), reverse=True)


@by_kind
def test_rewording_changes_the_chosen_captions_only_and_depends_on_ids_only(imbalance: Imbalance) -> None:
    some = replace(imbalance, ratio=0.3, seed=2)
    chosen = set(some.choose(TABLE).tolist())
    every = reworded(TABLE, replace(some, ratio=1.0))
    assert len(chosen) == 90
    assert reworded(TABLE, some) == [every[row] if row in chosen else old for row, old in enumerate(TABLE.captions)]

    images = replace(imbalance, ratio=0.5, level="image", seed=1)
    chosen = set(images.choose(RAGGED).tolist())
    every = reworded(RAGGED, replace(images, ratio=1.0, level="caption"))
    assert len(chosen) == 4
    for row, caption in enumerate(reworded(RAGGED, images)):
        assert caption == (every[row] if RAGGED.caption_image[row] in chosen else RAGGED.captions[row])

    for level in ("image", "caption"):
        some = replace(imbalance, ratio=0.5, level=level, seed=3)
        ordered, reordered = (imbalanced(table, [some]).table for table in (RAGGED, shuffled(RAGGED)))
        assert words_of_caption(ordered) == words_of_caption(reordered)

    alone = CaptionTable("worded", "train", ["i"], [TABLE.captions[7]], [TABLE.caption_ids[7]], np.zeros(1, np.int64))
    assert reworded(alone, imbalance) == [reworded(TABLE, imbalance)[7]]
    for caption in ("", "word", "a"):
        (after,) = reworded(saying([caption]), imbalance)
        assert len(after.split()) == (0 if imbalance.kind == "missing" else len(caption.split()))


def test_seeds_and_ids_change_different_words() -> None:
    for kind in RANDOM:
        table = saying(["some words that are the same in each of the captions"] * 200)
        first, second = (reworded(table, Imbalance(kind, 1.0, severity=4, seed=seed)) for seed in (0, 1))
        assert np.mean([a != b for a, b in zip(first, second, strict=True)]) > 0.9
        assert len(set(first)) > 80


def test_kinds_hit_different_words() -> None:
    dropped, masked = (reworded(TABLE, Imbalance(kind, 1.0, severity=3)) for kind in ("drop_words", "mask_words"))
    both = sum(
        word in short.split() and word in hidden.split()
        for whole, short, hidden in zip(TABLE.captions, dropped, masked, strict=True)
        for word in whole.split()
    )
    assert deviations(both, 12 * len(TABLE.captions), 0.55**2) < 4.5


def test_rewording_does_not_change_between_versions() -> None:
    """Another answer would change the wording of every published number."""
    table = replace(
        worded((1,)), captions=["two young men in green shirts stand beside a red car"], caption_ids=["0.jpg#0"]
    )
    assert {i.kind: reworded(table, replace(i, severity=3, seed=7))[0] for i in EVERY_KIND} == {
        "drop_words": "two young men shirts stand beside red car",
        "mask_words": "[MASK] young [MASK] in [MASK] [MASK] [MASK] [MASK] a [MASK] [MASK]",
        "truncate": "two young men in green shirts stand",
        "content_words": "two young men green shirts stand red car",
        "typos": "tow younw men in ggreeen hirtts stand besdie a red car",
        "missing": "",
    }
