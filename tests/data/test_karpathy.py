import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.table import SPLITS
from sdr_lightning.metrics.relevance import RougeLRelevance
from tests.data.pictures import RAGGED, captions_of, check_ragged, numbers, write_pictures


def entry(name: str, split: str, *captions: str, start: int = 0, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": raw, "sentid": start + k, "imgid": 0, "tokens": []} for k, raw in enumerate(captions)]
    return {"filename": name, "split": split, "sentences": sentences, **more}


ENTRIES = [
    entry("b.png", "train", "Two dogs .", "dogs  run\n fast", start=10),
    entry("x.png", "val", "a cat", start=20),
    entry("a.png", "restval", "a bird", "one bird", "birds", start=30, filepath="val2014"),
    entry("t.png", "test", "nothing", start=40),
    entry("c.png", "train", "trees", start=50),
]
GOOD = entry("a.png", "train", "a word")


def write(folder: Path, document: Any, name: str = "dataset_small.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def collection(folder: Path, entries: list[dict[str, Any]], **options: Any) -> KarpathySource:
    """Annotations and their images."""
    write_pictures(folder / "images", [f"{e.get('filepath', '.')}/{e['filename']}" for e in entries])
    return KarpathySource(
        str(write(folder, {"dataset": "file's own", "images": entries})), str(folder / "images"), **options
    )


def test_a_ragged_collection(tmp_path: Path) -> None:
    starts = dict(zip(RAGGED, (0, 100, 200, 300), strict=True))
    source = collection(tmp_path, [entry(name, "train", *captions_of(name), start=starts[name]) for name in RAGGED])
    check_ragged(
        source, ["a.png", "b.png", "c.png"], [*"01", "100", *(str(300 + k) for k in range(20))], bare="bare.png"
    )


def test_restval_joins_train_and_folders_are_followed(tmp_path: Path) -> None:
    source = collection(tmp_path, ENTRIES, name="mine")
    table = source.table("train")
    assert table.name == "mine"
    assert table.image_ids == ["b.png", "a.png", "c.png"]
    assert table.captions == ["Two dogs .", "dogs run fast", "a bird", "one bird", "birds", "trees"]
    assert table.caption_ids == ["10", "11", "30", "31", "32", "50"]
    assert table.caption_image.tolist() == [0, 0, 1, 1, 1, 2]
    assert table.caption_image.dtype == np.int64
    assert [numbers(source.images(split)) for split in SPLITS] == [[0, 2, 4], [1], [3]]
    assert source.table("val").captions == ["a cat"]
    assert source.table("test").image_ids == ["t.png"]


def test_name_comes_from_the_file_name(tmp_path: Path) -> None:
    assert collection(tmp_path, ENTRIES).name == "small"


def test_variables_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection(tmp_path, ENTRIES)
    monkeypatch.setenv("SMALL_ROOT", str(tmp_path))
    monkeypatch.delenv("SMALL_IMAGES", raising=False)
    source = KarpathySource("$SMALL_ROOT/dataset_small.json", f"${{SMALL_IMAGES:-{tmp_path}/images}}")
    assert len(source.table("train").image_ids) == 3
    with pytest.raises(ValueError, match="environment variable SMALL_IMAGES, which is not set"):
        KarpathySource("$SMALL_ROOT/dataset_small.json", "$SMALL_IMAGES").table("train")


def test_relevance_is_rouge_l_and_is_cached(tmp_path: Path) -> None:
    source = collection(tmp_path, ENTRIES)
    relevance = source.relevance("train", tmp_path / "cache")
    assert isinstance(relevance, RougeLRelevance)
    assert (relevance.num_images, relevance.num_texts) == (3, 6)
    assert relevance.rows("text", "image", slice(3, 4))[0].tolist() == [0, 1, 0]
    assert list((tmp_path / "cache").iterdir())


def test_captions_in_any_script(tmp_path: Path) -> None:
    table = collection(tmp_path, [entry("é.png", "train", "naïve 猫")]).table("train")
    assert (table.image_ids, table.captions) == (["é.png"], ["naïve 猫"])


def test_malformed_annotations(tmp_path: Path) -> None:
    for document, message in [
        ("{'images': []}", "is not JSON in UTF-8"),
        (json.dumps({"images": [GOOD]})[:-9], "is not JSON in UTF-8"),
        ("", "is not JSON in UTF-8"),
        ([GOOD], "expected an object with a list under 'images'"),
        ({"annotations": []}, "expected an object with a list under 'images'"),
        ({"images": {"0": GOOD}}, "expected an object with a list under 'images'"),
        ({"images": [GOOD, "b.png"]}, r"images\[1\] is str, expected an object"),
        ({"images": [{"filename": "a", "sentences": []}]}, r"images\[0\] has no 'split'; it has filename, sentences"),
        ({"images": [{"split": "train", "sentences": []}]}, r"images\[0\] has no 'filename'"),
        ({"images": [{"split": "train", "filename": "a.png"}]}, r"images\[0\] has no 'sentences'"),
        ({"images": [{**GOOD, "filename": 7}]}, r"images\[0\] has the filename 7, expected text"),
        ({"images": [GOOD, {**GOOD, "split": "dev"}]}, r"images\[1\] has the split 'dev', expected one of train, rest"),
        ({"images": [{**GOOD, "split": ["train"]}]}, r"images\[0\] has the split \['train'\]"),
        ({"images": [{**GOOD, "sentences": None}]}, r"images\[0\] \(a.png\) has no list under 'sentences'"),
        ({"images": [{**GOOD, "sentences": [{"raw": "x"}]}]}, r"images\[0\] \(a.png\) .* without 'sentid'"),
        ({"images": [{**GOOD, "sentences": ["a word"]}]}, r"images\[0\] \(a.png\) has a sentence without text"),
        ({"images": [{**GOOD, "sentences": [{"raw": None, "sentid": 0}]}]}, "has a sentence without text"),
        ({"images": [entry("a.png", "train", "fine", "  ")]}, "1 of 2 captions are empty, first: 1"),
    ]:
        path = write(tmp_path, document)
        write_pictures(tmp_path, ["a.png"])
        with pytest.raises(ValueError, match=message) as caught:
            KarpathySource(str(path), str(tmp_path)).table("train")
        assert str(path) in str(caught.value) or "small train" in str(caught.value)


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no file at {tmp_path}/none.json .*: expected Karpathy's JSON"):
        KarpathySource(f"{tmp_path}/none.json", str(tmp_path)).table("val")


def test_annotations_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "dataset_latin.json"
    path.write_bytes(json.dumps({"images": [entry("a.png", "train", "café")]}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path} is not JSON in UTF-8"):
        KarpathySource(str(path), str(tmp_path)).table("train")


def test_file_that_is_no_image_raises_for_its_own_row_only(tmp_path: Path) -> None:
    source = collection(tmp_path, ENTRIES)
    (tmp_path / "images" / "val2014" / "a.png").write_text("<html>not found</html>")
    images = source.images("train")
    assert images[2].shape == (8, 14, 3)
    with pytest.raises(ValueError, match=r"cannot read the image .*images/val2014/a.png"):
        images[1]


@pytest.mark.data
def test_flickr8k(shared: Path) -> None:
    where = shared / "data" / "flickr8k"
    source = KarpathySource(str(where / "dataset_flickr8k.json"), str(where / "images"))
    for split, images in zip(SPLITS, (5999, 1000, 1000), strict=True):
        table = source.table(split)
        assert len(table.image_ids) == images
        assert (np.bincount(table.caption_image) == 5).all()
        assert source.problems(split) == []
    assert source.images("test")[0].shape == (192, 192, 3)


@pytest.mark.slow  # reads the annotations of 31,783 images
@pytest.mark.data
def test_a_partial_copy_of_flickr30k(shared: Path) -> None:
    where = shared / "data" / "flickr30k"
    paths = (str(where / "dataset_flickr30k.json"), str(where / "flickr30k-images"))
    whole = KarpathySource(*paths)
    with pytest.raises(ValueError, match="flickr30k train: 22008 of 29000 images are missing"):
        whole.table("train")
    with pytest.raises(ValueError, match="flickr30k val: 772 of 1014 images are missing"):
        whole.table("val")
    assert len(whole.absent("train")) == 22_008
    source = KarpathySource(*paths, skip_missing=True)
    assert [len(source.table(split).image_ids) for split in SPLITS] == [6992, 242, 243]
    assert len(source.table("test").captions) == 5 * 243
    images = source.images("test")
    assert len(images) == 243
    assert images[242].dtype == np.uint8
