"""Precision, choices and parameters of the losses."""

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.contrastive import nt_xent
from sdr_lightning.functional.relational import student_relation
from sdr_lightning.losses import RebalancingObjective
from sdr_lightning.types import PairEmbeddings


def test_an_unknown_relation_or_distance_is_refused() -> None:
    with pytest.raises(ValueError, match="relation"):
        RebalancingObjective({"kd": 1}, 4, relation="imgae_image")
    with pytest.raises(ValueError, match="distance"):
        RebalancingObjective({"kd": 1}, 4, distance="wd")


def test_student_relation_does_not_guess() -> None:
    with pytest.raises(ValueError, match="imgae_image"):
        student_relation(torch.eye(2), torch.eye(2), "imgae_image")


@pytest.mark.parametrize(
    ("of_embeddings", "of_teachers"), [(torch.float32, torch.float64), (torch.float64, torch.float32)]
)
def test_terms_have_the_embeddings_precision(of_embeddings, of_teachers) -> None:
    rows = F.normalize(torch.randn(4, 4, dtype=of_embeddings), dim=1)
    teachers = torch.randn(4, 3, dtype=of_teachers)
    terms = RebalancingObjective({"kd": 1, "kdi": 1}, 4)(
        PairEmbeddings(rows, rows, torch.arange(4), teachers, teachers)
    )
    assert {value.dtype for value in terms.values()} == {of_embeddings}


def test_no_parameter_is_left_without_gradient() -> None:
    module = RebalancingObjective({"kd": 1}, 4)
    rows, teachers = F.normalize(torch.randn(4, 4), dim=1), torch.randn(4, 3)
    module.total(module(PairEmbeddings(rows, rows, torch.arange(4), teachers, teachers))).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_nt_xent_is_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    rows, group = F.normalize(torch.randn(8, 16), dim=1), torch.arange(8) // 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(rows, group, 0.1)
    torch.testing.assert_close(loss, nt_xent(rows, group, 0.1))


def test_targets_in_float64_are_exact() -> None:
    from sdr_lightning.functional.contrastive import image_text_contrast

    rows, ids = F.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1), torch.zeros(3, dtype=torch.int64)
    logits = rows @ rows.T / 0.1
    exact = -logits.log_softmax(1).mean()
    assert image_text_contrast(rows, rows, ids, 0.1).item() == pytest.approx(exact.item(), rel=1e-12)
