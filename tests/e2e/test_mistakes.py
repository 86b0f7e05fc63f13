"""Invalid requests give one error line and exit status 2, and write nothing."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdr_lightning.cli.main import main
from tests.e2e.sdr import MATCHING_ALONE, SMALL


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail, and return its error line."""

    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdr")]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.init_args.encoder.init_args.image_tower.frozn=true",), "did you mean 'frozen'"),
        (("--data.init_args.imbalance.kind=mismatches",), "mismatch"),
        (
            ("--data.init_args.imbalance.kind=none", "--data.init_args.imbalance.ratio=0.4"),
            "ratio 0.4 without a kind corrupts nothing",
        ),
        (("--data.init_args.batch_size=100000",), "larger than the 1000 training items"),
        (("--checkpoint.monitor=val/r_sum",), "did you mean 'val/rsum'?"),
        (("--data.init_args.tokenizer.init_args.max_tokens=500",), "positions and max_tokens is 500"),
        (("--trainer.limit_train_batches=1e-4",), "increase the `limit_train_batches` argument"),
        (("--trainer.use_distributed_sampler=true",), "use_distributed_sampler would divide the data a second time"),
        (("--trainer.barebones=true",), "barebones has neither logs nor checkpoints"),
        (
            ("--model.init_args.method.init_args.weights", '{"ttc": 1}', "--data.init_args.text_bank=null"),
            "text_bank",
        ),
        (
            ("--model.init_args.method.init_args.weights", '{"iic": 1}', "--data.init_args.image_bank=absent"),
            "no feature bank",
        ),
        (("--model.init_args.encoder.init_args.image_tower.init_args.weights=$UNSET_WEIGHTS",), "UNSET_WEIGHTS"),
    ],
)
def test_fit_rejects_invalid_options(
    options: tuple[str, ...], message: str, experiments: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    line = error_of("fit", *base, "--run_dir", tmp_path / "run", *options)
    assert message in line
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message", "kept"),
    [
        (("--trainer.fast_dev_run=true",), "nothing was measured or written", None),
        (("--trainer.max_epochs=0",), "no best checkpoint was kept: no step was trained", {}),
        (
            ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.enable_checkpointing=false"),
            "no best checkpoint was kept: trainer.enable_checkpointing is false",
            {"val/rsum", "train/loss"},
        ),
        (
            ("--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.check_val_every_n_epoch=5"),
            "no best checkpoint was kept: val/rsum was never measured; ",
            {"train/loss"},
        ),
    ],
    ids=["fast_dev_run", "no epochs", "no checkpoints", "no validation"],
)
def test_runs_without_best_checkpoint_print_the_reason(
    options: tuple[str, ...],
    message: str,
    kept: set[str] | None,
    experiments: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--run_dir", tmp_path / "run")
    assert main(["fit", *map(str, base), *options]) == 0
    assert message in capsys.readouterr().out
    if kept is None:
        assert not (tmp_path / "run").exists()
    else:
        training = json.loads((tmp_path / "run/results.json").read_text())["training"]
        assert training["checkpoint"] is None
        assert set(kept) <= training["kept"].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image_teacher.config=nope.yaml",), "no configuration of the image teacher at "),
        (("--image_teacher.ckpt_path=a.ckpt",), "a.ckpt, needs its config beside it"),
        (("--image_teacher.config={scenes}/text_teacher.yaml",), "is a teacher of the text modality, expected image"),
        (("--image_teacher.config={scenes}/sdr.yaml",), "is a RetrievalModule, expected a TeacherModule"),
        (
            ("--image_teacher.config={scenes}/image_teacher.yaml", "--image_teacher.ckpt_path={scenes}/sdr.yaml"),
            "sdr.yaml is not a checkpoint of this teacher",
        ),
    ],
)
def test_invalid_teachers_are_rejected(
    options: tuple[str, ...], message: str, experiments: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *SMALL, "--run_dir", tmp_path / "run")
    distilling = ("--model.init_args.method.init_args.weights", '{"iic": 1}')
    line = error_of("fit", *base, *distilling, *(word.format(scenes=experiments / "scenes") for word in options))
    assert message in line
    assert not list(tmp_path.glob("run/*"))


def test_exports_that_would_fail_are_refused_before_training(
    experiments: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    export = ("--run_dir", tmp_path / "run", "--export", tmp_path / "exported")
    line = error_of("fit", "--config", experiments / "scenes/image_teacher.yaml", *export)
    assert "--export is for students, and the model is a" in line
    student = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    assert "--export needs a checkpoint" in error_of("fit", *student, *export, "--trainer.fast_dev_run=true")
    assert not list(tmp_path.iterdir())


def test_teachers_of_teachers_are_rejected(experiments: Path, tmp_path: Path, error_of: Callable[..., str]) -> None:
    teacher = f"--image_teacher.config={experiments}/scenes/image_teacher.yaml"
    line = error_of("fit", "--config", experiments / "scenes/text_teacher.yaml", teacher, "--run_dir", tmp_path / "run")
    assert "--image_teacher is for students, and the model is a TeacherModule" in line


def test_missing_variables_of_flickr_are_named(
    experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error_of: Callable[..., str]
) -> None:
    for variable in ("FLICKR8K_ROOT", "FLICKR30K_ROOT", "IMAGE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    line = error_of("fit", "--config", experiments / "flickr8k/sdr.yaml", "--run_dir", tmp_path / "run")
    assert "environment variable IMAGE_WEIGHTS" in line


def test_other_commands_reject_invalid_requests(
    experiments: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    assert "did you mean 'reproduce'" in error_of("reprodce")
    assert "run sdr reproduce first" in error_of("report", tmp_path)
    config = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    assert "needs --ckpt_path" in error_of("test", *config)
    assert "absent.ckpt" in error_of("test", *config, "--ckpt_path", "absent.ckpt")


def test_runs_do_not_overwrite_other_files(experiments: Path, tmp_path: Path, error_of: Callable[..., str]) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    for command in ("fit", "test"):
        line = error_of(command, *base, "--run_dir", tmp_path, "--ckpt_path", "x.ckpt")
        assert f"{tmp_path} holds metrics.json, which no run wrote: choose another --run_dir" in line
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_extract_does_not_overwrite_other_files(
    experiments: Path, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    (tmp_path / "x.safetensors").write_text("mine")
    config = ("--config", experiments / "scenes/sdr.yaml", "--teacher", experiments / "scenes/image_teacher.yaml")
    for option in ("--output", "--placebo"):
        outputs = {"--output": tmp_path / "bank.safetensors", option: tmp_path / "x.safetensors"}
        line = error_of("extract", *config, *(word for pair in outputs.items() for word in pair))
        assert "x.safetensors exists and was not written by this command" in line
        assert (tmp_path / "x.safetensors").read_text() == "mine"
