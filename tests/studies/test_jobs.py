"""An interrupted cell continues where it was, one with other settings starts again; trials read no test data."""

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

from sdr_lightning.data.images import Images
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.results.codec import from_json
from sdr_lightning.results.schema import Selected, Trial
from sdr_lightning.studies import jobs
from sdr_lightning.studies.jobs import run_cell, run_trial
from sdr_lightning.studies.plan import Cell, plan
from sdr_lightning.studies.spec import read_study

STUDY = read_study(Path(__file__).with_name("study.yaml"))
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
    cell = next(cell for cell in plan(STUDY, folder).cells if cell.method == "InfoNCE" and not cell.with_examples)
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    return replace(cell, stages=((*cell.arguments, *options),))


def test_examples_of_few_items_show_pictures_of_the_present_data(tmp_path: Path) -> None:
    """Fewer than are shown of more; and a picture that an earlier run on other data left is not shown."""

    def shown(seed: int) -> set[str]:
        data = RetrievalDataModule(
            SceneSource(num_train=2, num_val=1, num_test=3, size=16, seed=seed), SceneTokenizer(), 4, image_size=16
        )
        image, text = torch.eye(3), torch.eye(3).repeat_interleave(5, dim=0)
        found = jobs._examples(image, text, data, tmp_path)
        return {key for query in found["queries"] for key in (*query["truth"], query["query_image"]) if key is not None}

    first, second = shown(0), shown(1)
    assert len(first) == 3
    assert not first & second
    assert {f"{key}.png" for key in first | second} == {path.name for path in tmp_path.iterdir()}


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


@pytest.mark.slow
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


@pytest.mark.slow
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


class WithoutTest(SceneSource):
    """A collection whose test split must not be read."""

    def table(self, split: Split) -> CaptionTable:
        if split == "test":
            raise AssertionError("the test split was read")
        return super().table(split)

    def images(self, split: Split) -> Images:
        if split == "test":
            raise AssertionError("the test split was read")
        return super().images(split)


def a_trial(folder: Path, **options: Any) -> Cell:
    """A trial on a collection without a test split."""
    source = {"class_path": f"{__name__}.WithoutTest", "init_args": {"num_train": 90, "num_val": 20, "num_test": 20}}
    cell = a_cell(folder)
    words = ["--data.init_args.source", json.dumps(source), "--trainer.max_epochs", "2"]
    words += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return replace(cell, stages=((*cell.arguments, *words),), trial=3, options=options)


@pytest.mark.filterwarnings("ignore")
def test_trial_does_not_read_the_test_split_and_records_validation_rsum(run: Any, tmp_path: Path) -> None:
    read = {"train": "1", "val": "2"}
    trial = a_trial(tmp_path / "trial")
    run_trial(trial, "of these images", read)
    record = from_json(Trial, json.loads(trial.result.read_text()), "here")
    curve = read_curves(trial.folder / "metrics.csv")["val/rsum"]
    assert record.score == pytest.approx(max(curve.values()))
    assert record.selected is not None
    assert curve[record.selected.epoch] == max(curve.values())
    assert (record.number, record.options, record.data, record.failure) == (3, {}, read, "")
    assert (record.seed, record.fingerprint) == (trial.seed, trial.fingerprint)
    assert not list(trial.folder.rglob("*.ckpt"))
    with pytest.raises(AssertionError, match="the test split was read"):
        run(replace(a_trial(tmp_path / "cell"), trial=None))  # a cell is tested


@pytest.mark.filterwarnings("ignore")
def test_trial_whose_loss_is_not_finite_is_a_result_and_other_failures_are_not(tmp_path: Path) -> None:
    trial = a_trial(tmp_path / "diverges", **{"model.init_args.optimisation.init_args.learning_rate": 1e20})
    run_trial(trial, "of these images", {})
    record = from_json(Trial, json.loads(trial.result.read_text()), "here")
    assert "not finite" in record.failure
    assert record.score == -float("inf")
    trial = a_trial(tmp_path / "fails", **{"data.init_args.batch_size": 5000})
    with pytest.raises(ValueError, match="batch size 5000 is larger"):
        run_trial(trial, "of these images", {})
    assert not trial.result.exists()


def test_trial_of_a_student_that_is_selected_by_another_metric_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(jobs, "_fit_stages", lambda _: None)
    monkeypatch.setattr(jobs, "_selected", lambda _: Selected("val/i2t_R@1", 1.0, 0, 1))
    with pytest.raises(
        ValueError, match=r"compared by val/rsum, but epochs are selected by val/i2t_R@1: set checkpoint"
    ):
        run_trial(replace(a_cell(tmp_path), trial=0), "of these images", {})
