import json
from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.data.coco import CocoSource
from sdr_lightning.data.holdout import held_out
from tests.data.pictures import RAGGED, TOLD, captions_of, check_ragged, numbers, write_pictures

IMAGES = [{"id": 500 + number, "file_name": name, "width": 8} for number, name in enumerate(RAGGED)]
ANNOTATIONS = [
    {"id": 1000 * number + k, "image_id": 500 + number, "caption": text}
    for number, name in enumerate(RAGGED)
    for k, text in enumerate(captions_of(name))
]
NUMBERS = ["a.png#0", "a.png#1", "b.png#1000", *(f"c.png#{3000 + k}" for k in range(20))]
CAPTION_IDS = [f"train/{number}" for number in NUMBERS]


def write(folder: Path, images: Any, annotations: Any, name: str = "train.json") -> str:
    path = folder / name
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations}), encoding="utf-8")
    return str(path)


def about(*names: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Images with a caption each."""
    images = [{"id": name, "file_name": name} for name in names]
    return images, [{"id": f"of {name}", "image_id": name, "caption": f"this is {name}"} for name in names]


@pytest.mark.parametrize(
    ("folders", "where"), [(None, "train"), ({"train": "train2014"}, "train2014"), ({"train": ""}, "")]
)
def test_a_ragged_collection(tmp_path: Path, folders: dict[str, str] | None, where: str) -> None:
    write_pictures(tmp_path / where, RAGGED)
    backwards = sorted(ANNOTATIONS, key=lambda entry: -entry["image_id"])  # type: ignore[operator]
    source = CocoSource("mine", str(tmp_path), {"train": write(tmp_path, IMAGES, backwards)}, folders)
    place = f"{where}/" if where else ""
    told = [place + name for name in TOLD]
    check_ragged(source, told, [place + number for number in NUMBERS], bare=f"{place}bare.png")
    assert source.splits == ("train",)


def test_files_of_the_same_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    for folder in ("train", "val"):
        write_pictures(tmp_path / folder, ["0.png"])
    files = {"train": write(tmp_path, *about("0.png")), "val": write(tmp_path, *about("0.png"), "val.json")}
    source = CocoSource("mine", str(tmp_path), files)
    assert [*source.table("train").image_ids, *source.table("val").image_ids] == ["train/0.png", "val/0.png"]


@pytest.mark.parametrize("flag", ["is_rejected", "is_precanned"])
def test_rejected_captions_are_skipped_by_default(tmp_path: Path, flag: str) -> None:
    write_pictures(tmp_path / "train", RAGGED)
    entries = [{**entry, flag: k in (1, 2), "text_detected": True} for k, entry in enumerate(ANNOTATIONS)]
    annotations = {"train": write(tmp_path, IMAGES, entries)}
    kept = CocoSource("mine", str(tmp_path), annotations).table("train")
    assert kept.image_ids == ["train/a.png", "train/c.png"]  # b.png has no other caption
    assert kept.caption_ids == [CAPTION_IDS[0], *CAPTION_IDS[3:]]
    option = {f"keep_{flag.removeprefix('is_')}": True}
    assert CocoSource("mine", str(tmp_path), annotations, **option).table("train").caption_ids == CAPTION_IDS


def test_published_validation_images_may_serve_as_the_test(tmp_path: Path) -> None:
    """VizWiz: the captions of its own test split are hidden."""
    names = [f"{i}.png" for i in range(30)]
    write_pictures(tmp_path / "train", names)
    write_pictures(tmp_path / "val", ["t.png"])
    source = CocoSource(
        "mine",
        str(tmp_path),
        {"train": write(tmp_path, *about(*names)), "test": write(tmp_path, *about("t.png"), "val.json")},
        folders={"test": "val"},
        validation_share=0.2,
    )
    assert source.splits == ("train", "val", "test")
    drawn = held_out([f"train/{name}" for name in names], {"val": 0.2}, seed=0)
    for split in ("train", "val"):
        expected = [number for number in range(30) if drawn[number] == split]
        assert expected
        assert source.table(split).image_ids == [f"train/{names[number]}" for number in expected]
        assert numbers(source.images(split)) == expected
    assert source.table("test").captions == ["this is t.png"]


def test_malformed_annotations(tmp_path: Path) -> None:
    for images, annotations, message in [
        (None, ANNOTATIONS, "is not COCO-style: expected an object with lists under 'images' and 'annotations'"),
        (IMAGES, None, "has no list under 'annotations': its captions are hidden"),
        (["a.png"], [], r"images\[0\] is no object with 'id' and 'file_name'"),
        ([{"id": 1}], [], r"images\[0\] is no object with 'id' and 'file_name'"),
        ([*IMAGES, {"file_name": "a.png"}], [], r"images\[4\] has no number and no text under 'id'"),
        ([{"id": [1], "file_name": "a.png"}], [], r"images\[0\] has no number and no text under 'id'"),
        ([*IMAGES, {"id": 501, "file_name": "d.png"}], [], r"images\[4\] has the id 501 of an image before it"),
        (IMAGES, ["a word"], r"annotations\[0\] is no object with 'id', 'image_id' and text under 'caption'"),
        (IMAGES, [{"id": 1, "image_id": 500}], r"annotations\[0\] is no object with 'id', 'image_id' and text"),
        (IMAGES, [{"id": 1, "image_id": [500], "caption": "x"}], r"annotations\[0\] is no object with"),
        (IMAGES, [{"image_id": 500, "caption": "x"}], r"annotations\[0\] is no object with"),
        (
            IMAGES,
            [{"id": 1, "image_id": 9, "caption": "x"}],
            r"annotations\[0\] is of the image 9, which is not under 'images'",
        ),
    ]:
        path = write(tmp_path, images, annotations)
        with pytest.raises(ValueError, match=message) as caught:
            CocoSource("mine", str(tmp_path), {"train": path}).table("train")
        assert path in str(caught.value)


def test_annotations_that_cannot_be_used(tmp_path: Path) -> None:
    for changed, message in [
        ({"id": 1}, "mine train: 1 of 23 captions have a repeated id, first: train/a.png#1"),
        ({"caption": " \n"}, "mine train: 1 of 23 captions are empty, first: train/a.png#0"),
    ]:
        write_pictures(tmp_path / "train", RAGGED)
        path = write(tmp_path, IMAGES, [{**ANNOTATIONS[0], **changed}, *ANNOTATIONS[1:]])
        with pytest.raises(ValueError, match=message):
            CocoSource("mine", str(tmp_path), {"train": path}).table("train")


def test_two_entries_of_a_file_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", RAGGED)
    path = write(tmp_path, [*IMAGES[:-1], {**IMAGES[-1], "file_name": "a.png"}], ANNOTATIONS)
    with pytest.raises(ValueError, match=r"mine train: 1 of 4 images have a repeated id, first: train/a.png"):
        CocoSource("mine", str(tmp_path), {"train": path}).table("train")


def test_options_that_do_not_fit() -> None:
    for options, message in [
        ({"annotations": {"dev": "x.json"}}, "mine has files for 'dev', expected splits among train, val, test"),
        ({"annotations": {}, "folders": {"dev": "x"}}, "mine has files for 'dev'"),
        ({"annotations": {"train": "x", "val": "y"}, "validation_share": 0.1}, "drop one of the two"),
        ({"annotations": {"test": "x"}, "validation_share": 0.1}, "names a validation_share and no training file"),
    ]:
        with pytest.raises(ValueError, match=message):
            CocoSource("mine", "images", **options)
