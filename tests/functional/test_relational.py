import math

import pytest
import torch
import torch.nn.functional as F
from scipy.special import rel_entr, softmax

from sdr_lightning.functional.relational import (
    fuse_relations,
    off_diagonal,
    relation_distance,
    relation_matrix,
    relations,
    student_instances,
    weighted_wasserstein,
)
from tests.reference import losses as reference

RELATIONS = ["fused", "image_image", "text_text", "image_text", "averaged"]
DISTANCES = ["mae", "mse", "kl", "wasserstein", "weighted_wasserstein", "paper_cumsum", "rkd_distance", "rkd_angle"]


def rows(count=5, width=4, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_relation(kind, seed=0, size=5):
    """A relation of the shape that the distance compares; its entries differ by less and by more than 1."""
    shape = (size,) * (3 if kind == "rkd_angle" else 2)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(seed, size=5):
    return random_relation("mae", seed, size).abs()


def permuted(relation, order):
    for axis in range(relation.ndim):
        relation = relation.index_select(axis, order)
    return relation


def rotation(width, seed=0):
    return torch.linalg.qr(rows(width, width, seed)).Q


def close(actual, expected, tolerance=1e-8):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


# --- Relations.


def test_cosines_by_hand():
    items = torch.tensor([[3.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    half = math.sqrt(0.5)
    close(relation_matrix(items), [[1, 0, half], [0, 1, half], [half, half, 1]], 1e-6)
    others = torch.tensor([[0.0, 2.0], [-1.0, 0.0], [0.0, -4.0]])
    close(relation_matrix(items, others), [[0, -1, 0], [1, 0, -1], [half, -half, -half]], 1e-6)


def test_euclidean_relations_by_hand():
    # Distances 3, 4 and 5; their mean is 4, and the zeros of the diagonal are not part of it.
    items = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    close(relations(items, None, "rkd_distance"), [[0, 0.75, 1], [0.75, 0, 1.25], [1, 1.25, 0]], 1e-6)


def test_angles_by_hand():
    items = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    angles = relations(items, None, "rkd_angle")  # (vertex, i, k)
    assert angles.shape == (3, 3, 3)
    assert [angles[0, 1, 2], angles[1, 0, 2], angles[2, 0, 1]] == pytest.approx([0, 0.6, 0.8], abs=1e-6)


@pytest.mark.parametrize("kind", ["mae", "rkd_distance", "rkd_angle"])
def test_relations_ignore_scale_and_rotation(kind):
    for dtype in [torch.float32, torch.float64]:
        for scale in [1e-4, 7, 1e4]:
            items = rows().to(dtype)
            plain = relations(items, None, kind)
            torch.testing.assert_close(relations(items * scale, None, kind), plain, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(
                relations(items @ rotation(4).to(dtype), None, kind), plain, rtol=1e-5, atol=1e-6
            )


def test_cosines_ignore_each_rows_scale_and_the_others_each_shift():
    items, scales = rows(), torch.tensor([[0.1], [1.0], [7.0], [100.0], [2.0]], dtype=torch.float64)
    torch.testing.assert_close(relation_matrix(items * scales), relation_matrix(items))
    for kind in ("rkd_distance", "rkd_angle"):
        torch.testing.assert_close(relations(items + scales.T[:, :4], None, kind), relations(items, None, kind))


def test_distances_of_near_rows_are_exact():
    items = rows(40).float()  # from 26 rows on, torch would take products, which lose what is near
    items[1] = items[0] + 1e-4
    exact = relations(items.double(), None, "rkd_distance")
    torch.testing.assert_close(relations(items, None, "rkd_distance").double(), exact, rtol=1e-5, atol=0)


def test_zero_row_has_zero_relations():
    items = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    relation = relation_matrix(items)
    assert relation.tolist() == [[0, 0], [0, 1]]
    relation.sum().backward()
    assert items.grad.isfinite().all()


def test_student_relations_by_hand():
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    text = torch.tensor([[0.6, 0.8], [0.0, 1.0]])
    tokens = torch.tensor([[5.0, 0.0], [3.0, 4.0]])

    def student(kind):
        return relation_matrix(*student_instances(image, text, tokens, kind))

    close(student("fused"), [[1, 0.6], [0.6, 1]], 1e-6)
    close(student("image_image"), [[1, 0], [0, 1]], 1e-6)
    close(student("text_text"), [[1, 0.8], [0.8, 1]], 1e-6)
    # Row: image, column: text.
    close(student("image_text"), [[0.6, 0], [0.8, 1]], 1e-6)
    cosine = 0.8 / math.sqrt(1.6**2 + 0.8**2)
    close(student("averaged"), [[1, cosine], [cosine, 1]], 1e-6)


@pytest.mark.parametrize(
    ("kind", "distance"),
    [
        ("fused", "mae"),
        ("image_image", "rkd_distance"),
        ("text_text", "rkd_angle"),
        ("image_text", "mae"),
        ("image_text", "rkd_angle"),
        ("averaged", "rkd_distance"),
    ],
)
def test_student_relations_and_their_gradients_equal_the_reference(kind, distance):
    inputs = [rows().requires_grad_(), rows(seed=1).requires_grad_(), rows(width=3, seed=2).requires_grad_()]
    relation = relations(*student_instances(*inputs, kind), distance)
    counts = torch.ones_like(relation, dtype=torch.bool)
    if distance == "rkd_angle":  # angles of less than three instances mean nothing
        triplets = torch.cartesian_prod(*[torch.arange(5)] * 3)
        counts = torch.tensor([len(set(triplet)) == 3 for triplet in triplets.tolist()]).view(5, 5, 5)
    weights, plain = random_relation(distance, 3) * counts, [tensor.tolist() for tensor in inputs]

    def expected(*changed):
        found = reference.relations(*reference.student_instances(*changed, kind), distance)
        return torch.tensor(found, dtype=torch.float64)

    close(relation[counts].detach(), expected(*plain)[counts].tolist())
    (relation * weights).sum().backward()
    for position, tensor in enumerate(inputs):
        slopes = reference.gradient(
            lambda r, p=position: (expected(*plain[:p], r, *plain[p + 1 :]) * weights).sum().item(), plain[position]
        )
        close(tensor.grad if tensor.grad is not None else torch.zeros_like(tensor), slopes, 1e-7)


def test_fused_relation_by_hand():
    image, text = torch.tensor([[1.0, 0.2], [0.2, 1.0]]), torch.tensor([[1.0, 0.6], [0.6, 1.0]])
    assert torch.equal(fuse_relations(image, text, 0.0), image)
    assert torch.equal(fuse_relations(image, text, 1.0), text)
    close(fuse_relations(image, text, 0.75), [[1, 0.5], [0.5, 1]], 1e-6)


def test_gradient_of_lambda_is_the_difference_of_the_relations():
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    image, text = rows(3, 3), rows(3, 3, seed=1)
    fuse_relations(image, text, share).sum().backward()
    torch.testing.assert_close(share.grad, (text - image).sum())


def test_off_diagonal_keeps_the_row_order():
    matrix = torch.arange(9.0).view(3, 3)
    assert off_diagonal(matrix).tolist() == [[1, 2], [3, 5], [6, 7]]
    assert off_diagonal(matrix.T).tolist() == [[3, 6], [1, 7], [2, 5]]
    assert off_diagonal(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [[2], [3]]
    assert off_diagonal(torch.tensor([[1.0]])).shape == (1, 0)


# --- Distances.


def test_distances_by_hand():
    first = torch.tensor([[9.0, 1.0], [2.0, 9.0]])
    second = torch.tensor([[0.0, 4.0], [1.0, 0.0]])  # the diagonals differ most, and do not count
    assert relation_distance(first, second, "mae").item() == 2
    assert relation_distance(first, second, "mse").item() == 5
    assert relation_distance(first, second, "wasserstein").item() == 2
    assert relation_distance(first, second, "paper_cumsum").item() == 2.5  # |1 - 4| and |3 - 5|
    assert relation_distance(first, second, "rkd_distance").item() == 1.5  # 3 - 1/2 and 1 - 1/2
    # A row of one value has one weight, which scales the values and is normalised away as a weight.
    weights = torch.tensor([[9.0, 0.5], [2.0, 9.0]])
    assert relation_distance(first, second, "weighted_wasserstein", weights).item() == 1.75
    assert relation_distance(first, second).item() == 2  # mae is the published one


def test_kl_by_hand():
    first, second = torch.zeros(3, 3), torch.tensor([[7.0, math.log(3), 0], [0, 7, math.log(3)], [0, 0, 7]])
    # Targets of 3/4 and 1/4 against halves, twice, and halves against halves.
    apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert relation_distance(first, second, "kl").item() == pytest.approx(2 / 3 * apart)


def test_weighted_wasserstein_by_hand():
    # u = {0, 1 * 2} against v = {1 * 1, 0} with masses 1/3 at the first, 2/3 at the second value.
    values, others, weights = ([[0.0, 1.0]], [[1.0, 0.0]], [[1.0, 2.0]])
    distance = weighted_wasserstein(*(torch.tensor(x) for x in (values, others, weights)))
    # F_u: 1/3 from 0, 1 from 2; F_v: 2/3 from 0, 1 from 1; the integral is 1/3 + 2/3.
    assert distance.item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distances_and_their_gradients_equal_the_reference(kind):
    for size in [3, 5]:
        inputs = [random_relation(kind, 0, size), random_relation(kind, 1, size), positive(2, size)]
        inputs = [tensor.requires_grad_() for tensor in inputs[: 3 if kind == "weighted_wasserstein" else 2]]
        first, second, *weights = inputs
        value = relation_distance(first, second, kind, *weights)
        value.backward()
        plain = [tensor.tolist() for tensor in inputs]

        def distance(*changed):
            return reference.distance(*changed[:2], kind, *changed[2:])

        close(value.detach(), distance(*plain))
        for position, tensor in enumerate(inputs):
            slopes = reference.gradient(
                lambda r, p=position, x=plain: distance(*x[:p], r, *x[p + 1 :]), plain[position]
            )
            close(tensor.grad, slopes)


@pytest.mark.parametrize("kind", DISTANCES)
def test_distance_properties(kind):
    first, second, weights = random_relation(kind), random_relation(kind, 1), positive(2)
    order = torch.tensor([2, 0, 4, 1, 3])
    distance = relation_distance(first, second, kind, weights)
    assert distance > 0
    assert relation_distance(first, first, kind, weights) == 0
    there_and_back = relation_distance(second, first, kind, weights)
    assert torch.isclose(there_and_back, distance) == (kind != "kl")
    reordered = relation_distance(
        *(permuted(tensor, order) for tensor in (first, second)), kind, permuted(weights, order)
    )
    assert torch.isclose(reordered, distance) == (kind != "paper_cumsum")


def test_diagonal_is_ignored():
    for kind in DISTANCES:
        first, second, weights = random_relation(kind), random_relation(kind, 1), positive(2)
        distance = relation_distance(first, second, kind, weights)
        itself = torch.eye(5, dtype=torch.bool)
        if kind == "rkd_angle":
            itself = itself[:, :, None] | itself[:, None, :] | itself[None, :, :]
        changed = relation_distance(first.masked_fill(itself, 50), second, kind, weights + 50 * torch.eye(5))
        torch.testing.assert_close(changed, distance)


def test_kl_is_a_divergence():
    for seed in range(3):
        first, target = 3 * random_relation("kl", seed), 3 * random_relation("kl", 10 + seed)
        p, q = (softmax(off_diagonal(relation).numpy(), axis=1) for relation in (target, first))
        found = relation_distance(first, target, "kl").item()
        assert found == pytest.approx(rel_entr(p, q).sum(axis=1).mean(), rel=1e-10)
        assert found != pytest.approx(rel_entr(q, p).sum(axis=1).mean(), rel=1e-2)
        assert found > 0
        assert relation_distance(first + 5, first, "kl").item() == pytest.approx(0, abs=1e-12)  # softmax sees no shift


def test_wasserstein_ignores_the_order_within_a_row():
    first = random_relation("mae")
    turned = first.clone()
    turned[0, 1:] = first[0, 1:].flip(0)
    assert relation_distance(turned, first, "mae") > 0
    assert relation_distance(turned, first, "wasserstein") == 0
    swapped = first[[1, 0, 2, 3, 4]]  # but it sees whose row it is
    assert relation_distance(swapped, first, "wasserstein") > 0


def test_unit_weights_equal_the_unweighted_distance():
    first, second = random_relation("mae"), random_relation("mae", 1)
    weighted = relation_distance(first, second, "weighted_wasserstein", torch.ones_like(first))
    torch.testing.assert_close(weighted, relation_distance(first, second, "wasserstein"))


def test_row_of_zero_weights_contributes_zero():
    values, others, weights = rows().requires_grad_(), rows(seed=1), rows(seed=2).abs()
    weights[1] = 0
    weights.requires_grad_()
    distance = weighted_wasserstein(values, others, weights)
    kept = [0, 2, 3, 4]
    torch.testing.assert_close(distance, 0.8 * weighted_wasserstein(values[kept], others[kept], weights[kept]))
    distance.backward()
    assert values.grad.isfinite().all()
    assert weights.grad.isfinite().all()


def test_too_small_batches_have_zero_distance_and_gradient():
    for kind, size in [("rkd_angle", 2)] + [(kind, 1) for kind in DISTANCES]:
        relation = random_relation(kind, 0, size).requires_grad_()
        distance = relation_distance(relation, random_relation(kind, 1, size), kind, positive(2, size))
        distance.backward()
        assert distance.item() == 0
        assert not relation.grad.any()


def test_gradients_are_finite_for_equal_embeddings():
    for kind in DISTANCES:
        items, others = rows(1).repeat(2, 1).requires_grad_(), rows(2, seed=1)
        target, weights = relations(others, None, kind), 1 - relation_matrix(rows(2, seed=2))
        distance = relation_distance(relations(items, None, kind), target, kind, weights)
        distance.backward()
        assert distance.isfinite()
        assert items.grad.isfinite().all()


# --- Derivatives by torch, and errors.


def test_gradients_by_gradcheck():
    image, text = rows().requires_grad_(), rows(seed=1).requires_grad_()
    share = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for kind in DISTANCES:

        def distance(v, t, s, kind=kind):
            image_relation, text_relation = relations(v, None, kind), relations(t, None, kind)
            target = fuse_relations(image_relation, text_relation, s)
            return relation_distance(relations(v, t, kind), target, kind, 1 - relation_matrix(t))

        assert torch.autograd.gradcheck(distance, (image, text, share)), kind


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("imgae_image",), "unknown student relation 'imgae_image'"), (("fused",), "needs a fusion encoder")],
)
def test_invalid_student_relations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        student_instances(torch.eye(2), torch.eye(2), None, *arguments)


def test_weighted_wasserstein_needs_weights():
    with pytest.raises(ValueError, match="needs weights"):
        relation_distance(torch.eye(3), torch.eye(3), "weighted_wasserstein")


def test_student_instances_are_returned_unchanged():
    for kind in RELATIONS:
        image, text, tokens = (F.normalize(rows(seed=seed), dim=1) for seed in range(3))
        instances, columns = student_instances(image, text, tokens, kind)
        assert (columns is text) == (kind == "image_text")
        if kind != "averaged":
            assert instances is {"fused": tokens, "text_text": text}.get(kind, image)
