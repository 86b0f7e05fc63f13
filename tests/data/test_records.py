"""What every reader does with its records, on records that are given."""

from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.data.records import Record, Records, grouped
from sdr_lightning.data.source import FolderSource
from sdr_lightning.data.table import Split
from tests.data.pictures import numbers, write_pictures

NINE = [f"{i}.png" for i in range(9)]
ABSENT = [f"{i}.png" for i in (0, 2, 3, 4, 5, 7)]


class GivenSource(FolderSource):
    def __init__(self, records: Records, images: Path, **options: Any) -> None:
        super().__init__("given", str(images), **options)
        self.records = records

    def read(self) -> Records:
        return self.records


def record(name: str, *captions: str) -> Record:
    return Record(name, name, captions, [f"{name}#{k}" for k in range(len(captions))])


def given(folder: Path, absent: list[str] | None = None, **options: Any) -> GivenSource:
    """Nine images for training, each with a caption of its own."""
    write_pictures(folder, NINE)
    for name in absent or []:
        (folder / name).unlink()
    return GivenSource({"train": [record(name, f"about {name}") for name in NINE]}, folder, **options)


def listed(folder: Path, *names: str) -> str:
    path = folder / "ids.txt"
    path.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return str(path)


def refused(records: Records, folder: Path, split: Split = "train", **options: Any) -> str:
    """What is said of records that cannot be used."""
    write_pictures(folder, {r.reference for entries in records.values() for r in entries})
    source = GivenSource(records, folder, **options)
    with pytest.raises(ValueError, match=f"given {split}: ") as caught:
        source.table(split)
    with pytest.raises(ValueError, match=f"given {split}: "):
        source.images(split)
    return str(caught.value)


def test_missing_images_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    source = given(tmp_path, ABSENT)
    with pytest.raises(ValueError, match="given train: 6 of 9 images are missing, first: ") as caught:
        source.table("train")
    message = str(caught.value)
    assert all(str(tmp_path / name) in message for name in ABSENT[:5])
    assert ABSENT[5] not in message
    assert "complete the folder" in message
    assert "source.init_args.skip_missing true" in message
    assert source.absent("train") == ABSENT


def test_skip_missing_removes_missing_images(tmp_path: Path) -> None:
    source = given(tmp_path, ABSENT, skip_missing=True)
    table = source.table("train")
    assert table.image_ids == ["1.png", "6.png", "8.png"]
    assert table.captions == ["about 1.png", "about 6.png", "about 8.png"]
    assert table.caption_image.tolist() == [0, 1, 2]
    assert numbers(source.images("train")) == [1, 6, 8]
    assert [(p.number, p.of, p.fatal) for p in source.problems("train")] == [(6, 9, False)]


def test_a_folder_without_any_image_is_refused(tmp_path: Path) -> None:
    source = given(tmp_path, NINE, skip_missing=True)
    with pytest.raises(ValueError, match=r"given train: 0 of 0 images, first: none; check .* what is skipped"):
        source.table("train")


@pytest.mark.parametrize("text", ["0.png\n3.png\n", "0.png\n3.png", "\ufeff0.png\r\n 3.png \r\n\r\n"])
def test_leave_out_removes_listed_images(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids.txt").write_text(text, encoding="utf-8", newline="")
    source = given(tmp_path, ["0.png"], leave_out=str(tmp_path / "ids.txt"))
    assert source.table("train").image_ids == [name for name in NINE if name not in ("0.png", "3.png")]
    assert numbers(source.images("train")) == [1, 2, 4, 5, 6, 7, 8]
    assert source.problems("train") == []


def test_id_list_of_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text("0.png\nz.png\ny.png\n")
    with pytest.raises(ValueError, match=r"names 2 images that .* does not have, first 'y.png'"):
        given(tmp_path, ["0.png", "1.png"], leave_out=str(tmp_path / "ids.txt")).table("train")


def test_the_list_of_what_to_leave_out_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no text file at {tmp_path}/none.txt"):
        given(tmp_path, leave_out=f"{tmp_path}/none.txt").table("train")


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given(tmp_path)
    listed(tmp_path, *NINE[1:])
    monkeypatch.setenv("GIVEN_ROOT", str(tmp_path))
    records: Records = {"train": [record(name, "x") for name in NINE]}
    source = GivenSource(records, Path("$GIVEN_ROOT"), leave_out="${GIVEN_ROOT}/ids.txt")
    assert source.table("train").image_ids == ["0.png"]
    assert numbers(source.images("train")) == [0]


def test_an_image_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    both: Records = {"train": [record("a.png", "x"), record("b.png", "y")], "test": [record("b.png", "z")]}
    message = refused(both, tmp_path)
    assert "1 of 2 images are in another split as well (a leak), first: b.png (test)" in message
    assert "leave_out" in message
    assert "1 of 1 images are in another split as well (a leak), first: b.png (train)" in refused(
        both, tmp_path, "test"
    )


def test_repeated_image_ids(tmp_path: Path) -> None:
    message = refused({"val": [record("a.png", "x"), record("b.png", "y"), record("a.png", "z")]}, tmp_path, "val")
    assert "1 of 3 images have a repeated id, first: a.png; give every image one entry" in message


def test_repeated_caption_ids(tmp_path: Path) -> None:
    records = [Record("a.png", "a.png", ["x", "y"], ["1", "2"]), Record("b.png", "b.png", ["z"], ["2"])]
    assert "1 of 3 captions have a repeated id, first: 2; give every caption" in refused({"train": records}, tmp_path)


EMPTY: Records = {"train": [record("a.png", "x", "", "z"), record("b.png", ""), record("c.png", "y")]}


def test_empty_captions(tmp_path: Path) -> None:
    message = refused(EMPTY, tmp_path)
    assert "2 of 5 captions are empty, first: a.png#1, b.png#0; complete them" in message
    assert "skip_empty" in message


def test_skip_empty_removes_empty_captions(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    source = GivenSource(EMPTY, tmp_path, skip_empty=True)
    table = source.table("train")
    assert table.image_ids == ["a.png", "c.png"]
    assert table.captions == ["x", "z", "y"]
    assert table.caption_ids == ["a.png#0", "a.png#2", "c.png#0"]
    assert numbers(source.images("train")) == [0, 2]
    assert [(p.what, p.first) for p in source.problems("train")] == [("images have no caption", ("b.png",))]


def test_a_split_without_any_caption_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    records: Records = {"train": [record("a.png", "x")], "test": [record("b.png"), record("c.png")]}
    assert "2 of 2 images have no caption, first: b.png, c.png; give them captions" in refused(
        records, tmp_path, "test"
    )
    assert GivenSource(records, tmp_path).table("train").captions == ["x"]


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    assert "0 of 0 images" in refused({"train": []}, tmp_path)


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    source = GivenSource({"test": [record("a.png", "x")], "train": [record("b.png", "x")]}, tmp_path)
    assert source.splits == ("train", "test")
    with pytest.raises(ValueError, match="given has no val split; it has train, test"):
        source.table("val")
    with pytest.raises(ValueError, match="given has no train split; it has none"):
        GivenSource({}, tmp_path).table("train")


def test_several_problems_are_all_found(tmp_path: Path) -> None:
    records: Records = {
        "train": [record("gone.png", "x"), record("a.png", ""), record("a.png", "y"), record("bare.png")],
        "val": [record("a.png", "x")],
    }
    write_pictures(tmp_path, ["a.png", "bare.png"])
    assert [(p.what, p.number, p.fatal) for p in GivenSource(records, tmp_path).problems("train")] == [
        ("images are missing", 1, True),
        ("images have a repeated id", 1, True),
        ("captions have a repeated id", 1, True),
        ("images are in another split as well (a leak)", 2, True),
        ("captions are empty", 1, True),
        ("images have no caption", 1, False),
    ]


def test_rows_of_an_image_are_put_together_in_the_order_of_the_images() -> None:
    rows = [("b", "0", "one  dog\n"), ("a", "1", None), ("b", "2", "two"), ("c", "3", ""), ("a", "4", None)]
    assert grouped(rows) == [
        Record("b", "0", ["one dog", "two"], ["b#0", "b#1"]),
        Record("a", "1", [], []),
        Record("c", "3", [""], ["c#0"]),
    ]
