"""From a table of pictures to a trained student, with what ``sdr init`` prints."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from sdr_lightning.data import SceneSource
from tests.e2e.sdr import sdr, succeeded


@pytest.mark.slow
def test_the_commands_that_init_prints_train_a_student(tmp_path: Path) -> None:
    source = SceneSource(num_train=30, num_val=1, num_test=1)
    table, images = source.table("train"), source.images("train")
    (tmp_path / "pictures").mkdir()
    for row in range(len(images)):
        Image.fromarray(images[row]).save(tmp_path / "pictures" / f"{row}.png")
    rows = [f'{image}.png,"{text}"' for image, text in zip(table.caption_image, table.captions, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["photo,words", *rows]) + "\n")
    printed = succeeded(sdr("init", "mine", "--table", "pairs.csv", cwd=tmp_path))
    commands = [shlex.split(line)[1:] for line in printed.partition("next:\n")[2].splitlines()]
    assert [words[0] for words in commands] == ["data", "fit"]
    assert "training can start" in succeeded(sdr(*commands[0], cwd=tmp_path))
    succeeded(sdr(*commands[1], "--trainer.max_epochs", "1", "--trainer.enable_progress_bar=false", cwd=tmp_path))
    assert (tmp_path / "mine/run/checkpoints/best.ckpt").is_file()
