import math

import pytest
import torch

from sdr_lightning.functional.relational import (
    fuse_relations,
    off_diagonal,
    relation_distance,
    relation_matrix,
    student_relation,
)
from tests.reference import losses as reference

RELATIONS = ["image_image", "text_text", "image_text", "averaged"]


def rows(count=5, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width, seed=0):
    return torch.linalg.qr(rows(width, width, seed)).Q


def close(actual, expected, tolerance=1e-8):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def test_cosines_by_hand():
    items = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    half = math.sqrt(0.5)
    close(relation_matrix(items), [[1, 0, half], [0, 1, half], [half, half, 1]], 1e-6)
    others = torch.tensor([[0.0, 2.0], [-1.0, 0.0], [0.0, -4.0]])
    close(relation_matrix(items, others), [[0, -1, 0], [1, 0, -1], [half, -half, -half]], 1e-6)


def test_relations_ignore_scale_and_rotation():
    items = rows()
    scales = torch.tensor([[0.1], [1.0], [7.0], [100.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(relation_matrix(items * scales), relation_matrix(items))
    torch.testing.assert_close(relation_matrix(items @ rotation(4)), relation_matrix(items))


def test_a_zero_row_relates_to_nothing():
    items = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    relation = relation_matrix(items)
    assert relation.tolist() == [[0, 0], [0, 1]]
    relation.sum().backward()
    assert items.grad.isfinite().all()


def test_student_relations_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    close(student_relation(image, text, "image_image"), [[1, 0], [0, 1]], 1e-6)
    close(student_relation(image, text, "text_text"), [[1, 0.8], [0.8, 1]], 1e-6)
    # Row: image, column: text.
    close(student_relation(image, text, "image_text"), [[0.6, 0], [0.8, 1]], 1e-6)
    cosine = 0.8 / math.sqrt(1.6**2 + 0.8**2)
    close(student_relation(image, text, "averaged"), [[1, cosine], [cosine, 1]], 1e-6)


@pytest.mark.parametrize("kind", RELATIONS)
def test_student_relations_and_their_gradients_equal_the_reference(kind):
    image, text, weights = rows().requires_grad_(), rows(seed=1).requires_grad_(), rows(5, 5, seed=2)
    relation = student_relation(image, text, kind)
    (relation * weights).sum().backward()
    v, t, w = image.tolist(), text.tolist(), weights.tolist()

    def weighted(v, t):
        return sum(reference.dot(a, b) for a, b in zip(reference.student_relation(v, t, kind), w, strict=True))

    close(relation.detach(), reference.student_relation(v, t, kind))
    for tensor, expected in (
        (image, reference.gradient(lambda r: weighted(r, t), v)),
        (text, reference.gradient(lambda r: weighted(v, r), t)),
    ):
        close(tensor.grad if tensor.grad is not None else torch.zeros_like(tensor), expected, 1e-7)


def test_fused_relation_by_hand():
    image, text = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    assert torch.equal(fuse_relations(image, text, 0.0), image)
    assert torch.equal(fuse_relations(image, text, 1.0), text)
    close(fuse_relations(image, text, 0.75), [[1, 0.5], [0.5, 1]], 1e-6)


def test_the_share_is_moved_by_the_difference_of_the_relations():
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    image, text = rows(3, 3), rows(3, 3, seed=1)
    fuse_relations(image, text, share).sum().backward()
    torch.testing.assert_close(share.grad, (text - image).sum())


def test_off_diagonal_keeps_the_row_order():
    matrix = torch.arange(9.0).view(3, 3)
    assert off_diagonal(matrix).tolist() == [1, 2, 3, 5, 6, 7]
    assert off_diagonal(matrix.T).tolist() == [3, 6, 1, 7, 2, 5]
    assert off_diagonal(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [2, 3]
    assert off_diagonal(torch.tensor([[1.0]])).tolist() == []


def test_distances_by_hand():
    first = torch.tensor([[9.0, 1.0], [2.0, 9.0]])
    second = torch.tensor([[0.0, 4.0], [1.0, 0.0]])  # the diagonals differ most, and do not count
    assert relation_distance(first, second, "mae").item() == 2
    assert relation_distance(first, second, "mse").item() == 5
    assert relation_distance(first, second).item() == 2  # mae is the published one


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_distances_and_their_gradients_equal_the_reference(kind):
    first, second = rows(5, 5).requires_grad_(), rows(5, 5, seed=1).requires_grad_()
    value = relation_distance(first, second, kind)
    value.backward()
    a, b = first.tolist(), second.tolist()
    close(value.detach(), reference.distance(a, b, kind))
    close(first.grad, reference.gradient(lambda r: reference.distance(r, b, kind), a))
    close(second.grad, reference.gradient(lambda r: reference.distance(a, r, kind), b))


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_distance_properties(kind):
    first, second = rows(5, 5), rows(5, 5, seed=1)
    order = torch.tensor([2, 0, 4, 1, 3])
    distance = relation_distance(first, second, kind)
    torch.testing.assert_close(relation_distance(second, first, kind), distance)
    torch.testing.assert_close(relation_distance(first.T, second.T, kind), distance)
    torch.testing.assert_close(relation_distance(first[order][:, order], second[order][:, order], kind), distance)
    assert relation_distance(first, first + torch.eye(5), kind) == 0
    assert distance > 0


@pytest.mark.parametrize("kind", ["mae", "mse"])
def test_a_batch_of_one_has_no_relations_and_a_gradient_of_zero(kind):
    relation = torch.tensor([[0.3]], requires_grad=True)
    distance = relation_distance(relation, torch.tensor([[0.9]]), kind)
    distance.backward()
    assert distance.item() == 0
    assert relation.grad.item() == 0


def test_gradients_by_gradcheck():
    image, text = rows().requires_grad_(), rows(seed=1).requires_grad_()
    share = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for kind in RELATIONS:
        assert torch.autograd.gradcheck(lambda v, t, kind=kind: student_relation(v, t, kind), (image, text))
    for kind in ("mae", "mse"):
        assert torch.autograd.gradcheck(
            lambda v, t, s, kind=kind: relation_distance(
                fuse_relations(relation_matrix(v), relation_matrix(t), s), torch.zeros_like(v @ t.T), kind
            ),
            (image, text, share),
        )
