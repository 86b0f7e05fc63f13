from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.functional.information import information_imbalance

Space = NDArray[np.float64]


def similarities(space: Space) -> Space:
    lengths = np.linalg.norm(space, axis=1, keepdims=True)
    unit = np.divide(space, lengths, out=np.zeros_like(space), where=lengths > 0)
    return np.round(unit @ unit.T, 12)


def slow_ranks(space: Space) -> Space:
    """Rank of point j among the others of point i, from 1 for the nearest; equals share their mean rank."""
    near, points = similarities(space), len(space)
    ranks = np.zeros((points, points))
    for i in range(points):
        for j in range(points):
            if i == j:
                continue
            others = [k for k in range(points) if k != i]
            nearer = sum(near[i, k] > near[i, j] for k in others)
            equal = sum(near[i, k] == near[i, j] for k in others)
            ranks[i, j] = nearer + (equal + 1) / 2
    return ranks


def slow_imbalance(a: Space, b: Space, k: int) -> float:
    """Eq. 2 of Glielmo et al. with k neighbours; A must hold no ties."""
    points, near, ranks = len(a), similarities(a), slow_ranks(b)
    found = []
    for i in range(points):
        others = sorted((j for j in range(points) if j != i), key=lambda j: -near[i, j])
        found += [ranks[i, j] for j in others[:k]]
    return float(2 / points * np.mean(found))


def gaussian(points: int, width: int, seed: int) -> Tensor:
    return torch.randn(points, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(points: int, width: int, seed: int) -> Tensor:
    """Few values, so that many points are at the same distance, and some are zero."""
    return torch.randint(-1, 2, (points, width), generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(("k", "make_b"), [(1, gaussian), (5, integers), (28, integers)])
def test_imbalance_equals_the_reference(make_b: Callable[[int, int, int], Tensor], k: int) -> None:
    a, b = gaussian(29, 6, 0), make_b(29, 3, 10)
    assert information_imbalance(a, b, k) == pytest.approx(slow_imbalance(a.numpy(), b.numpy(), k), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(points=st.integers(2, 12), seed=st.integers(0, 1000), data=st.data())
def test_imbalance_equals_the_reference_on_small_spaces(points: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, points - 1))
    a, b = gaussian(points, 3, seed), integers(points, 2, seed)
    assert information_imbalance(a, b, k) == pytest.approx(slow_imbalance(a.numpy(), b.numpy(), k), abs=1e-12)


def test_result_is_independent_of_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = gaussian(60, 5, 0), integers(60, 4, 1)
    whole = information_imbalance(a, b, 3)
    monkeypatch.setattr("sdr_lightning.functional.information._CHUNK", 7)
    assert information_imbalance(a, b, 3) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(("points", "k"), [(40, 1), (900, 5)])
def test_equal_spaces_have_the_lowest_imbalance(points: int, k: int) -> None:
    a = gaussian(points, 8, 0)
    assert information_imbalance(a, a, k) == pytest.approx((k + 1) / points, abs=1e-12)


def test_independent_spaces_have_imbalance_one() -> None:
    for k in [1, 5]:
        a, b = gaussian(1000, 8, 0), gaussian(1000, 8, 1)
        assert information_imbalance(a, b, k) == pytest.approx(1, abs=0.05)
        assert information_imbalance(b, a, k) == pytest.approx(1, abs=0.05)


def test_rotation_and_the_length_of_rows_do_not_matter() -> None:
    for which in [0, 1]:
        spaces = [gaussian(50, 6, 0), gaussian(50, 6, 0) + 0.7 * gaussian(50, 6, 1)]
        before = information_imbalance(*spaces, 4)
        rotation, _ = torch.linalg.qr(gaussian(6, 6, 2))
        spaces[which] = spaces[which] @ rotation * torch.linspace(0.01, 100, 50)[:, None]
        assert information_imbalance(*spaces, 4) == pytest.approx(before, abs=1e-12)
        assert 0.1 < before < 0.9


def test_the_order_of_the_points_does_not_matter() -> None:
    a, b = gaussian(50, 6, 0), integers(50, 6, 1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    assert information_imbalance(a[order], b[order], 4) == pytest.approx(information_imbalance(a, b, 4), abs=1e-12)
    assert information_imbalance(a[order], a, 4) > 0.5


def test_subspace_is_predicted_by_the_whole_but_not_vice_versa() -> None:
    whole = gaussian(800, 4, 0)
    part = whole[:, :2]
    forwards, backwards = information_imbalance(whole, part, 1), information_imbalance(part, whole, 1)
    assert forwards < 0.15
    assert backwards > 3 * forwards


def test_imbalance_grows_with_noise() -> None:
    a, noise = gaussian(400, 6, 0), gaussian(400, 6, 1)
    found = [information_imbalance(a, a + strength * noise, 5) for strength in (0, 0.3, 1, 3, 30)]
    assert found == sorted(found)
    assert found[0] < 0.02
    assert found[-1] > 0.9


def test_constant_space_has_imbalance_one_in_both_directions() -> None:
    for constant in [torch.ones(300, 4), torch.zeros(300, 4)]:
        a = gaussian(300, 6, 0)
        assert information_imbalance(a, constant, 5) == pytest.approx(1, abs=1e-12)
        assert information_imbalance(constant, a, 5) == pytest.approx(1, abs=0.1)
        assert information_imbalance(constant, constant, 5) == pytest.approx(1, abs=1e-12)


def test_tie_breaking_is_random_and_seeded() -> None:
    groups = torch.nn.functional.one_hot(torch.arange(200) // 100).float()
    nearest_first = torch.linspace(0, 1.5, 200)
    line = torch.stack([nearest_first.cos(), nearest_first.sin()], dim=1)
    found = [information_imbalance(groups, line, 1, seed) for seed in (0, 0, 1, 2)]
    assert found[0] == found[1]
    assert len(set(found)) == 3
    assert found == pytest.approx([0.5] * 4, abs=0.06)


def test_any_type_is_compared_in_double_precision() -> None:
    for dtype in [torch.float16, torch.bfloat16, torch.float32, torch.int64]:
        a, b = integers(40, 6, 0) + 2, integers(40, 6, 1)
        assert information_imbalance(a.to(dtype), b.to(dtype), 39) == information_imbalance(a, b, 39)


def test_invalid_spaces_are_refused() -> None:
    for a, b, k, said in [
        (4, 5, 1, "the same two or more points, got 4 and 5"),
        (1, 1, 1, "the same two or more points, got 1 and 1"),
        (0, 0, 1, "the same two or more points, got 0 and 0"),
        (4, 4, 0, "neighbours must be from 1 to 3, got 0"),
        (4, 4, 4, "neighbours must be from 1 to 3, got 4"),
        (4, 4, -1, "neighbours must be from 1 to 3, got -1"),
    ]:
        with pytest.raises(ValueError, match=said):
            information_imbalance(torch.ones(a, 2), torch.ones(b, 2), k)
