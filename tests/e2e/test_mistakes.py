"""Wrong requests: one clear line, exit status 2, nothing written."""

from pathlib import Path

import pytest

from tests.e2e.sdr import MATCHING_ALONE, SMALL, complaint, sdr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model.init_args.encoder.init_args.image_tower.frozn=true",), "did you mean 'frozen'"),
        (("--data.init_args.imbalance.ratio=1.5",), "the imbalance ratio must lie in [0, 1], got 1.5"),
        (("--data.init_args.imbalance.kind=mismatches",), "mismatch"),
        (("--data.init_args.batch_size=100000",), "larger than the 1000 training items"),
        (("--checkpoint.monitor=test/rsum",), "never selected on test"),
        (("--model.init_args.objective.init_args.weights", '{"itcc": 1}'), "did you mean 'itc'"),
        (("--model.init_args.objective.init_args.weights", '{"ttc": 1}'), "--data.init_args.text_bank"),
        (("--data.init_args.image_bank=absent.safetensors",), "no feature bank at absent.safetensors"),
        (("--model.init_args.encoder.init_args.image_tower.init_args.name=resnet10",), "timm has no model 'resnet10'"),
        (("--model.init_args.encoder.init_args.image_tower.init_args.weights=absent.pth",), "no weights at absent.pth"),
        (("--model.init_args.encoder.init_args.image_tower.init_args.weights=$UNSET_WEIGHTS",), "UNSET_WEIGHTS"),
    ],
)
def test_sdr_fit_refuses(options: tuple[str, ...], said: str, experiments: Path, tmp_path: Path) -> None:
    base = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    line = complaint(sdr("fit", *base, "--run_dir", tmp_path / "run", *options))
    assert said in line
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("folder", ["flickr8k", "flickr30k"])
def test_photographs_need_a_folder_and_say_so(folder: str, experiments: Path, tmp_path: Path) -> None:
    variable = f"{folder.upper()}_ROOT"
    config = ("fit", "--config", experiments / f"{folder}/sdr.yaml", "--run_dir", tmp_path / "run")
    unset = dict.fromkeys(("FLICKR8K_ROOT", "FLICKR30K_ROOT", "IMAGE_WEIGHTS"), "")
    line = complaint(sdr(*config, **unset))
    assert variable in line or "IMAGE_WEIGHTS" in line or "hub" in line


def test_commands_are_suggested() -> None:
    assert "did you mean 'reproduce'" in complaint(sdr("reprodce"))


def test_a_report_needs_a_study(tmp_path: Path) -> None:
    assert "run sdr reproduce first" in complaint(sdr("report", tmp_path))


def test_testing_needs_a_checkpoint(experiments: Path) -> None:
    config = ("--config", experiments / "scenes/sdr.yaml", *MATCHING_ALONE, *SMALL)
    assert "needs --ckpt_path" in complaint(sdr("test", *config))
    assert "absent.ckpt" in complaint(sdr("test", *config, "--ckpt_path", "absent.ckpt"))
