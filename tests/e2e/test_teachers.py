"""Teachers in the run of a student, instead of extracted banks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.configure import teacher_tower
from tests.e2e.sdr import MATCHING_ALONE, SMALL, sdr, succeeded

NOISE = tuple(f"--data.init_args.imbalance.{name}" for name in ("kind=drop_words", "severity=5", "ratio=0.5"))


@pytest.fixture(scope="module")
def trained(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train both teachers of the scenes for one epoch."""
    folder = tmp_path_factory.mktemp("teachers")
    for modality in ("image", "text"):
        config = ("--config", experiments / f"scenes/{modality}_teacher.yaml")
        succeeded(sdr("fit", *config, *SMALL, "--trainer.max_epochs=1", "--run_dir", folder / modality))
    return folder


def files(experiments: Path, trained: Path) -> tuple[str, ...]:
    return tuple(
        word
        for modality in ("image", "text")
        for word in (
            f"--{modality}_teacher.config={experiments}/scenes/{modality}_teacher.yaml",
            f"--{modality}_teacher.ckpt_path={trained}/{modality}/checkpoints/final.ckpt",
        )
    )


def fit(experiments: Path, folder: Path, *more: str | Path) -> Any:
    base = ("--config", experiments / "scenes/sdr.yaml", *SMALL, *NOISE, "--trainer.max_epochs=2")
    return sdr("fit", *base, *more, "--run_dir", folder / "run", cwd=folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


@pytest.mark.slow
def test_teachers_and_their_banks_give_identical_weights(experiments: Path, trained: Path, tmp_path: Path) -> None:
    """Bit-identical, with and without a filled cache."""
    banks = []
    for modality in ("image", "text"):
        bank = tmp_path / f"{modality}.safetensors"
        teacher = ("--teacher", experiments / f"scenes/{modality}_teacher.yaml", "--output", bank)
        checkpoint = ("--ckpt_path", trained / modality / "checkpoints/final.ckpt")
        succeeded(
            sdr("extract", "--config", experiments / "scenes/sdr.yaml", *SMALL[:3], *NOISE, *teacher, *checkpoint)
        )
        banks.append(f"--data.init_args.{modality}_bank={bank}")
    ways = {
        "banks": tuple(banks),
        "teachers": files(experiments, trained),
        "kept": (*files(experiments, trained), f"--data.init_args.cache={tmp_path / 'teachers/cache'}"),
    }
    cached: dict[str, dict[Path, int]] = {}
    for name, more in ways.items():
        (tmp_path / name).mkdir()
        succeeded(fit(experiments, tmp_path / name, *more))
        cached[name] = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*/cache/text-*.safetensors")}
    assert len(cached["teachers"]) == len(cached["banks"]) + 1
    assert cached["kept"] == cached["teachers"]  # computed once
    expected = weights(tmp_path / "banks")
    for name in ways:
        assert all(torch.equal(value, weights(tmp_path / name)[key]) for key, value in expected.items()), name
    assert not any("teacher" in key and "tower" in key for key in expected)
    assert expected["method.image_teacher_mean"].abs().max() > 0  # of the training split


@pytest.mark.slow
def test_two_processes_share_the_features(experiments: Path, trained: Path, tmp_path: Path) -> None:
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    succeeded(fit(experiments, tmp_path, *files(experiments, trained), *ddp))
    assert len(list((tmp_path / "cache").glob("text-*.safetensors"))) == 1


@pytest.mark.slow
def test_unwritable_cache_stops_both_processes(experiments: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = f"--data.init_args.cache={tmp_path}/file/cache"
    ddp = ("--trainer.devices=2", "--trainer.strategy=ddp")
    done = fit(experiments, tmp_path, *files(experiments, trained), cache, *ddp)
    assert done.returncode != 0
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_unused_teachers_are_not_built(experiments: Path, tmp_path: Path) -> None:
    overlay = ("--config", experiments / "scenes/teachers.yaml", *MATCHING_ALONE)
    succeeded(fit(experiments, tmp_path, *overlay))  # the checkpoints of the overlay do not exist


@pytest.mark.slow
def test_config_of_a_teacher_run_builds_the_teacher(trained: Path) -> None:
    for modality in ("image", "text"):
        words = ["--config", str(trained / modality / "config.yaml")]
        assert teacher_tower(words, str(trained / modality / "checkpoints/final.ckpt")).modality == modality


def test_building_a_teacher_keeps_the_random_state(experiments: Path) -> None:
    before = torch.get_rng_state()
    words = ["--config", str(experiments / "scenes/image_teacher.yaml")]
    first, second = teacher_tower(words, None), teacher_tower(words, None)
    assert torch.equal(before, torch.get_rng_state())
    assert first.fingerprint() == second.fingerprint()
