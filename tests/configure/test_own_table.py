"""Guessing the columns of a table of pairs, and the experiment that ``sdr init`` writes for it."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sdr_lightning.cli.init import experiment, report
from sdr_lightning.cli.main import main
from sdr_lightning.configure import build_data, own_table
from sdr_lightning.configure.own_table import guess_table
from sdr_lightning.data import tabular

SENTENCE = "a dog runs on the beach"
Rows = list[dict[str, object]]


def write(path: Path, rows: Rows) -> Path:
    """Write a table, and an empty file for every cell that ends in .jpg in the folder ``pictures`` beside it."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    for cell in (cell for row in rows for cell in row.values() if str(cell).endswith(".jpg")):
        target = path.parent / "pictures" / str(cell)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize(
    ("row", "image", "captions", "split"),
    [
        ({"image": "1.jpg", "caption": SENTENCE}, "image", ("caption",), None),
        ({"key": 7, "x": "a/1.jpg", "alt_text": SENTENCE, "set": "dev"}, "x", ("alt_text",), "set"),
        ({"title": "Dog", "caption_0": SENTENCE, "caption_1": "a dog", "path": "1.jpg"}, "path", "caption_0 1", None),
        ({"filename": "1.jpg", "thumb": "1.jpg", "words": SENTENCE, "colour": "red"}, "filename", ("words",), None),
    ],
)
def test_columns_are_guessed_by_their_values_and_names(
    row: dict[str, object], image: str, captions: tuple[str, ...] | str, split: str | None, suffix: str, tmp_path: Path
) -> None:
    guess = guess_table(write(tmp_path / f"t{suffix}", [row] * 3))
    wanted = ("caption_0", "caption_1") if isinstance(captions, str) else captions
    assert (guess.image_column, guess.caption_columns, guess.split_column) == (image, wanted, split)
    assert (guess.images, guess.rows, guess.found) == (tmp_path / "pictures", 3, 1)
    assert set(guess.unused) == row.keys() - {image, split, *wanted}


def test_the_training_rows_of_the_whole_table_are_counted(tmp_path: Path) -> None:
    row = {"image": "1.jpg", "caption": SENTENCE}
    rows = [{**row, "split": split} for split in ["test"] * 1200 + ["train"] * 3000]
    guess = guess_table(write(tmp_path / "t.csv", rows))
    assert (guess.rows, guess.training_rows) == (1000, 3000)
    assert guess_table(write(tmp_path / "u.csv", [row] * 2000)).training_rows == 1600


def test_options_take_the_place_of_guesses(tmp_path: Path) -> None:
    row = {"a": "1.jpg", "b": "2.jpg", "caption": SENTENCE, "title": "Dog", "one": "train", "two": "test"}
    table = write(tmp_path / "t.csv", [row])
    guess = guess_table(table, tmp_path / "pictures", "b", ["title", "caption"], "two")
    assert (guess.image_column, guess.caption_columns, guess.split_column) == ("b", ("title", "caption"), "two")


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (
            [{"image": "1.png", "caption": SENTENCE}],
            {},
            "none of the first 1 images of the column 'image', such as 1.png",
        ),
        ([{"number": 1, "caption": SENTENCE}], {}, "no column of .* holds paths of images .* give --image-column"),
        ([{"image": "1.jpg", "number": 2}], {}, "no column of .* holds captions .* give --caption-column"),
        (
            [{"image": "1.jpg", "caption": SENTENCE}],
            {"split_column": "fold"},
            "no column 'fold'; it has image, caption",
        ),
        ([{"image": "1.jpg", "caption": SENTENCE}], {"images": Path("absent")}, "no folder of images at absent"),
    ],
)
def test_what_cannot_be_guessed_is_asked_for(
    rows: Rows, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        guess_table(write(tmp_path / "t.csv", rows), **options)  # type: ignore[arg-type]


def test_images_inside_a_table_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"image": {"bytes": b"x"}, "caption": SENTENCE}]), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="holds images, not their paths: use HuggingFaceSource"):
        guess_table(tmp_path / "t.parquet")


def test_names_are_those_that_the_source_reads() -> None:
    assert tabular.SPLIT_OF == own_table.SPLIT_OF
    assert tabular.IMAGE_ENDINGS == own_table.IMAGE_ENDINGS


def test_the_experiment_reads_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = ("train", "val", "test")
    rows: Rows = [{"file": f"{n}.jpg", "title": f"dog {n}", "fold": splits[n % 3]} for n in range(30)]
    write(tmp_path / "my pairs.csv", rows)
    table = str(tmp_path / "my pairs.csv")
    assert main(["init", str(tmp_path / "mine"), "--table", table]) == 0
    file = tmp_path / "mine/experiment.yaml"
    printed = capsys.readouterr().out
    for part in (
        "column file, 30 of the first 30",
        "column title",
        "column fold",
        f"sdr fit --config {file} --config {file.parent}/clean/kept.yaml --run_dir",
    ):
        assert part in printed
    alone = tmp_path / "mine/data.yaml"
    alone.write_text(yaml.safe_dump(yaml.safe_load(file.read_text())["data"]))
    data = build_data(["--data", str(alone)])
    assert data.batch_size == 4  # ten captions to train on
    assert list(data.table("val").captions) == [f"dog {n}" for n in range(30) if n % 3 == 1]
    before = file.read_text()
    assert main(["init", str(tmp_path / "mine"), "--table", table]) == 2
    assert "exists: choose another folder" in capsys.readouterr().err
    assert file.read_text() == before


def test_missing_towers_and_dollar_signs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a$b"
    folder.mkdir()
    guess = guess_table(write(folder / "t.csv", [{"image": "1.jpg", "caption": SENTENCE}]))
    with pytest.raises(ValueError, match="dollar sign"):
        experiment(guess, tmp_path / "experiment.yaml")
    monkeypatch.setattr("sdr_lightning.cli.init._TOWERS", ("no_such_package",))
    assert any('pip install "sdr_lightning[towers]"' in line for line in report(guess, tmp_path / "experiment.yaml"))
