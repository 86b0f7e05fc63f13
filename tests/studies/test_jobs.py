"""An interrupted cell continues where it was; one with other settings starts again."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sdr_lightning.studies import jobs
from sdr_lightning.studies.jobs import run_cell
from sdr_lightning.studies.plan import Cell, plan
from sdr_lightning.studies.spec import read_study

STUDY = read_study(Path(__file__).parents[2] / "experiments/scenes/study.yaml")
NCR = Path(__file__).parents[2] / "experiments/methods/ncr.yaml"
SMALL = {"data.init_args.source.init_args.num_train": 90, "data.init_args.source.init_args.num_val": 20}
SMALL |= {"data.init_args.source.init_args.num_test": 20, "data.init_args.batch_size": 150, "trainer.max_epochs": 3}
STEPS = 9  # 3 epochs of 450 pairs


class Steps(pl.Callback):
    """Counts the steps, and asks the process to stop at one of them."""

    def __init__(self, stop_at: int | None) -> None:
        self.stop_at, self.done = stop_at, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.done += 1
        if trainer.global_step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)


def a_cell(folder: Path) -> Cell:
    """Matching alone, in seconds."""
    cell = next(cell for cell in plan(STUDY, folder).cells if cell.method == "ITC" and not cell.with_examples)
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return replace(cell, stages=((*cell.arguments, *options),))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a cell and says how many steps it took."""
    build = jobs.build
    monkeypatch.setattr(jobs, "_structure", lambda *_: {})  # it compares with the banks of a whole study

    def run(cell: Cell, stop_at: int | None = None, data: str = "of these images") -> int:
        steps = Steps(stop_at)

        def watched(arguments: list[str]) -> Any:
            cli = build(arguments)
            cli.trainer.callbacks.insert(0, steps)  # type: ignore[attr-defined]
            return cli

        monkeypatch.setattr(jobs, "build", watched)
        try:
            run_cell(cell, tmp_path / "thumbnails", data)
        except SIGTERMException:
            assert stop_at is not None
        return steps.done

    return run


def kept(cell: Cell) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(cell.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.filterwarnings("ignore")
def test_interrupted_cell_ends_with_the_same_results(run: Any, tmp_path: Path) -> None:
    whole, cut = a_cell(tmp_path / "whole"), a_cell(tmp_path / "cut")
    assert run(whole) == STEPS
    assert run(cut, stop_at=4) == 5
    assert not cut.result.exists()
    assert (cut.folder / "checkpoints/last.ckpt").is_file()
    assert run(cut) == STEPS - 5
    first, second = (json.loads(cell.result.read_text()) for cell in (whole, cut))
    for name in ("metrics", "selected", "realised", "fingerprint"):
        assert first[name] == second[name], name
    assert all(torch.equal(value, kept(cut)[name]) for name, value in kept(whole).items())
    assert {path.name for path in cut.folder.rglob("*.ckpt")} == {"best.ckpt"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "other", [{"data": "of other images"}, {"fingerprint": "other settings"}], ids=["data", "settings"]
)
def test_interrupted_cell_with_other_settings_starts_again(run: Any, tmp_path: Path, other: Any) -> None:
    cell = a_cell(tmp_path)
    run(cell, stop_at=4)
    now = replace(cell, fingerprint=other["fingerprint"]) if "fingerprint" in other else cell
    assert run(now, data=other.get("data", "of these images")) == STEPS


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cell_records_how_well_its_method_detects_corrupted_pairs(run: Any, tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    imbalance = json.dumps({"kind": "mismatch", "ratio": 0.4, "level": "caption", "partner": "shared_word"})
    options = ("--config", str(NCR), "--data.init_args.imbalance", imbalance)
    cell = replace(cell, stages=((*cell.arguments, *options),))
    run(cell)
    result = json.loads(cell.result.read_text())
    probability = kept(cell)["method.clean_probability"]
    assert result["metrics"]["detection_true_share"] == 40.0
    assert result["metrics"]["detection_estimated_share"] == pytest.approx(100 * (1 - probability).mean().item())
    assert 0 < result["metrics"]["detection_AUC"] < 100


@pytest.mark.filterwarnings("ignore")
def test_unreadable_checkpoint_is_ignored(run: Any, tmp_path: Path) -> None:
    cell = a_cell(tmp_path)
    run(cell, stop_at=1)
    (cell.folder / "checkpoints/last.ckpt").write_bytes(b"half")
    assert run(cell) == STEPS
