import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdr_lightning.strings import Strings

TEXTS = st.lists(st.text(max_size=8), max_size=8)
BOUNDS = st.none() | st.integers(-10, 10)


@given(TEXTS)
def test_reads_like_the_list(texts: list[str]) -> None:
    strings = Strings(texts)
    assert len(strings) == len(texts)
    assert list(strings) == texts
    assert [strings[row] for row in range(len(texts))] == texts
    assert [strings[row - len(texts)] for row in range(len(texts))] == texts
    assert list(reversed(strings)) == texts[::-1]


@given(TEXTS, BOUNDS, BOUNDS, st.integers(-3, 3).filter(bool))
def test_slices_like_the_list(texts: list[str], start: int | None, stop: int | None, step: int) -> None:
    part = Strings(texts)[start:stop:step]
    assert isinstance(part, Strings)
    assert list(part) == texts[start:stop:step]


@given(TEXTS, TEXTS)
def test_equals_what_holds_the_same_texts(texts: list[str], others: list[str]) -> None:
    assert Strings(texts) == texts
    assert Strings(texts) == tuple(texts)
    assert (Strings(texts) == Strings(others)) == (texts == others)
    assert hash(Strings(texts)) == hash(Strings(iter(texts)))


@given(TEXTS)
def test_pickles(texts: list[str]) -> None:
    assert pickle.loads(pickle.dumps(Strings(texts))) == texts  # noqa: S301 (our own)


@given(TEXTS, TEXTS)
def test_the_hash_tells_lists_apart(texts: list[str], others: list[str]) -> None:
    assert (Strings(texts).sha256 == Strings(others).sha256) == (texts == others)


def test_hash_depends_on_string_boundaries() -> None:
    assert len({Strings(texts).sha256 for texts in (["ab"], ["a", "b"], ["", "ab"], ["ab", ""], ["a\nb"])}) == 5


@given(TEXTS)
def test_a_repeated_text_is_found(texts: list[str]) -> None:
    repeated = Strings(texts).repeated
    assert (repeated is None) == (len(set(texts)) == len(texts))
    assert repeated is None or texts.count(repeated) > 1


@pytest.mark.parametrize("row", [2, -3, 100])
def test_a_row_beyond_the_end(row: int) -> None:
    with pytest.raises(IndexError, match="of 2 strings"):
        Strings(["", "猫"])[row]


def test_is_no_text() -> None:
    assert Strings(["a", "b"]) != "ab"
    assert Strings(["a"]) != 1


def test_is_short_to_look_at() -> None:
    assert repr(Strings(["a", "b"])) == "Strings(['a', 'b'], 2 in all)"
    assert repr(Strings("abcdef")) == "Strings(['a', 'b', 'c'] ..., 6 in all)"
