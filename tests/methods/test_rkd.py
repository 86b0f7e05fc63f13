"""RKD against the public code's numbers, the triplet-by-triplet relations, and its properties."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sdr_lightning.functional.relational import relation_distance, relations
from sdr_lightning.functional.rkd import angle_gap, distance_gap
from sdr_lightning.methods import RKD
from tests.methods.test_methods import SIZE, some_pairs


def instances(number: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_rkd_equals_the_public_code() -> None:
    """HobbitLong/RepDistiller at b84f547c: RKDLoss, image and text, times the shares of different pairs and triplets."""
    found = RKD().double()(some_pairs())
    distance, angle = 0.30224116601068535 + 0.053000576770003666, 0.21293125865280838 + 0.03534126661842483
    assert found["distance"].item() == pytest.approx(distance * SIZE / (SIZE - 1), rel=1e-6)
    assert found["angle"].item() == pytest.approx(angle * SIZE**2 / ((SIZE - 1) * (SIZE - 2)), rel=1e-6)


def slow_angle(student: list[list[float]], teacher: list[list[float]]) -> float:
    def cosine(rows: list[list[float]], i: int, j: int, k: int) -> float:
        first = [a - b for a, b in zip(rows[i], rows[j], strict=True)]
        second = [a - b for a, b in zip(rows[k], rows[j], strict=True)]
        lengths = math.hypot(*first) * math.hypot(*second)
        return sum(a * b for a, b in zip(first, second, strict=True)) / lengths if lengths else 0.0

    gaps = [
        abs(cosine(student, *triplet) - cosine(teacher, *triplet))
        for triplet in itertools.permutations(range(len(student)), 3)
    ]
    return sum(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps) / len(gaps)


@pytest.mark.parametrize("equal", [False, True], ids=["different", "two equal instances"])
def test_angles_equal_a_triplet_by_triplet_reference(equal: bool) -> None:
    student, teacher = instances(6, 4), instances(6, 3, seed=1)
    if equal:
        student[4], teacher[2] = student[1], teacher[5]
    expected = slow_angle(student.tolist(), teacher.tolist())
    assert angle_gap(student, teacher).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("entries", [1, 3 * 7**2], ids=["one vertex at a time", "three"])
def test_tiles_change_neither_the_value_nor_the_gradient(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdr_lightning.functional.rkd.entries_of_a_tile", lambda _: entries)
    student, teacher = instances(7, 4).requires_grad_(), instances(7, 3, seed=1)
    found = angle_gap(student, teacher)
    target = relations(teacher, None, "rkd_angle")
    expected = relation_distance(relations(student, None, "rkd_angle"), target, "rkd_angle")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))


@pytest.mark.parametrize("equal", [False, True], ids=["different", "two equal instances"])
def test_distances_equal_those_of_the_structure_terms(equal: bool) -> None:
    student, teacher = instances(6, 4), instances(6, 3, seed=1)
    if equal:
        student[4], teacher[2] = student[1], teacher[5]
    student.requires_grad_()
    found = distance_gap(student, teacher)
    target = relations(teacher, None, "rkd_distance")
    expected = relation_distance(relations(student, None, "rkd_distance"), target, "rkd_distance")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, student)[0] for loss in (found, expected)))


def test_some_vertices_give_the_mean_over_their_triplets() -> None:
    pairs = some_pairs()
    found = RKD(angle_vertices=2).double()(pairs)["angle"]
    expected = sum(
        angle_gap(getattr(pairs, modality), getattr(pairs, f"{modality}_teacher"), slice(row, row + 1)) / 2
        for modality in ("image", "text")
        for row in range(2)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(RKD(angle_vertices=SIZE)(pairs), RKD()(pairs))
    assert RKD().supports_local_loss
    assert not RKD(angle_vertices=2).supports_local_loss
    with pytest.raises(ValueError, match="angle_vertices must be at least 1, got 0"):
        RKD(angle_vertices=0)


@pytest.mark.parametrize("gap", [distance_gap, angle_gap])
def test_gaps_do_not_depend_on_position_scale_and_rotation(gap) -> None:
    student = instances(6, 4)
    rotation = torch.linalg.qr(instances(4, 4, seed=2)).Q
    assert gap(student, 3 * student @ rotation + 5).item() == pytest.approx(0, abs=1e-12)
    assert gap(student, instances(6, 4, seed=1)) > 0.01


@pytest.mark.parametrize("gap", [distance_gap, angle_gap])
@pytest.mark.parametrize("number", [1, 2])
def test_batches_that_are_too_small_to_relate_cost_nothing(gap, number: int) -> None:
    student = instances(number, 4).requires_grad_()
    loss = gap(student, instances(number, 3))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_each_modality_follows_its_own_teacher_whatever_the_pairing_is() -> None:
    method, pairs = RKD(), some_pairs()
    terms, order = method(pairs), torch.tensor([3, 0, 4, 1, 2])
    mispaired = method(pairs._replace(text=pairs.text[order], text_teacher=pairs.text_teacher[order]))
    torch.testing.assert_close([terms["distance"], terms["angle"]], [mispaired["distance"], mispaired["angle"]])
    assert terms["info_nce"] != mispaired["info_nce"]


def test_a_term_without_weight_is_not_computed() -> None:
    assert RKD(angle_weight=0)(some_pairs()).keys() == {"info_nce", "distance"}
    assert RKD().needs == {"image_teacher", "text_teacher"}
    with pytest.raises(ValueError, match="weight of 'angle' must be finite and >= 0, got -1"):
        RKD(angle_weight=-1)
    with pytest.raises(ValueError, match="needs text-teacher features"):
        RKD()(some_pairs()._replace(text_teacher=None))
