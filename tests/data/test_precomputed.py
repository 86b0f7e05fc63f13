from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdr_lightning.data.precomputed import FeatureRows, PrecomputedSource
from sdr_lightning.data.table import SPLITS

REGIONS, WIDTH = 4, 3


def features(images: int, *more: int, dtype: type = np.float32) -> NDArray[Any]:
    """Every value of image i is in [i, i + 1)."""
    shape = (images, *(more or (REGIONS, WIDTH)))
    return (np.arange(images).reshape(-1, *[1] * (len(shape) - 1)) + np.random.default_rng(0).random(shape)).astype(
        dtype
    )


def write(folder: Path, array: NDArray[Any], captions: list[str], name: str = "train") -> PrecomputedSource:
    np.save(folder / f"{name}_ims.npy", array)
    (folder / f"{name}_caps.txt").write_text("".join(f"{text}\n" for text in captions), encoding="utf-8")
    return PrecomputedSource("mine", str(folder))


def told(captions: int) -> list[str]:
    return [f"caption {k}" for k in range(captions)]


def owners(source: PrecomputedSource) -> list[int]:
    """The number of the image in every row."""
    return [int(image.min()) for _, image in source.images("train").stream()]


def test_five_captions_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRECOMP_ROOT", str(tmp_path))
    for name, images in (("train", 3), ("dev", 2), ("test", 1)):
        write(tmp_path, features(images), [f" {name}  {k}" for k in range(5 * images)], name)
    source = PrecomputedSource("mine", "$PRECOMP_ROOT")
    assert source.splits == SPLITS
    table = source.table("train")
    assert table.image_ids == ["train-0", "train-1", "train-2"]
    assert table.captions == [f"train {k}" for k in range(15)]
    assert table.caption_ids[4:7] == ["train-0#4", "train-1#0", "train-1#1"]
    assert table.caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert source.table("val").captions == [f"dev {k}" for k in range(10)]
    images = source.images("train")
    assert len(images) == 3
    assert images[1].dtype == np.float32
    np.testing.assert_array_equal(images[1], features(3)[1])
    assert source.problems("train") == []


def test_a_row_of_features_per_caption(tmp_path: Path) -> None:
    source = write(tmp_path, features(3).repeat(5, axis=0), told(15))
    assert source.table("train").caption_image.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert owners(source) == [0, 1, 2]


def test_a_ragged_collection(tmp_path: Path) -> None:
    for dtype in [np.int64, np.int32, np.uint16]:
        source = write(tmp_path, features(5), told(23))
        order = np.array([3] * 10 + [0, 1, 0] + [3] * 10, dtype=dtype)
        np.save(tmp_path / "train_image_of_caption.npy", order)
        table = source.table("train")
        assert table.image_ids == ["train-0", "train-1", "train-3"]
        assert table.captions == [f"caption {k}" for k in (10, 12, 11, *range(10), *range(13, 23))]
        assert table.caption_image.tolist() == [0] * 2 + [1] + [2] * 20
        assert table.caption_ids[-1] == "train-3#19"
        assert owners(source) == [0, 1, 3]
        (problem,) = source.problems("train")
        assert (problem.what, problem.first, problem.fatal) == (
            "images have no caption",
            ("train-2", "train-4"),
            False,
        )


def test_one_vector_an_image(tmp_path: Path) -> None:
    array = features(2, WIDTH, dtype=np.float16)
    images = write(tmp_path, array, told(10)).images("train")
    assert images[1].shape == (1, WIDTH)
    np.testing.assert_array_equal(images[1], array[1:].astype(np.float32))


def test_other_numbers_of_captions_and_other_names(tmp_path: Path) -> None:
    write(tmp_path, features(3), told(6), "testall")
    source = PrecomputedSource("mine", str(tmp_path), splits={"test": "testall"}, captions_per_image=2)
    assert source.splits == ("test",)
    assert source.table("test").caption_image.tolist() == [0, 0, 1, 1, 2, 2]
    assert source.table("test").image_ids[0] == "test-0"


def test_skipped_images_keep_rows_aligned(tmp_path: Path) -> None:
    write(tmp_path, features(3), told(15))
    (tmp_path / "ids.txt").write_text("train-1\n", encoding="utf-8")
    source = PrecomputedSource("mine", str(tmp_path), leave_out=f"{tmp_path}/ids.txt")
    assert source.table("train").captions[5] == "caption 10"
    assert owners(source) == [0, 2]


def test_empty_captions(tmp_path: Path) -> None:
    source = write(tmp_path, features(2), [*told(4), " ", *told(5)])
    with pytest.raises(ValueError, match="mine train: 1 of 10 captions are empty, first: train-0#4"):
        source.table("train")
    skipping = PrecomputedSource("mine", str(tmp_path), skip_empty=True)
    assert skipping.table("train").caption_image.tolist() == [0] * 4 + [1] * 5


def test_row_identity_changes_with_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, features(2), told(10))
    before = [source.images("train").identity(row) for row in (0, 1)]
    assert before == [source.images("train").identity(row) for row in (0, 1)]
    write(tmp_path, features(4), told(20))
    after = [PrecomputedSource("mine", str(tmp_path)).images("train").identity(row) for row in (0, 1)]
    assert len({*before, *after}) == 4


def test_numbers_that_do_not_fit(tmp_path: Path) -> None:
    for captions in [9, 11, 3, 0]:
        lines = max(captions, 1)  # an empty file is one empty line
        with pytest.raises(
            ValueError, match=f"mine train: 2 rows of features and {lines} captions; expected 10"
        ) as caught:
            write(tmp_path, features(2), told(captions)).table("train")
        assert "set captions_per_image, or write train_image_of_caption.npy" in str(caught.value)


def test_images_of_captions_that_do_not_fit(tmp_path: Path) -> None:
    for rows in [
        np.zeros(9, dtype=np.int64),
        np.zeros((10, 1), dtype=np.int64),
        np.zeros(10, dtype=np.float32),
        np.full(10, 2),
        np.full(10, -1),
    ]:
        source = write(tmp_path, features(2), told(10))
        np.save(tmp_path / "train_image_of_caption.npy", rows)
        with pytest.raises(ValueError, match=r"train_image_of_caption.npy must hold 10 rows of images below 2, one a"):
            source.table("train")


def test_arrays_of_another_shape_or_dtype_are_refused(tmp_path: Path) -> None:
    for array in [features(2, 2, 2, WIDTH), np.arange(2.0), features(2).astype(np.int64), features(2).astype("U4")]:
        source = write(tmp_path, array, told(10))
        with pytest.raises(ValueError, match=rf"{tmp_path}/train_ims.npy holds .*, expected floats \(N, R, D\) or"):
            source.images("train")


def test_non_finite_row_is_refused(tmp_path: Path) -> None:
    for wrong in [np.nan, np.inf, -np.inf]:
        array = features(3)
        array[1, 2, 0] = wrong
        images = write(tmp_path, array, told(15)).images("train")
        np.testing.assert_array_equal(images[2], array[2])
        with pytest.raises(ValueError, match=f"row 1 of {tmp_path}/train_ims.npy holds NaN or infinity"):
            images[1]


def test_a_file_that_is_no_array(tmp_path: Path) -> None:
    for content in [b"", b"no array", b"\x93NUMPY\x01\x00v\x00{'descr'"]:
        source = write(tmp_path, features(2), told(10))
        (tmp_path / "train_ims.npy").write_bytes(content)
        with pytest.raises(ValueError, match=f"{tmp_path}/train_ims.npy is not a plain .npy array"):
            source.table("train")


def test_a_truncated_array(tmp_path: Path) -> None:
    source = write(tmp_path, features(20), told(100))
    path = tmp_path / "train_ims.npy"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match=f"{path} is not a plain .npy array"):
        source.table("train")


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    source = write(tmp_path, np.array([{"a": 1}, None], dtype=object), told(10))
    with pytest.raises(ValueError, match=r"is not a plain .npy array"):
        source.table("train")


def test_a_single_value(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}/train_ims.npy holds a single value"):
        write(tmp_path, np.array(1.0), told(5)).table("train")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no features in {tmp_path}: expected files such as train_ims.npy"):
        PrecomputedSource("mine", str(tmp_path)).table("train")
    source = write(tmp_path, features(2), told(10))
    (tmp_path / "train_caps.txt").unlink()
    with pytest.raises(ValueError, match=f"no text file at {tmp_path}/train_caps.txt"):
        source.table("train")
    with pytest.raises(ValueError, match=f"no array at {tmp_path}/none.npy"):
        FeatureRows(tmp_path / "none.npy", np.arange(2))


def test_captions_in_another_encoding(tmp_path: Path) -> None:
    source = write(tmp_path, features(1), told(5))
    (tmp_path / "train_caps.txt").write_bytes("café\n".encode("latin-1") * 5)
    with pytest.raises(ValueError, match=f"{tmp_path}/train_caps.txt is not UTF-8 text"):
        source.table("train")


def test_captions_per_image_must_be_positive() -> None:
    with pytest.raises(ValueError, match="captions_per_image must be at least 1, got 0"):
        PrecomputedSource("mine", "folder", captions_per_image=0)
