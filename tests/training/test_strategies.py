"""FSDP, and DDP with gradients in bf16, against one process; on CPUs with gloo."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.ranks import run_ranks
from tests.training.strategy_ranks import train
from tests.training.student import LIGHTNINGS_OWN_WARNINGS

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.timeout(600)]
RANKS = "tests.training.strategy_ranks"


def checkpoint(folder: Path) -> Any:
    return torch.load(folder / "last.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process."""
    folder = tmp_path_factory.mktemp("one")
    train(folder, "auto", 1)
    return checkpoint(folder)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes."""
    folder = tmp_path_factory.mktemp("two")
    run_ranks(folder, 2, ["fsdp", "fsdp recomputed", "ddp continued", "ddp_bf16"], RANKS, timeout=550)
    return folder


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference of weights, except for key biases, which are rounding errors that Adam normalises."""
    found, expected = found["state_dict"], expected["state_dict"]
    assert found.keys() == expected.keys()
    compared = [name for name in expected if not name.endswith(("key.bias", "qkv.bias"))]
    return max(float((expected[name] - found[name]).abs().max()) for name in compared)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["fsdp", "fsdp recomputed", "ddp continued"])
def test_fsdp_equals_one_process(run: str, two: Path, one: Any) -> None:
    """Weights and optimiser after 10 steps; continued by DDP from the third step of FSDP, which is within an epoch."""
    found = checkpoint(two / run)
    assert difference(found, one) < 1e-5
    for number, state in one["optimizer_states"][0]["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(found["optimizer_states"][0]["state"][number][name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_fsdp_continues_in_another_number_of_processes(two: Path, one: Any, tmp_path: Path) -> None:
    begun = two / "fsdp/begun.ckpt"
    with pytest.warns(UserWarning, match="was written by 2 processes and is resumed by 1"):
        train(tmp_path / "one", "auto", 1, begun)
    assert difference(checkpoint(tmp_path / "one"), one) < 1e-5
    (tmp_path / "fsdp").mkdir()
    shutil.copy(begun, tmp_path / "fsdp")
    run_ranks(tmp_path, 3, ["fsdp continued"], RANKS, timeout=550)
    assert difference(checkpoint(tmp_path / "fsdp continued"), one) < 1e-5


@pytest.mark.slow
def test_bf16_gradients_change_little(two: Path, one: Any) -> None:
    assert 0 < difference(checkpoint(two / "ddp_bf16"), one) < 5e-3
