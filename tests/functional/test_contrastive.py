import math

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.contrastive import (
    ambiguity_penalty,
    contrast,
    generalised_cross_entropy,
    image_text_contrast,
    nt_xent,
    positive_targets,
    soft_cross_entropy,
)
from tests.reference import losses as reference

IDS = [4, 9, 4, 2, 9, 9, 7]  # groups of one, two and three


def unit_rows(rows, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, width, generator=generator, dtype=torch.float64), dim=1)


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def test_targets_are_spread_over_the_items_of_the_same_image():
    targets = positive_targets(torch.tensor([1, 5, 3]), torch.tensor([3, 1, 3, 3, 1]))
    third = 1 / 3
    expected = [[0, 0.5, 0, 0, 0.5], [0, 0, 0, 0, 0], [third, 0, third, third, 0]]
    torch.testing.assert_close(targets, torch.tensor(expected))
    assert targets.dtype == torch.float32


def test_soft_cross_entropy_by_hand():
    # softmax of [0, ln 3] is [1/4, 3/4]; of [0, 0] it is [1/2, 1/2].
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    targets = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    expected = (0.5 * math.log(4) + 0.5 * math.log(4 / 3) + math.log(2)) / 2
    close(soft_cross_entropy(logits, targets), expected)


def test_masked_logit_is_excluded_and_has_no_gradient():
    logits = torch.tensor([[0.3, float("-inf"), -0.2], [float("-inf"), 1.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    loss = soft_cross_entropy(logits, targets)
    without = [math.log(1 + math.exp(-0.5)), (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5))) / 2]
    close(loss.detach(), sum(without) / 2)
    loss.backward()
    for robust in (False, True):
        if robust:
            logits.grad = None
            generalised_cross_entropy(logits, targets, 0.5).backward()
        assert logits.grad.isfinite().all()
        assert logits.grad[0, 1] == 0
        assert logits.grad[1, 0] == 0


def test_half_precision_logits_are_summed_in_float32():
    for dtype in [torch.bfloat16, torch.float16]:
        logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
        targets = torch.eye(6, 200)
        loss = soft_cross_entropy(logits, targets)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, soft_cross_entropy(logits.float(), targets), rtol=0, atol=0)


def test_contrast_of_orthonormal_pairs_by_hand():
    rows = torch.eye(3)
    targets = torch.eye(3)
    for tau in (0.5, 2.0):
        close(contrast(rows, rows, targets, tau), math.log(1 + 2 * math.exp(-1 / tau)))


def test_contrast_equals_the_reference_on_a_gallery_of_another_size():
    queries, gallery = unit_rows(4, seed=0), unit_rows(7, seed=10)
    query_ids, tau = [9, 4, 7, 9], 0.2
    queries.requires_grad_()
    gallery.requires_grad_()
    targets = positive_targets(torch.tensor(query_ids), torch.tensor(IDS))
    loss = contrast(queries, gallery, targets, tau)
    loss.backward()

    def direction(q, g):
        return reference.one_direction(q, g, query_ids, IDS, tau)

    q, g = queries.tolist(), gallery.tolist()
    close(loss.detach(), direction(q, g))
    close(queries.grad, reference.gradient(lambda rows: direction(rows, g), q))
    close(gallery.grad, reference.gradient(lambda rows: direction(q, rows), g))


def test_itc_and_its_gradients_equal_the_reference():
    image, text = unit_rows(7, seed=0).requires_grad_(), unit_rows(7, seed=10).requires_grad_()
    tau = torch.tensor(0.15, dtype=torch.float64, requires_grad=True)
    loss = image_text_contrast(image, text, torch.tensor(IDS), tau)
    loss.backward()
    v, t = image.tolist(), text.tolist()
    close(loss.detach(), reference.itc(v, t, IDS, 0.15))
    close(image.grad, reference.gradient(lambda rows: reference.itc(rows, t, IDS, 0.15), v))
    close(text.grad, reference.gradient(lambda rows: reference.itc(v, rows, IDS, 0.15), t))
    close(tau.grad, reference.derivative(lambda value: reference.itc(v, t, IDS, value), 0.15), 1e-5)


def test_itc_of_two_pairs_by_hand():
    # Cosines [[1, 0], [0.6, 0.8]] at tau = 1: the two directions differ, ITC is their mean.
    image = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    text = torch.eye(2)
    i2t = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-0.2))]
    t2i = [math.log(1 + math.exp(-0.4)), math.log(1 + math.exp(-0.8))]
    close(image_text_contrast(image, text, torch.tensor([0, 1]), 1.0), sum(i2t + t2i) / 4)


def test_itc_does_not_depend_on_which_side_is_called_image():
    image, text, ids = unit_rows(7), unit_rows(7, seed=1), torch.tensor(IDS)
    torch.testing.assert_close(image_text_contrast(image, text, ids, 0.1), image_text_contrast(text, image, ids, 0.1))


def test_itc_of_one_pair_is_zero_and_of_one_image_at_least_the_log_of_its_captions():
    pair = unit_rows(1).requires_grad_()
    loss = image_text_contrast(pair, unit_rows(1, seed=1), torch.tensor([5]), 0.07)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert pair.grad.abs().max() < 1e-12

    ids = torch.zeros(4, dtype=torch.int64)
    same = unit_rows(1).expand(4, -1)
    close(image_text_contrast(same, same, ids, 0.07), math.log(4))
    assert image_text_contrast(unit_rows(4), unit_rows(4, seed=1), ids, 0.07) > math.log(4)


def test_itc_stays_finite_at_a_very_small_temperature():
    image, text = unit_rows(7).float().requires_grad_(), unit_rows(7, seed=1).float()
    loss = image_text_contrast(image, text, torch.tensor(IDS), 1e-4)
    loss.backward()
    assert loss.isfinite()
    assert image.grad.isfinite().all()


def test_nt_xent_by_hand():
    # Two items of one group have no other candidate than one another.
    close(nt_xent(torch.eye(2), torch.tensor([3, 3]), 0.1), 0.0)
    # Items 0, 1 are equal, 2 is orthogonal and of a group of its own: a candidate, but not a query.
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    close(nt_xent(rows, torch.tensor([0, 0, 1]), 0.5), math.log(1 + math.exp(-2)))


def test_nt_xent_and_its_gradient_equal_the_reference():
    rows = unit_rows(7, seed=0).requires_grad_()
    loss = nt_xent(rows, torch.tensor(IDS), 0.1)
    loss.backward()
    plain = rows.tolist()
    close(loss.detach(), reference.nt_xent(plain, IDS, 0.1))
    close(rows.grad, reference.gradient(lambda r: reference.nt_xent(r, IDS, 0.1), plain))


def test_nt_xent_refuses_a_batch_without_positives():
    with pytest.raises(ValueError, match=r"no item of the batch has a positive.*two views"):
        nt_xent(torch.eye(3), torch.tensor([1, 2, 3]), 0.1)


@pytest.mark.parametrize("loss", ["itc", "nt_xent", "contrast"])
def test_permuting_the_batch_permutes_the_gradient(loss):
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    text, ids = unit_rows(7, seed=1), torch.tensor(IDS)

    def value(rows, text, ids):
        if loss == "itc":
            return image_text_contrast(rows, text, ids, 0.1)
        if loss == "nt_xent":
            return nt_xent(rows, ids, 0.1)
        return contrast(rows, text, positive_targets(ids, ids), 0.1)

    plain, permuted = unit_rows(7).requires_grad_(), unit_rows(7)[order].requires_grad_()
    first, second = value(plain, text, ids), value(permuted, text[order], ids[order])
    first.backward()
    second.backward()
    torch.testing.assert_close(first, second)
    torch.testing.assert_close(plain.grad[order], permuted.grad)


def test_gradients_by_gradcheck():
    image, text = unit_rows(5).requires_grad_(), unit_rows(5, seed=1).requires_grad_()
    tau = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([1, 1, 2, 1, 3])
    assert torch.autograd.gradcheck(lambda v, t, s: image_text_contrast(v, t, ids, s), (image, text, tau))
    targets = positive_targets(ids, ids).double()
    assert torch.autograd.gradcheck(lambda v, t, s: contrast(v, t, targets, s), (image, text, tau))
    assert torch.autograd.gradcheck(lambda v: nt_xent(v, ids, 0.3), (image,))


def indecision_by_loop(rows, low=0.1, high=0.5):
    total, count = 0.0, 0
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if i != j:
                cosine = sum(a * b for a, b in zip(one, other, strict=True))
                total += max(0.0, min(cosine - low, high - cosine))
                count += 1
    return total / max(1, count)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.5), (-0.3, 0.9)])
def test_ambiguity_penalty_and_its_gradient_equal_a_loop(low, high):
    rows = unit_rows(7, seed=0).requires_grad_()
    loss = ambiguity_penalty(rows, low, high)
    loss.backward()
    plain = rows.tolist()
    assert loss > 0.005
    close(loss.detach(), indecision_by_loop(plain, low, high))
    close(rows.grad, reference.gradient(lambda r: indecision_by_loop(r, low, high), plain))


def at_cosine(cosine):
    return torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)


def test_ambiguity_penalty_by_hand():
    for cosine, expected in [(-0.9, 0), (0.0, 0), (0.1, 0), (0.15, 0.05), (0.3, 0.2), (0.45, 0.05), (0.5, 0), (0.9, 0)]:
        rows = at_cosine(cosine).requires_grad_()
        loss = ambiguity_penalty(rows)
        loss.backward()
        assert loss.item() == pytest.approx(expected, abs=1e-12)
        if cosine < 0.09 or cosine > 0.51:
            assert not rows.grad.any()


def test_ambiguity_penalty_of_one_item_or_equal_items_is_zero():
    alone = unit_rows(1).requires_grad_()
    loss = ambiguity_penalty(alone)
    loss.backward()
    assert loss == 0
    assert not alone.grad.any()
    assert ambiguity_penalty(unit_rows(1).expand(4, -1)) == 0


def test_gradient_descent_moves_similarities_out_of_the_range():
    """To the nearer end: what is rather different becomes different, what is rather alike becomes alike."""
    for start, ends_below, ends_above in [(0.12, 0.101, -1), (0.25, 0.101, -1), (0.35, 1, 0.499)]:
        angle = torch.tensor(math.acos(start), dtype=torch.float64, requires_grad=True)
        for _ in range(100):
            rows = torch.stack([torch.eye(2, dtype=torch.float64)[0], torch.stack([angle.cos(), angle.sin()])])
            (gradient,) = torch.autograd.grad(ambiguity_penalty(rows), angle)
            with torch.no_grad():
                angle -= 0.01 * gradient
        assert ends_above <= math.cos(angle.item()) <= ends_below


def test_ambiguity_penalty_is_computed_in_float32_under_autocast():
    rows = unit_rows(7).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ambiguity_penalty(rows)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, ambiguity_penalty(rows), rtol=0, atol=0)
