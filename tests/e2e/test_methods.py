"""Every method over the trainer: number of processes, exact continuation, and a method of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.method_ranks import mismatched_scenes, trained
from tests.e2e.sdr import SMALL, sdr, succeeded
from tests.methods.overlays import EPOCHS, OVERLAYS, student
from tests.training.ranks import Results, run_ranks
from tests.training.resuming import assert_continues_from
from tests.training.student import LIGHTNINGS_OWN_WARNINGS

pytestmark = [
    *LIGHTNINGS_OWN_WARNINGS,
    pytest.mark.filterwarnings("ignore::UserWarning"),  # of folders that hold checkpoints, and of small batches
]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Every method, trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    return run_ranks(folder, 2, list(OVERLAYS), module="tests.e2e.method_ranks", timeout=550)


@pytest.mark.slow
@pytest.mark.timeout(600)  # of the first, which trains all methods in both processes
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_method_learns_the_same_at_one_and_two_processes(overlay: str, two: Results) -> None:
    """Parameters, the state of the method, what is logged."""
    one = trained(overlay)
    for result in two:
        assert "error" not in result[overlay], result[overlay]["error"]
        assert one["state"].keys() == result[overlay]["state"].keys()
        for name, value in one["state"].items():
            found = result[overlay]["state"][name]
            torch.testing.assert_close(found, value, rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        torch.testing.assert_close(result[overlay]["logged"], one["logged"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_method_continues_exactly_in_every_phase(overlay: str, tmp_path: Path) -> None:
    """With accumulated gradients, two steps an epoch: from within the first, second and fifth epoch, and from between two."""

    def start() -> Any:
        return student(overlay), mismatched_scenes(36, augmentation="weak")

    assert_continues_from([1, 3, 4, 9], start, tmp_path, max_epochs=EPOCHS, accumulate_grad_batches=2)


OWN_METHOD = '''
import torch
from sdr_lightning.methods import Method


class Hinge(Method):
    """The mean hinge over all negatives."""

    def __init__(self, margin: float = 0.2):
        super().__init__({"hinge": 1.0})
        self.margin = margin

    def terms(self, pairs, local_rows=slice(None)):
        scores = pairs.image @ pairs.text.T
        return {"hinge": (self.margin + scores - scores.diag()[:, None]).clamp(min=0).mean()}
'''


@pytest.mark.slow
def test_a_method_outside_the_package_is_one_file_and_one_yaml(experiments: Path, tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(OWN_METHOD)
    overlay = tmp_path / "hinge.yaml"
    overlay.write_text("model: {init_args: {method: {class_path: my_methods.Hinge, init_args: {margin: 0.3}}}}\n")
    done = sdr(
        *("fit", "--config", "experiments/scenes/sdr.yaml", "--config", overlay, *SMALL, "--trainer.max_epochs=1"),
        *("--run_dir", tmp_path / "run"),
        cwd=experiments.parent,
        PYTHONPATH=str(tmp_path),
    )
    succeeded(done)
    assert "train/hinge" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
