"""Precision of the losses, and that each parameter is trained."""

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.contrastive import image_text_contrast, nt_xent
from sdr_lightning.methods import SDR
from sdr_lightning.methods.sdr import TERMS
from sdr_lightning.types import Pairs

DISTANCES = ["mae", "mse", "kl", "wasserstein", "weighted_wasserstein", "paper_cumsum", "rkd_distance", "rkd_angle"]


def random_pairs(of_embeddings: torch.dtype, of_teachers: torch.dtype | None = None, count: int = 4) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    image, text, image_teacher, text_teacher, fused = (
        torch.randn(count, width, generator=generator, dtype=torch.float64) for width in (4, 4, 5, 3, 6)
    )
    image, text = F.normalize(image, dim=1), F.normalize(text, dim=1)
    embeddings = [tensor.to(of_embeddings) for tensor in (image, text, fused, image @ text[:2].T)]
    teachers = [tensor.to(of_teachers or of_embeddings) for tensor in (image_teacher, text_teacher)]
    return Pairs(*embeddings[:2], torch.arange(count) // 2, None, *teachers, *embeddings[2:], torch.arange(count) % 2)


def make_sdr(**kwargs: object) -> SDR:
    torch.manual_seed(0)
    relation = {"averaged": 1.0, "fused": 0.5, "image_text": 0.3}
    return SDR(dict.fromkeys(TERMS, 1.0), 4, 5, 3, relation=relation, **kwargs)


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_bfloat16_under_autocast_gives_the_terms_of_float32(distance, teacher_mlps) -> None:
    module, pairs = make_sdr(distance=distance, teacher_mlps=teacher_mlps), random_pairs(torch.bfloat16)
    pairs.image.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(pairs)
    exact = module(Pairs(*(t.float() if t is not None and t.is_floating_point() else t for t in pairs)))
    assert terms.keys() == TERMS.keys()
    assert {value.dtype for value in terms.values()} == {torch.float32}
    torch.testing.assert_close(terms, exact, rtol=0, atol=0)
    module.total(terms).backward()
    assert pairs.image.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("of_embeddings", "of_teachers", "teacher_mlps"),
    [
        (torch.float32, torch.float64, False),
        (torch.float32, torch.float64, True),
        (torch.float32, torch.float16, True),
        (torch.float64, torch.float32, False),
        (torch.float64, torch.float32, True),
    ],
)
@pytest.mark.parametrize("distance", ["mae", "kl", "weighted_wasserstein", "rkd_angle"])
def test_terms_have_the_embeddings_precision(of_embeddings, of_teachers, teacher_mlps, distance) -> None:
    terms = make_sdr(distance=distance, teacher_mlps=teacher_mlps)(random_pairs(of_embeddings, of_teachers))
    assert {value.dtype for value in terms.values()} == {of_embeddings}


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
def test_a_module_in_bfloat16_still_sums_in_float32(teacher_mlps) -> None:
    module = make_sdr(teacher_mlps=teacher_mlps).bfloat16()
    terms = module(random_pairs(torch.bfloat16))
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
@pytest.mark.parametrize("term", list(TERMS))
@pytest.mark.parametrize("distance", ["mae", "kl", "rkd_distance"])
def test_no_parameter_is_left_without_gradient(distance, term, teacher_mlps) -> None:
    module = SDR({term: 1}, 4, 5, 3, distance=distance, teacher_mlps=teacher_mlps)
    pairs = random_pairs(torch.float32)
    for tensor in (pairs.image, pairs.text, pairs.match_logits):
        tensor.requires_grad_()
    module.total(module(pairs)).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_nt_xent_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    rows, group = F.normalize(torch.randn(8, 16), dim=1), torch.arange(8) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(rows, group, 0.1)
    torch.testing.assert_close(loss, nt_xent(rows, group, 0.1))


def test_targets_in_float64_are_exact() -> None:
    rows, ids = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1), torch.zeros(3, dtype=torch.int64)
    logits = rows @ rows.T / 0.1
    exact = -logits.log_softmax(1).mean()
    assert image_text_contrast(rows, rows, ids, 0.1).item() == pytest.approx(exact.item(), rel=1e-12)
