import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdr_lightning.data.files import ImageFiles, decode
from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.table import SPLITS
from sdr_lightning.metrics.relevance import RougeLRelevance

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
SHARED = os.environ.get("SDR_SHARED")


def entry(name: str, split: str, *captions: str, start: int = 0, **more: Any) -> dict[str, Any]:
    sentences = [{"raw": raw, "sentid": start + k, "imgid": 0, "tokens": []} for k, raw in enumerate(captions)]
    return {"filename": name, "split": split, "sentences": sentences, **more}


ENTRIES = [
    entry("b.jpg", "train", "Two dogs .", "dogs  run\n fast", start=10),
    entry("x.jpg", "val", "a cat", start=20),
    entry("a.jpg", "restval", "a bird", "one bird", "birds", start=30, filepath="val2014"),
    entry("t.jpg", "test", "nothing", start=40),
    entry("c.jpg", "train", "trees", start=50),
]


def write(folder: Path, document: Any, name: str = "dataset_small.json") -> Path:
    path = folder / name
    path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
    return path


def collection(folder: Path, entries: list[dict[str, Any]], but: tuple[str, ...] = (), **more: Any) -> KarpathySource:
    """Annotations and their images; each image has one colour of its own, except the absent ones."""
    images = folder / "images"
    images.mkdir()
    for number, each in enumerate(entries):
        path = images / each.get("filepath", "") / each["filename"]
        path.parent.mkdir(exist_ok=True)
        if each["filename"] not in but:
            Image.new("RGB", (10 + number, 8), (40 * number, 0, 200)).save(path, quality=95)
    return KarpathySource(str(write(folder, {"dataset": "file's own", "images": entries})), str(images), **more)


def test_table(tmp_path: Path) -> None:
    source = collection(tmp_path, ENTRIES, name="mine")
    table = source.table("train")
    assert table.name == "mine"
    assert table.image_ids == ["b.jpg", "a.jpg", "c.jpg"]  # restval is training data
    assert table.captions == ["Two dogs .", "dogs run fast", "a bird", "one bird", "birds", "trees"]
    assert table.caption_ids == ["10", "11", "30", "31", "32", "50"]
    assert table.caption_image.tolist() == [0, 0, 1, 1, 1, 2]
    assert table.caption_image.dtype == np.int64
    assert source.table("val").captions == ["a cat"]
    assert source.table("test").image_ids == ["t.jpg"]


def test_images_are_rows_of_the_table(tmp_path: Path) -> None:
    images = collection(tmp_path, ENTRIES).images("train")
    assert len(images) == 3
    assert [image.shape for image in images] == [(8, 10, 3), (8, 12, 3), (8, 14, 3)]
    for image, red in zip(images, (0, 80, 160), strict=True):
        assert np.abs(image.reshape(-1, 3).astype(int) - (red, 0, 200)).max() < 12
    assert isinstance(images, ImageFiles)
    assert [image.shape[1] for image in images[1:]] == [12, 14]


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


def test_relevance_is_rouge_and_is_kept(tmp_path: Path) -> None:
    source = collection(tmp_path, ENTRIES)
    relevance = source.relevance("train", tmp_path / "cache")
    assert isinstance(relevance, RougeLRelevance)
    assert (relevance.num_images, relevance.num_texts) == (3, 6)
    assert relevance.rows("text", "image", slice(3, 4))[0].tolist() == [0, 1, 0]
    assert list((tmp_path / "cache").iterdir())


MANY = [entry(f"{i}.jpg", "train", f"caption {i}", start=i) for i in range(9)]
ABSENT = tuple(f"{i}.jpg" for i in (0, 2, 3, 4, 5, 7))


def test_missing_images_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    source = collection(tmp_path, MANY, but=ABSENT)
    with pytest.raises(ValueError, match="6 of 9 train images of small are missing") as error:
        source.table("train")
    message = str(error.value)
    assert all(f"images/{name}" in message for name in ABSENT[:5])
    assert ABSENT[5] not in message
    assert "skip_missing" in message
    with pytest.raises(ValueError, match="6 of 9 train images"):
        source.images("train")


def test_missing_images_are_left_out_on_request(tmp_path: Path) -> None:
    source = collection(tmp_path, MANY, but=ABSENT, skip_missing=True)
    table, images = source.table("train"), source.images("train")
    assert table.image_ids == ["1.jpg", "6.jpg", "8.jpg"]
    assert table.captions == ["caption 1", "caption 6", "caption 8"]
    assert table.caption_image.tolist() == [0, 1, 2]
    assert [image.shape[1] for image in images] == [11, 16, 18]


def test_a_split_without_any_image_is_refused(tmp_path: Path) -> None:
    source = collection(tmp_path, MANY, but=tuple(each["filename"] for each in MANY), skip_missing=True)
    with pytest.raises(ValueError, match="small train: 0 images and 0 captions"):
        source.table("train")


def test_images_without_captions_are_passed_over(tmp_path: Path) -> None:
    source = collection(tmp_path, [entry("n.jpg", "train"), *ENTRIES])
    assert source.table("train").image_ids == ["b.jpg", "a.jpg", "c.jpg"]
    assert source.images("train")[0].shape[1] == 11


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    source = collection(tmp_path, [entry("a.jpg", "train", "one", "two"), entry("b.jpg", "train", "three", start=1)])
    with pytest.raises(ValueError, match="caption id '1' occurs more than once"):
        source.table("train")


GOOD = entry("a.jpg", "train", "a word")


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{'images': []}", "is not JSON in UTF-8"),
        ([GOOD], "expected an object with a list under 'images'"),
        ({"annotations": []}, "expected an object with a list under 'images'"),
        ({"images": {"0": GOOD}}, "expected an object with a list under 'images'"),
        ({"images": [GOOD, "b.jpg"]}, r"images\[1\] is str, expected an object"),
        (
            {"images": [{"filename": "a.jpg", "sentences": []}]},
            r"images\[0\] has no 'split'; it has filename, sentences",
        ),
        ({"images": [{"split": "train", "sentences": []}]}, r"images\[0\] has no 'filename'"),
        ({"images": [{"split": "train", "filename": "a.jpg"}]}, r"images\[0\] has no 'sentences'"),
        (
            {"images": [GOOD, {**GOOD, "split": "dev"}]},
            r"images\[1\] has the split 'dev', expected one of train, restval",
        ),
        ({"images": [entry("a.jpg", "train", "fine", "  ")]}, r"images\[0\] \(a.jpg\) has a sentence without text"),
        (
            {"images": [{**GOOD, "sentences": [{"raw": "x"}]}]},
            r"images\[0\] \(a.jpg\) has a sentence .* without 'sentid'",
        ),
        ({"images": [{**GOOD, "sentences": ["a word"]}]}, r"images\[0\] \(a.jpg\) has a sentence without text"),
    ],
)
def test_malformed_annotations(tmp_path: Path, document: Any, message: str) -> None:
    path = write(tmp_path, document)
    with pytest.raises(ValueError, match=message) as error:
        KarpathySource(str(path), str(tmp_path)).table("train")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD, "sentences": [{"raw": None, "sentid": 0}]},
        {**GOOD, "sentences": [{"raw": 5, "sentid": 0}]},
        {**GOOD, "sentences": None},
        {**GOOD, "split": ["train"]},
    ],
)
def test_values_of_another_type(tmp_path: Path, wrong: dict[str, Any]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
    path = write(tmp_path, {"images": [wrong]})
    with pytest.raises(ValueError, match=r"images\[0\]"):
        KarpathySource(str(path), str(tmp_path)).table("train")


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no annotation file at {tmp_path}/none.json"):
        KarpathySource(f"{tmp_path}/none.json", str(tmp_path)).table("val")


def test_annotations_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "dataset_latin.json"
    path.write_bytes(json.dumps({"images": [entry("a.jpg", "train", "café")]}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path} is not JSON in UTF-8"):
        KarpathySource(str(path), str(tmp_path)).table("train")


def test_captions_in_any_script(tmp_path: Path) -> None:
    source = collection(tmp_path, [entry("é.jpg", "train", "naïve 猫")])
    table = source.table("train")
    assert (table.image_ids, table.captions) == (["é.jpg"], ["naïve 猫"])


# Decoding


def saved(path: Path, image: Image.Image, **options: Any) -> np.ndarray:
    image.save(path, **options)
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    return pixels


def test_rgb_is_exact(tmp_path: Path) -> None:
    np.testing.assert_array_equal(saved(tmp_path / "p.png", Image.fromarray(PICTURE)), PICTURE)


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE).quantize(8)
    np.testing.assert_array_equal(saved(tmp_path / "p.png", image), np.asarray(image.convert("RGB")))
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert saved(tmp_path / "q.gif", image)[0, 0].tolist() == [0, 0, 255]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    pixels = saved(tmp_path / "p.jpg", image, quality=95)
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() < 12


@pytest.mark.parametrize("mode", ["L", "1", "LA"])
def test_grey(tmp_path: Path, mode: str) -> None:
    grey = np.zeros((6, 6), dtype=np.uint8)
    grey[:, 3:] = 255
    pixels = saved(tmp_path / "p.png", Image.fromarray(grey).convert(mode))
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=2))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE).convert("RGBA")
    np.testing.assert_array_equal(saved(tmp_path / "p.png", image), PICTURE)


def test_16_bit_gives_rgb(tmp_path: Path) -> None:
    saved(tmp_path / "p.png", Image.fromarray(np.full((6, 6), 300, dtype=np.uint16)))


def test_16_bit_is_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = saved(tmp_path / "p.png", Image.fromarray(ramp))
    assert np.abs(pixels[..., 0].reshape(-1).astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, PICTURE),
        (3, PICTURE[::-1, ::-1]),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE, 1)),
        (2, PICTURE[:, ::-1]),
    ],
)
def test_rotation_in_exif_is_applied(tmp_path: Path, orientation: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(saved(tmp_path / "p.png", Image.fromarray(PICTURE), exif=exif), upright)


@pytest.mark.parametrize("kept", [0.5, 0.0])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.tile(PICTURE, (10, 10, 1))).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"cannot read the image {path}"):
        decode(path)


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    source = collection(tmp_path, MANY)
    (tmp_path / "images" / "3.jpg").write_text("<html>not found</html>")
    images = source.images("train")
    assert images[2].shape[1] == 12
    with pytest.raises(ValueError, match=r"cannot read the image .*images/3.jpg"):
        images[3]


# Real data


@pytest.fixture
def shared() -> Path:
    if SHARED is None:
        pytest.skip("SDR_SHARED does not point to the real data")
    return Path(SHARED) / "data"


@pytest.mark.data
def test_flickr8k(shared: Path) -> None:
    source = KarpathySource(str(shared / "flickr8k" / "dataset_flickr8k.json"), str(shared / "flickr8k" / "images"))
    for split, images in zip(SPLITS, (5999, 1000, 1000), strict=True):
        table = source.table(split)
        assert len(table.image_ids) == images
        assert (np.bincount(table.caption_image) == 5).all()
    assert source.images("test")[0].shape == (192, 192, 3)


@pytest.mark.data
def test_a_partial_copy_of_flickr30k(shared: Path) -> None:
    where = shared / "flickr30k"
    paths = (str(where / "dataset_flickr30k.json"), str(where / "flickr30k-images"))
    with pytest.raises(ValueError, match="772 of 1014 val images of flickr30k are missing"):
        KarpathySource(*paths).table("val")
    source = KarpathySource(*paths, skip_missing=True)
    assert [len(source.table(split).image_ids) for split in SPLITS] == [6992, 242, 243]
    assert len(source.table("test").captions) == 5 * 243
    assert len(source.images("test")) == 243
    source.images("test")[242]
