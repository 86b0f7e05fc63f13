import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdr_lightning.data.parquet import ParquetSource
from sdr_lightning.data.table import SPLITS


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written into the user's cache, and no bar is drawn."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def rows_of(split: str, images: int) -> dict[str, list[Any]]:
    """Image ``i`` is (6, 10 + i) and has i % 3 + 1 captions."""
    return {
        "filename": [f"{split}{i}.jpg" for i in range(images)],
        "image": [Image.new("RGB", (10 + i, 6), (50 * i, 100, 0)) for i in range(images)],
        "caption": [[f"{split} {i}  of\n{k}" for k in range(i % 3 + 1)] for i in range(images)],
    }


def write(folder: Path, split: str, rows: dict[str, list[Any]]) -> None:
    import datasets

    columns: dict[str, Any] = {
        "image": datasets.Image(),
        "caption": datasets.List(datasets.Value("string")),
    }
    features = datasets.Features({name: columns.get(name, datasets.Value("string")) for name in rows})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    where = tmp_path / "data"
    where.mkdir()
    for split, images in zip(SPLITS, (5, 2, 3), strict=True):
        write(where, split, rows_of(split, images))
    return where


def test_splits(folder: Path) -> None:
    source = ParquetSource(str(folder), "mine")
    table = source.table("train")
    assert (table.name, table.split) == ("mine", "train")
    assert table.image_ids == [f"train{i}.jpg" for i in range(5)]
    assert table.caption_image.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4]
    assert table.captions[1:3] == ["train 1 of 0", "train 1 of 1"]
    assert table.caption_ids[1:3] == ["train1.jpg#0", "train1.jpg#1"]
    assert source.table("val").image_ids == ["val0.jpg", "val1.jpg"]
    assert len(source.table("test").captions) == 6


def test_images(folder: Path) -> None:
    images = ParquetSource(str(folder), "mine").images("test")
    assert len(images) == 3
    assert [image.shape for image in images] == [(6, 10, 3), (6, 11, 3), (6, 12, 3)]
    assert images[2].dtype == np.uint8
    assert images[2][0, 0].tolist() == [100, 100, 0]
    assert [image.shape[1] for image in images[1:]] == [11, 12]


def test_images_are_upright_rgb(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (10, 6), 7).save(folder / "turned.png", exif=exif)
    rows = rows_of("train", 1)
    write(folder, "train", {**rows, "image": [str(folder / "turned.png")]})
    image = ParquetSource(str(folder), "mine").images("train")[0]
    assert image.shape == (10, 6, 3)
    assert image[0, 0].tolist() == [7, 7, 7]


def test_columns_and_splits_of_other_names(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    rows = rows_of("dev", 2)
    import datasets

    features = datasets.Features(
        {"key": datasets.Value("int64"), "picture": datasets.Image(), "alt": datasets.List(datasets.Value("string"))}
    )
    renamed = {"key": [7, 8], "picture": rows["image"], "alt": rows["caption"]}
    datasets.Dataset.from_dict(renamed, features=features).to_parquet(other / "dev.parquet")
    monkeypatch.setenv("OTHER", str(other))
    source = ParquetSource(
        "$OTHER", "o", id_column="key", image_column="picture", caption_column="alt", splits={"val": "dev"}
    )
    assert source.table("val").image_ids == ["7", "8"]
    assert source.images("val")[1].shape == (6, 11, 3)


@pytest.mark.parametrize("column", ["filename", "image", "caption"])
def test_missing_column(tmp_path: Path, column: str) -> None:
    rows = rows_of("train", 2)
    del rows[column]
    write(tmp_path, "train", rows)
    left = ", ".join(rows)
    with pytest.raises(ValueError, match=f"{tmp_path} has no column '{column}'; it has {left}"):
        ParquetSource(str(tmp_path), "mine").table("train")


def test_missing_split(folder: Path) -> None:
    (folder / "val-00000-of-00001.parquet").unlink()
    source = ParquetSource(str(folder), "mine")
    assert source.table("train").image_ids
    with pytest.raises(ValueError, match=rf"no parquet files for the split 'val' in {folder}: expected val\*.parquet"):
        source.table("val")


@pytest.mark.parametrize("texts", [[], ["fine", " \n"]])
def test_empty_captions(tmp_path: Path, texts: list[str]) -> None:
    rows = rows_of("train", 3)
    rows["caption"][1] = texts
    write(tmp_path, "train", rows)
    with pytest.raises(ValueError, match=r"mine train: 1 images have no caption or an empty one, first 'train1.jpg'"):
        ParquetSource(str(tmp_path), "mine").table("train")


def test_repeated_names(tmp_path: Path) -> None:
    rows = rows_of("train", 3)
    rows["filename"][2] = "train0.jpg"
    write(tmp_path, "train", rows)
    with pytest.raises(ValueError, match=r"mine train: image id 'train0.jpg' occurs more than once"):
        ParquetSource(str(tmp_path), "mine").table("train")


def test_a_single_caption_is_a_list_of_one(tmp_path: Path) -> None:
    import datasets

    rows = {**rows_of("train", 2), "caption": ["one", "two"]}
    columns = {"filename": datasets.Value("string"), "image": datasets.Image(), "caption": datasets.Value("string")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(columns)).to_parquet(tmp_path / "train.parquet")
    assert list(ParquetSource(str(tmp_path), "mine").table("train").captions) == ["one", "two"]


def test_hub_out_of_reach(tmp_path: Path) -> None:
    program = (
        "from sdr_lightning.data.parquet import ParquetSource\n"
        "try: ParquetSource('nobody/has-this', 'x').table('train')\n"
        "except ValueError as error: print(error)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    message = answer.stdout.strip()
    assert "\n" not in message
    assert message.startswith("the data set 'nobody/has-this' is neither a local folder nor to be had from the hub")
    assert "data.init_args.source.init_args.path" in message
