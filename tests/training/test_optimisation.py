"""Weight decay, learning rates of new parameters, and schedules."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdr_lightning.configure import build
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder, bert_name
from sdr_lightning.methods import SDR
from sdr_lightning.training.optimisation import Decayed, Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule
from tests.training.student import (
    BERT,
    EMBEDDING,
    WIDTH,
    WITH_MATCHING,
    ImageTower,
    TextTower,
    scenes,
    student,
    trainer,
)

SCALARS = {"method.temperature.value", "method.structure.temperature.value", "method.structure.text_share.value"}


@pytest.fixture(scope="module")
def swin_bert(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrievalModule:
    """Build a small student with Swin, BERT and fusion encoder, as in the paper."""
    folder = tmp_path_factory.mktemp("swin_bert")
    files = ("--model", experiments / "models/tiny_fusion.yaml", "--data", experiments / "data/scenes.yaml")
    module = build([str(part) for part in (*files, "--run_dir", folder)]).model
    assert isinstance(module, RetrievalModule)
    return module


def decayed(module: nn.Module, how: Decayed) -> set[str]:
    """Return the names of parameters with weight decay."""
    groups = Optimisation(weight_decay=0.3, decayed=how).groups(module)
    assert {group["weight_decay"] for group in groups} == {0.3, 0.0}
    found = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    return {name for name, p in module.named_parameters() if id(p) in found}


# The rule of the public code, on its parameter names.
NO_DECAY = {"bias", "LayerNorm.bias", "LayerNorm.weight", "norm.bias", "norm.weight"} | {
    f"norm{number}.{kind}" for number in (1, 2) for kind in ("bias", "weight")
}


def public_name(name: str) -> str:
    """Return the name of a parameter in the public code."""
    table = {
        "encoder.image_tower.model.": "vision_encoder.",
        "encoder.text_tower.encoder.model.": "text_encoder.",
        "encoder.image_projection.1.": "vision_proj.",
        "encoder.text_projection.1.": "text_proj.",
        "encoder.fusion.head.": "itm_head.",
        "method.project_image_teacher.": "sig_vision_proj.",
        "method.project_text_teacher.": "sig_text_proj.",
        "method.temperature.value": "temp",
        "method.structure.temperature.value": "temp2",
        "method.structure.text_share.value": "lamba",
    }
    layers = "encoder.fusion.layers."
    if name.startswith(layers):
        number, _, rest = name.removeprefix(layers).partition(".")
        return f"text_encoder.encoder.layer.{int(number) + 6}.{bert_name(rest)}"
    prefix = next(prefix for prefix in table if name.startswith(prefix))
    return table[prefix] + name.removeprefix(prefix)


def test_published_decay_follows_the_rule_of_the_public_code(swin_bert: RetrievalModule) -> None:
    names = [name for name, _ in swin_bert.named_parameters()]
    public = {name: public_name(name) for name in names}
    expected = {name for name in names if not any(part in public[name] for part in NO_DECAY)}
    assert decayed(swin_bert, "published") == expected
    assert {"temp", "temp2", "lamba", "itm_head.1.weight"} <= {public[name] for name in expected}


def test_published_decays_scalars_and_head_norm_in_addition(swin_bert: RetrievalModule) -> None:
    right, published = decayed(swin_bert, "matrices"), decayed(swin_bert, "published")
    assert published - right == SCALARS | {"encoder.fusion.head.1.weight"}
    assert not right - published


def test_only_matrices_decay(swin_bert: RetrievalModule) -> None:
    right = decayed(swin_bert, "matrices")
    norms = {
        f"{prefix}.{kind}"
        for prefix, module in swin_bert.named_modules()
        if isinstance(module, nn.LayerNorm)
        for kind, _ in module.named_parameters()
    }
    names = {name for name, _ in swin_bert.named_parameters()}
    biases = {name for name in names if name.endswith(".bias")}
    tables = {name for name in names if name.endswith("relative_position_bias_table")}
    assert len(tables) == 2
    assert len(norms) > 20
    assert right == names - norms - biases - tables - SCALARS


@pytest.mark.parametrize(("how", "multiple"), [("matrices", 1.0), ("published", 2.0)])
def test_groups_partition_trainable_parameters(how: Decayed, multiple: float) -> None:
    module = student(WITH_MATCHING, frozen=["text"])
    new = [name for name, _ in module.encoder.image_projection.named_parameters(prefix="encoder.image_projection")]
    assert new
    groups = Optimisation(decayed=how, newly_initialized_multiple=multiple).groups(module, new)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in module.parameters() if p.requires_grad)
    assert not {id(p) for p in module.encoder.text_tower.parameters()} & set(found)
    assert len(groups) == (4 if multiple != 1 else 2)


def pretrained_student(tmp_path: Path, multiple: float) -> RetrievalModule:
    """Build a student whose towers and fusion layers have pretrained weights."""
    from transformers import AutoConfig, AutoModel

    AutoModel.from_config(AutoConfig.for_model(**BERT)).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    fusion = FusionEncoder(WIDTH, weights=str(tmp_path / "bert"), first_layer=0)
    encoder = DualEncoder(ImageTower(pretrained=True), TextTower(pretrained=True), EMBEDDING, fusion=fusion)
    method = SDR({"itc": 1, "itm": 1, "iic": 1}, EMBEDDING, 5)
    optimisation = Optimisation(1e-3, weight_decay=0.0, warmup=0.0, newly_initialized_multiple=multiple)
    return RetrievalModule(encoder, method, optimisation)


def one_step(module: Any) -> dict[str, torch.Tensor]:
    """Return the change of each parameter by one step with all gradients equal to 1."""
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer: Any = module.configure_optimizers()["optimizer"]
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return {name: (p.detach() - before[name]).abs() for name, p in module.named_parameters()}


def test_multiple_applies_to_newly_initialized_parameters_only(tmp_path: Path) -> None:
    plain, tripled = (one_step(pretrained_student(tmp_path, multiple)) for multiple in (1.0, 3.0))
    faster = {name for name in plain if torch.allclose(tripled[name], 3 * plain[name], rtol=1e-3)}
    same = {name for name in plain if torch.allclose(tripled[name], plain[name], rtol=1e-3)}
    assert faster | same == set(plain)
    expected = {
        name
        for name in plain
        if name.startswith(("method.", "encoder.image_projection.", "encoder.text_projection.", "encoder.fusion.head"))
        or "cross_" in name
    }
    assert faster == expected
    assert any(".cross_norm." in name for name in faster)
    assert {"encoder.fusion.layers.0.self_attention.query.weight", "encoder.image_tower.patch.bias"} <= same
    assert all(torch.allclose(moved, torch.full_like(moved, 1e-3), rtol=1e-2) for moved in plain.values())


def test_multiple_applies_to_all_parameters_without_pretrained_weights() -> None:
    plain, doubled = (
        one_step(student(WITH_MATCHING, optimisation=Optimisation(weight_decay=0, newly_initialized_multiple=multiple)))
        for multiple in (1.0, 2.0)
    )
    for name, moved in plain.items():
        torch.testing.assert_close(doubled[name], 2 * moved, rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("pretrained", [False, True])
def test_multiple_applies_to_new_parameters_of_teachers(pretrained: bool) -> None:
    moved = []
    for multiple in (1.0, 4.0):
        torch.manual_seed(0)
        optimisation = Optimisation(weight_decay=0, warmup=0, newly_initialized_multiple=multiple)
        moved.append(one_step(TeacherModule(ImageTower(pretrained=pretrained), 4, optimisation=optimisation)))
    for name in moved[0]:
        times = 1 if pretrained and name.startswith("tower.") else 4
        torch.testing.assert_close(moved[1][name], times * moved[0][name], rtol=1e-3, atol=1e-8)


def test_weight_decay_shrinks_only_decayed_parameters() -> None:
    module: Any = student(WITH_MATCHING, optimisation=Optimisation(1.0, weight_decay=0.1, warmup=0.0))
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer: Any = module.configure_optimizers()["optimizer"]
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    shrunk = {name for name, p in module.named_parameters() if torch.allclose(p, 0.9 * before[name]) and p.any()}
    kept = {name for name, p in module.named_parameters() if torch.equal(p, before[name])}
    assert shrunk == decayed(module, "matrices")
    assert shrunk | kept == set(before)
    assert optimizer.defaults["betas"] == (0.9, 0.98)


@pytest.mark.parametrize(
    ("schedule", "middle", "late"),
    [("linear", 0.5, 0.125), ("cosine", 0.5, 0.5 * (1 + math.cos(math.pi * 7 / 8)))],
)
def test_schedules(schedule: Any, middle: float, late: float) -> None:
    """Ten steps with two of warm-up: the peak is at the second step, zero at the eleventh."""
    rule = Optimisation(warmup=0.2, schedule=schedule)
    factors = [rule.factor(step, 10) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(middle)
    assert factors[9] == pytest.approx(late)
    assert factors[10] == pytest.approx(0.0, abs=1e-12)
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert rule.factor(25, 10) == pytest.approx(0.0, abs=1e-12)


def test_a_training_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs an end: set trainer\.max_epochs or trainer\.max_steps"):
        trainer(max_epochs=-1).fit(student({"itc": 1.0}, fusion=False), datamodule=scenes())


def test_warm_up() -> None:
    all_of_it = Optimisation(warmup=1.0)
    assert [all_of_it.factor(step, 4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    none = Optimisation(warmup=0.0, schedule="linear")
    assert [none.factor(step, 5) for step in range(3)] == [1.0, 1.0, 0.75]
    assert [Optimisation().factor(step, 1) for step in range(2)] == [1.0, 1.0]


def test_scheduler_scales_all_groups() -> None:
    module: Any = student(WITH_MATCHING)
    module._trainer = SimpleNamespace(estimated_stepping_batches=4)
    new = ["method.temperature.value"]
    optimisation = Optimisation(0.1, warmup=0.5, schedule="linear", newly_initialized_multiple=2)
    configured: Any = optimisation.configure(module, new)
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    seen = []
    for _ in range(4):
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        seen += [rates[id(module.encoder.image_tower.patch.weight)], rates[id(module.method.temperature.value)]]
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([0.05, 0.1, 0.1, 0.2, 0.1, 0.2, 0.05, 0.1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"warmup": -0.1}, r"warmup is a share of the steps in \[0, 1\], got -0.1"),
        ({"warmup": 1.5}, r"warmup is a share of the steps in \[0, 1\], got 1.5"),
        ({"learning_rate": float("nan")}, "the learning rate must be positive, got nan"),
        ({"newly_initialized_multiple": 0}, "the newly_initialized_multiple must be positive, got 0"),
        ({"schedule": "step"}, "schedule must be cosine or linear, got 'step'"),
        ({"decayed": "all"}, "decayed must be matrices or published, got 'all'"),
    ],
)
def test_invalid_settings_are_rejected(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimisation(**option)
