"""Numerical precision of loss terms, and gradients of all parameters."""

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


@pytest.mark.parametrize(("distance", "teacher_mlps"), [(name, n % 2 == 0) for n, name in enumerate(DISTANCES)])
def test_autocast_gives_the_terms_of_float32(distance, teacher_mlps) -> None:
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
    ("of_embeddings", "of_teachers", "teacher_mlps", "distance"),
    [
        (torch.float32, torch.float64, False, "mae"),
        (torch.float32, torch.float64, True, "kl"),
        (torch.float32, torch.float16, True, "weighted_wasserstein"),
        (torch.float64, torch.float32, False, "rkd_angle"),
        (torch.float64, torch.float32, True, "mae"),
    ],
)
def test_terms_have_the_precision_of_embeddings(of_embeddings, of_teachers, teacher_mlps, distance) -> None:
    terms = make_sdr(distance=distance, teacher_mlps=teacher_mlps)(random_pairs(of_embeddings, of_teachers))
    assert {value.dtype for value in terms.values()} == {of_embeddings}


@pytest.mark.parametrize("teacher_mlps", [False, True], ids=["features", "mlps"])
def test_bfloat16_module_computes_terms_in_float32(teacher_mlps) -> None:
    module = make_sdr(teacher_mlps=teacher_mlps).bfloat16()
    terms = module(random_pairs(torch.bfloat16))
    assert {value.dtype for value in terms.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("term", "distance", "teacher_mlps"),
    [
        *((term, "mae", False) for term in TERMS),
        *((term, "kl", True) for term in ("kd", "kdi", "kdt")),
        ("kd", "rkd_distance", True),
    ],
)
def test_every_parameter_gets_a_gradient(term, distance, teacher_mlps) -> None:
    module = SDR({term: 1}, 4, 5, 3, distance=distance, teacher_mlps=teacher_mlps)
    pairs = random_pairs(torch.float32)
    for tensor in (pairs.image, pairs.text, pairs.match_logits):
        tensor.requires_grad_()
    module.total(module(pairs)).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_autocast_gives_nt_xent_of_float32() -> None:
    torch.manual_seed(0)
    rows, group = F.normalize(torch.randn(8, 16), dim=1), torch.arange(8) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(rows, group, 0.1)
    torch.testing.assert_close(loss, nt_xent(rows, group, 0.1))


def test_contrast_is_exact_in_float64() -> None:
    rows, ids = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1), torch.zeros(3, dtype=torch.int64)
    logits = rows @ rows.T / 0.1
    exact = -logits.log_softmax(1).mean()
    assert image_text_contrast(rows, rows, ids, 0.1).item() == pytest.approx(exact.item(), rel=1e-12)
