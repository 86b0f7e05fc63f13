"""Captions that say little or nothing."""

import numpy as np
import pytest

from sdr_lightning.cleaning.captions import EMPTY, FEW_WORDS, FILE_NAME, NO_WORDS, REPEATED, flaws, normalised


@pytest.mark.parametrize(
    ("caption", "flaw"),
    [
        ("a dog runs", ""),
        ("狗在跑", ""),
        ("ein Hund läuft!", ""),
        ("  ", EMPTY),
        ("?!...", NO_WORDS),
        ("12 / 2019", NO_WORDS),
        ("IMG_2034.JPG", FILE_NAME),
        ("dsc 00017", FILE_NAME),
        ("The holiday photo", FILE_NAME),  # the name of its image
        ("a dog", FEW_WORDS),
        ("dog, dog.", FEW_WORDS),
    ],
)
def test_flaws_of_a_caption(caption: str, flaw: str) -> None:
    assert flaws([caption], np.array([0]), ["x/the_holiday-photo.png"]) == [flaw]


def test_a_caption_of_many_images_is_repeated_and_many_captions_of_one_image_are_not() -> None:
    same = ["A dog runs.", "a dog runs", "a  dog, runs", "A DOG RUNS!", "a dog runs"]
    ids = [str(row) for row in range(5)]
    assert flaws(same, np.arange(5), ids) == [REPEATED] * 5
    assert flaws(same, np.array([0, 0, 1, 2, 3]), ids) == [""] * 5
    many = [str(row) for row in range(6000)]  # a thousandth of the images, six
    assert flaws(same, np.arange(5), many) == [""] * 5


def test_normalised_captions_differ_in_words_only() -> None:
    assert normalised("Ａ dog—running") == normalised("a DOG running!")
    assert normalised("a dog") != normalised("a dogs")
