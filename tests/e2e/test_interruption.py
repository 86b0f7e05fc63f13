"""Killed and resumed trainings are bit-identical to uninterrupted ones."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.paths import claim
from tests.e2e.sdr import error_line, sdr, succeeded

BATCHES = {"student": 18, "teacher": 18, "accumulating": 15}  # in three epochs
STUDENT = (
    *("--model", "experiments/models/tiny_fusion.yaml"),  # with dropout and random negatives
    *("--model.init_args.method.init_args.weights", '{"itc": 1, "itm": 2}'),
    *("--data", "experiments/data/scenes.yaml", "--data.init_args.augmentation=weak"),
)
TEACHER = ("--config", "experiments/scenes/image_teacher.yaml")
SIZES = (
    *(f"--data.init_args.source.init_args.num_{split}={size}" for split, size in (("train", 60), ("val", 20), ("test", 20))),
    *("--data.init_args.batch_size=50", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"),
    "--trainer.max_epochs=3",
)  # fmt: skip
SMALL_TEACHER = ("--data.init_args.batch_size=10",)


def fit(root: Path, folder: Path, *options: str) -> Any:
    cache = f"--data.init_args.cache={folder.parent / 'cache'}"
    return sdr("fit", *options, cache, "--run_dir", folder, cwd=root)


@pytest.fixture(scope="module")
def root(request: pytest.FixtureRequest) -> Path:
    return Path(request.config.rootpath)


ACCUMULATING = (  # accumulated gradients, epochs without validation, and limited batches
    *("--trainer.accumulate_grad_batches=2", "--trainer.limit_train_batches=5", "--trainer.check_val_every_n_epoch=2"),
)


@pytest.fixture(scope="module", params=["student", "teacher", "accumulating"])
def whole(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run an uninterrupted training."""
    kinds = {
        "student": (*STUDENT, *SIZES),
        "teacher": (*TEACHER, *SIZES, *SMALL_TEACHER),
        "accumulating": (*STUDENT, *SIZES, *ACCUMULATING),
    }
    options, folder = kinds[request.param], tmp_path_factory.mktemp(request.param) / "whole"
    succeeded(fit(root, folder, *options))
    return options, folder, BATCHES[request.param]


def equal(first: Any, second: Any) -> bool:
    """Whether two nested values are bit-identical."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def assert_same(whole: Path, continued: Path) -> None:
    assert (continued / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name in ("last.ckpt",):
        first, second = (torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (whole, continued))
        assert first["epoch"] == 2
        for part in ("state_dict", "optimizer_states", "lr_schedulers", "generators", "global_step", "epoch"):
            assert equal(first[part], second[part]), part
    kept = [path.name for path in (continued / "checkpoints").glob("best.ckpt")]
    if kept:
        first, second = (
            torch.load(folder / "checkpoints/best.ckpt", weights_only=True) for folder in (whole, continued)
        )
        assert equal(first["state_dict"], second["state_dict"])
        assert first["best_rsum"] == second["best_rsum"]


@pytest.mark.slow
def test_kill_at_random_steps_and_resume(whole: Any, root: Path, tmp_path: Path) -> None:
    options, uninterrupted, batches = whole
    steps = sorted(random.SystemRandom().sample(range(3, batches), 3))
    print(f"killed after batches {steps}")
    continued: tuple[str, ...] = ()
    for step in steps:
        kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", f"--trainer.callbacks.step={step}")
        done = fit(root, tmp_path / "cut", *options, "--checkpoint.every_n_steps=1", *kill, *continued)
        assert done.returncode == -signal.SIGKILL, done.stderr
        continued = ("--ckpt_path", "last")
    succeeded(fit(root, tmp_path / "cut", *options, *continued))
    assert_same(uninterrupted, tmp_path / "cut")
    assert "is finished, 3 epochs" in succeeded(fit(root, tmp_path / "cut", *options, *continued))
    assert_same(uninterrupted, tmp_path / "cut")


@pytest.mark.slow
def test_kill_between_checkpoints_and_resume(whole: Any, root: Path, tmp_path: Path) -> None:
    """The steps since the end of the last epoch are repeated."""
    options, uninterrupted, batches = whole
    kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", f"--trainer.callbacks.step={batches // 3 + 2}")
    assert fit(root, tmp_path / "cut", *options, *kill).returncode == -signal.SIGKILL
    succeeded(fit(root, tmp_path / "cut", *options, "--ckpt_path", "last"))
    assert_same(uninterrupted, tmp_path / "cut")


@pytest.mark.slow
def test_signals_save_a_checkpoint_and_exit(whole: Any, root: Path, tmp_path: Path) -> None:
    """In the second epoch, with partly accumulated gradients if there are any."""
    options, uninterrupted, batches = whole
    name, called = ("SIGINT", "Ctrl-C") if batches == BATCHES["accumulating"] else ("SIGTERM", "SIGTERM")
    kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", "--trainer.callbacks.step=8")
    done = fit(root, tmp_path / "cut", *options, *kill, f"--trainer.callbacks.name={name}")
    assert done.returncode == 128 + signal.Signals[name], done.stderr
    assert f"stopped by {called} at step" in done.stderr
    assert "--ckpt_path last continues" in done.stderr
    assert "Traceback" not in done.stderr
    succeeded(fit(root, tmp_path / "cut", *options, "--ckpt_path", "last"))
    assert_same(uninterrupted, tmp_path / "cut")


@pytest.mark.slow
def test_signal_in_the_last_batch_of_an_epoch(root: Path, tmp_path: Path) -> None:
    """The epoch is saved although it has no validation."""
    options = (*STUDENT, *SIZES, "--trainer.check_val_every_n_epoch=3")
    kill = ("--trainer.callbacks+=tests.training.killing.KillAfter", "--trainer.callbacks.step=12")
    done = fit(root, tmp_path / "cut", *options, *kill, "--trainer.callbacks.name=SIGTERM")
    assert "stopped by SIGTERM at step 12" in done.stderr
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


@pytest.mark.slow
def test_folder_of_a_running_process_is_rejected(root: Path, tmp_path: Path) -> None:
    claim(tmp_path / "run")
    line = error_line(fit(root, tmp_path / "run", *STUDENT, *SIZES, "--ckpt_path", "last"))
    assert f"another process works in {tmp_path / 'run'}" in line


@pytest.mark.slow
def test_resuming_without_checkpoint_is_rejected(root: Path, tmp_path: Path) -> None:
    line = error_line(fit(root, tmp_path / "none", *STUDENT, *SIZES, "--ckpt_path", "last"))
    assert "nothing to continue: there is no" in line
    assert not (tmp_path / "none").exists()
