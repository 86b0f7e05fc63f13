import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdr_lightning.data.karpathy import read_karpathy
from sdr_lightning.data.lists import ListSource
from sdr_lightning.data.table import SPLITS
from tests.data.pictures import RAGGED, TOLD, captions_of, check_ragged, numbered_ids, numbers, write_pictures

PER_IMAGE = [{"image": f"images/{name}", "caption": captions_of(name)} for name in RAGGED]
PER_CAPTION = [
    {"image": f"images/{name}", "caption": text, "image_id": name}
    for name in RAGGED
    for text in captions_of(name) or [[]]
]


def write(folder: Path, document: Any, name: str = "list.json") -> str:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("entries", [PER_IMAGE, PER_CAPTION, PER_CAPTION[:1] + PER_IMAGE[1:] + PER_CAPTION[1:2]])
def test_a_ragged_collection(tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    write_pictures(tmp_path / "images", RAGGED)
    source = ListSource("mine", str(tmp_path), train=[write(tmp_path, entries)])
    ids = [f"images/{name}" for name in TOLD]
    check_ragged(source, ids, numbered_ids(ids), bare="images/bare.png")


def test_files_of_a_split_are_concatenated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTS", str(tmp_path))
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    first = [{"image": "b.png", "caption": "one"}, {"image": "a.png", "caption": "two"}]
    write(tmp_path, first, "1.json")
    write(tmp_path, [{"image": "b.png", "caption": ["three"]}], "2.json")
    write(tmp_path, [{"image": "c.png", "caption": ["four"]}], "test.json")
    source = ListSource("mine", "$LISTS", train=["$LISTS/1.json", "$LISTS/2.json"], test=["$LISTS/test.json"])
    assert source.splits == ("train", "test")
    table = source.table("train")
    assert table.image_ids == ["b.png", "a.png"]
    assert table.captions == ["one", "three", "two"]
    assert table.caption_ids == ["b.png#0", "b.png#1", "a.png#0"]
    assert numbers(source.images("train")) == [1, 0]


def test_malformed_lists(tmp_path: Path) -> None:
    for document, message in [
        ('[{"image": "a.png", "capt', "is not JSON in UTF-8"),
        ({"images": []}, "holds dict, expected a list of objects"),
        (["a.png"], r"\[0\] is no object with a path under 'image'"),
        ([{"caption": "x"}], r"\[0\] is no object with a path under 'image'"),
        ([PER_IMAGE[0], {"image": "a.png"}], r"\[1\] \(a.png\) has no text and no list of texts under 'caption'"),
        ([{"image": "a.png", "caption": ["x", None]}], r"\[0\] \(a.png\) has no text"),
        ([{"image": "a.png", "caption": {"raw": "x"}}], r"\[0\] \(a.png\) has no text"),
    ]:
        path = write(tmp_path, document)
        with pytest.raises(ValueError, match=message) as caught:
            ListSource("mine", str(tmp_path), val=[path]).table("val")
        assert path in str(caught.value)


def test_an_image_in_two_lists_is_a_leak(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    path = write(tmp_path, [{"image": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match=r"mine test: 1 of 1 images are in another split .* a.png \(train\)"):
        ListSource("mine", str(tmp_path), train=[path], test=[path]).table("test")


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no file at {tmp_path}/none.json"):
        ListSource("mine", str(tmp_path), train=[f"{tmp_path}/none.json"]).table("train")
    with pytest.raises(ValueError, match="mine has no train split; it has none"):
        ListSource("mine", str(tmp_path)).table("train")


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "images", "captions", "most"),
    [
        ("coco_test", 5_000, 25_010, 6),
        ("flickr30k_val", 1_014, 5_070, 5),
        ("flickr30k_test", 1_000, 5_000, 5),
        ("vizwiz_test", 1_000, 5_000, 5),
    ],
)
def test_the_published_lists(shared: Path, tmp_path: Path, name: str, images: int, captions: int, most: int) -> None:
    source = ListSource(name, str(tmp_path), test=[f"{shared}/data/official_json/{name}.json"])
    counts = [len(record.captions) for record in source.read()["test"]]
    assert (len(counts), sum(counts)) == (images, captions)
    assert (min(counts), max(counts)) == (5, most)
    (problem,) = source.problems("test")
    assert (problem.what, problem.number, problem.of) == ("images are missing", images, images)
    with pytest.raises(ValueError, match=f"{name} test: {images} of {images} images are missing"):
        source.table("test")


@pytest.mark.data
def test_the_published_lists_of_flickr30k_are_karpathys(shared: Path) -> None:
    where = shared / "data" / "official_json"
    lists = ListSource("flickr30k", "", val=[f"{where}/flickr30k_val.json"], test=[f"{where}/flickr30k_test.json"])
    karpathy = read_karpathy(shared / "data" / "flickr30k" / "dataset_flickr30k.json")
    for split in SPLITS[1:]:
        listed = {record.image_id: record.captions for record in lists.read()[split]}
        assert listed == {f"flickr30k-images/{record.image_id}": record.captions for record in karpathy[split]}


@pytest.mark.data
def test_a_partial_copy_of_flickr30k(shared: Path) -> None:
    listed = [f"{shared}/data/official_json/flickr30k_test.json"]
    source = ListSource("flickr30k", f"{shared}/data/flickr30k", test=listed, skip_missing=True)
    table = source.table("test")
    assert (len(table.image_ids), len(table.captions)) == (243, 5 * 243)
    assert source.images("test")[242].dtype == np.uint8
