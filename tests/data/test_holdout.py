import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdr_lightning.data.holdout import held_out
from sdr_lightning.data.table import Split

SHARES: dict[Split, float] = {"val": 0.3, "test": 0.2}
NAMES = [f"{i:06d}.jpg" for i in range(10_000)]


@given(st.lists(st.text(max_size=5)), st.lists(st.text(max_size=5)), st.integers(0, 3))
def test_split_of_an_image_is_independent_of_other_images(ids: list[str], others: list[str], seed: int) -> None:
    alone = held_out(ids, SHARES, seed)
    among = held_out([*others, *ids[::-1]], SHARES, seed)
    assert among[len(others) :][::-1] == alone


def test_equal_ids_share_a_split() -> None:
    splits = held_out([name for name in NAMES[:200] for _ in range(3)], SHARES, seed=0)
    assert splits[::3] == splits[1::3] == splits[2::3]
    assert len(set(splits)) == 3


def test_holdouts_are_nested_in_the_share() -> None:
    small, large = (held_out(NAMES, {"val": share}, seed=0) for share in (0.1, 0.3))
    assert all(after == "val" for before, after in zip(small, large, strict=True) if before == "val")


def test_shares_are_as_asked() -> None:
    for shares in [{"val": 0.1, "test": 0.1}, {"val": 0.05}, {"test": 0.5, "val": 0.2}, {}]:
        counts = Counter(held_out(NAMES, shares, seed=0))
        assert set(counts) == {"train", *shares}
        for split, share in shares.items():
            deviation = math.sqrt(share * (1 - share) * len(NAMES))
            assert abs(counts[split] - share * len(NAMES)) < 4 * deviation


def test_seeds_draw_differently() -> None:
    first, second = (held_out(NAMES, SHARES, seed) for seed in (0, 1))
    assert first == held_out(NAMES, SHARES, 0)
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / len(NAMES)
    assert agree == pytest.approx(0.5**2 + 0.3**2 + 0.2**2, abs=0.03)


def test_share_of_zero_assigns_no_image() -> None:
    assert set(held_out(NAMES, {"val": 0.0, "test": 0.0}, seed=0)) == {"train"}


def test_shares_that_leave_nothing_to_train_on() -> None:
    for shares in [
        {"val": -0.1},
        {"val": 1.0},
        {"val": 0.5, "test": 0.5},
        {"val": 0.9, "test": 0.2},
        {"val": math.nan},
    ]:
        with pytest.raises(ValueError, match=r"must be in .* and leave something to train on, got"):
            held_out(NAMES[:3], shares, seed=0)
