"""Wrong requests: one clear line, exit status 2, nothing written."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sdr_lightning.cli.main import main
from tests.e2e.sdr import MATCHING_ALONE, SMALL


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused, and give its one line."""

    def run(*arguments: str | Path) -> str:
        assert main([str(argument) for argument in arguments]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdr")]
        assert len(lines) == 1, lines
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.init_args.encoder.init_args.image_tower.frozn=true",), "did you mean 'frozen'"),
        (("--data.init_args.imbalance.ratio=1.5",), "the imbalance ratio must lie in [0, 1], got 1.5"),
        (("--data.init_args.imbalance.kind=mismatches",), "mismatch"),
        (("--data.init_args.batch_size=100000",), "larger than the 1000 training items"),
        (("--checkpoint.monitor=test/rsum",), "never selected on test"),
        (("--checkpoint.monitor=val/r_sum",), "did you mean 'val/rsum'?"),
        (("--data.init_args.tokenizer.init_args.max_tokens=500",), "positions and max_tokens is 500"),
        (("--trainer.limit_train_batches=1e-4",), "increase the `limit_train_batches` argument"),
        (("--trainer.use_distributed_sampler=true",), "use_distributed_sampler would divide the data a second time"),
        (("--trainer.barebones=true",), "barebones has neither logs nor checkpoints"),
        (("--model.init_args.method.init_args.weights", '{"itcc": 1}'), "did you mean 'itc'"),
        (
            ("--model.init_args.method.init_args.weights", '{"ttc": 1}', "--data.init_args.text_bank=null"),
            "text_bank",
        ),
        (
            ("--model.init_args.method.init_args.weights", '{"iic": 1}', "--data.init_args.image_bank=absent"),
            "no feature bank",
        ),
        (("--model.init_args.encoder.init_args.image_tower.init_args.name=resnet10",), "timm has no model 'resnet10'"),
        (("--model.init_args.encoder.init_args.image_tower.init_args.weights=absent.pth",), "no weights at "),
        (("--model.init_args.encoder.init_args.image_tower.init_args.weights=$UNSET_WEIGHTS",), "UNSET_WEIGHTS"),
    ],
)
def test_sdr_fit_refuses(
    options: tuple[str, ...], said: str, experiments: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    line = refused("fit", *base, "--run_dir", tmp_path / "run", *options)
    assert said in line
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize(
    ("options", "said", "kept"),
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
def test_a_run_that_keeps_no_checkpoint_says_why(
    options: tuple[str, ...],
    said: str,
    kept: set[str] | None,
    experiments: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL, "--run_dir", tmp_path / "run")
    assert main(["fit", *map(str, base), *options]) == 0
    assert said in capsys.readouterr().out
    if kept is None:
        assert not (tmp_path / "run").exists()
    else:
        training = json.loads((tmp_path / "run/results.json").read_text())["training"]
        assert training["checkpoint"] is None
        assert set(kept) <= training["kept"].keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--image_teacher.config=nope.yaml",), "no configuration of the image teacher at "),
        (("--image_teacher.ckpt_path=a.ckpt",), "a.ckpt, needs its config beside it"),
        (("--image_teacher.config={scenes}/text_teacher.yaml",), "is a teacher of the text modality, expected image"),
        (("--image_teacher.config={scenes}/sdr.yaml",), "makes a RetrievalModule, expected a TeacherModule"),
        (("--image_teacher.config=$UNSET_TEACHER",), "environment variable UNSET_TEACHER"),
        (
            ("--image_teacher.config={scenes}/image_teacher.yaml", "--image_teacher.ckpt_path=no.ckpt"),
            "no.ckpt: train the teacher with sdr fit",
        ),
        (
            ("--image_teacher.config={scenes}/image_teacher.yaml", "--image_teacher.ckpt_path={scenes}/sdr.yaml"),
            "sdr.yaml is not a checkpoint of this teacher",
        ),
    ],
)
def test_what_is_no_teacher(
    options: tuple[str, ...], said: str, experiments: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *SMALL, "--run_dir", tmp_path / "run")
    distilling = ("--model.init_args.method.init_args.weights", '{"iic": 1}')
    line = refused("fit", *base, *distilling, *(word.format(scenes=experiments / "scenes") for word in options))
    assert said in line
    assert not list(tmp_path.glob("run/*"))


def test_a_teacher_has_no_teachers(experiments: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    teacher = f"--image_teacher.config={experiments}/scenes/image_teacher.yaml"
    line = refused("fit", "--config", experiments / "scenes/text_teacher.yaml", teacher, "--run_dir", tmp_path / "run")
    assert "--image_teacher is for students, and the model is a TeacherModule" in line


@pytest.mark.parametrize(
    ("folder", "missing"),
    [("flickr8k", "environment variable IMAGE_WEIGHTS"), ("flickr30k", "cannot be downloaded")],
)
def test_photographs_need_a_folder_and_say_so(
    folder: str,
    missing: str,
    experiments: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
) -> None:
    for variable in ("FLICKR8K_ROOT", "FLICKR30K_ROOT", "IMAGE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    config = ("fit", "--config", experiments / f"{folder}/sdr.yaml", "--run_dir", tmp_path / "run")
    line = refused(*config)
    assert missing in line


def test_commands_are_suggested(refused: Callable[..., str]) -> None:
    assert "did you mean 'reproduce'" in refused("reprodce")


def test_a_report_needs_a_study(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "run sdr reproduce first" in refused("report", tmp_path)


def test_testing_needs_a_checkpoint(experiments: Path, refused: Callable[..., str]) -> None:
    config = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    assert "needs --ckpt_path" in refused("test", *config)
    assert "absent.ckpt" in refused("test", *config, "--ckpt_path", "absent.ckpt")


def test_a_run_replaces_no_file_that_no_run_wrote(
    experiments: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "metrics.json").write_text("mine")
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    for command in ("fit", "test"):
        line = refused(command, *base, "--run_dir", tmp_path, "--ckpt_path", "x.ckpt")
        assert f"{tmp_path} holds metrics.json, which no run wrote: choose another --run_dir" in line
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("option", ["--output", "--placebo"])
def test_a_bank_replaces_no_file_that_is_no_bank(
    option: str, experiments: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "x.safetensors").write_text("mine")
    outputs = {"--output": tmp_path / "bank.safetensors", option: tmp_path / "x.safetensors"}
    config = ("--config", experiments / "scenes/sdr.yaml", "--teacher", experiments / "scenes/image_teacher.yaml")
    line = refused("extract", *config, *(word for pair in outputs.items() for word in pair))
    assert "x.safetensors exists and was not written by this command" in line
    assert (tmp_path / "x.safetensors").read_text() == "mine"
