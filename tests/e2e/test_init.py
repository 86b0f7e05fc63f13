"""From a table of pictures to a trained student, with what ``sdr init`` prints."""

import shlex
from pathlib import Path

import pytest

from tests.data.scene_files import write_scene_files
from tests.e2e.sdr import sdr, succeeded


@pytest.mark.slow
def test_the_commands_that_init_prints_train_a_student(tmp_path: Path) -> None:
    write_scene_files(tmp_path / "pictures", 60, "pairs.csv", "photo,words")
    printed = succeeded(sdr("init", "mine", "--table", "pairs.csv", cwd=tmp_path))
    commands = [shlex.split(line)[1:] for line in printed.partition("all pairs):\n")[2].splitlines()]
    assert [words[0] for words in commands] == ["data", "clean", "fit"]
    assert "training can start" in succeeded(sdr(*commands[0], cwd=tmp_path))
    succeeded(sdr(*commands[1], cwd=tmp_path))
    fitted = sdr(*commands[2], "--trainer.max_epochs", "2", cwd=tmp_path)
    succeeded(fitted)
    progress = [line.partition(": ") for line in fitted.stderr.splitlines() if line.startswith("epoch ")]
    assert [epoch for epoch, _, _ in progress] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all(values.startswith("train/loss ") and ", val/rsum " in values for _, _, values in progress)
    assert [" left" in values for _, _, values in progress] == [True, False]
    assert (tmp_path / "mine/run/checkpoints/best.ckpt").is_file()
