import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdr_lightning.data.imbalance import Imbalance, Level, NoiseTable, imbalanced, read_noise
from sdr_lightning.data.imbalance.noise_table import wrong_captions_per_image
from sdr_lightning.data.table import CaptionTable
from tests.data.collection import make_table
from tests.data.imbalance import shuffled, worded

TABLE = make_table((3, 1, 2, 5, 2, 4, 1, 2) * 3)
FIVE_EACH = make_table((5,) * 20)
MISMATCH = Imbalance("mismatch", 0.5, seed=3)
EVERY_SORT = [
    MISMATCH,
    replace(MISMATCH, level="caption"),
    replace(MISMATCH, partner="shared_word"),
    Imbalance("drop_words", 0.4, severity=2, splits=("train", "val")),
    Imbalance("typos", 0.4, level="image", seed=-1),
    Imbalance("blur", 0.25, severity=1),
    Imbalance("missing", 0.25, modality="text"),
    Imbalance("missing", 0.25, modality="image"),
    Imbalance(),
]
BROKEN: dict[str, Callable[[], Any]] = {
    "objects": lambda: np.array([0, None], dtype=object),
    "floats": lambda: np.arange(30.0),
    "truth values": lambda: np.zeros(30, dtype=bool),
    "strings": lambda: np.array(["0"] * 30),
    "negative": lambda: np.arange(30) - 1,
    "overflowing": lambda: np.full(30, 2**63 + 1, dtype=np.uint64),
    "two-dimensional": lambda: np.zeros((30, 1), dtype=np.int64),
    "a scalar": lambda: np.int64(3),
}


def assert_same(one: NoiseTable, other: NoiseTable) -> None:
    for name in ("imbalance", "collection", "split", "fingerprint", "of", "ratio", "sha256", "partners_as_asked"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("rows", "caption_image", "clean"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert getattr(one, name).dtype == getattr(other, name).dtype == np.int64


def receivers(table: CaptionTable, noise: NoiseTable) -> list[int]:
    """The published form of level image, caption by caption: who gets the captions of image 0, 1, 2 ..."""
    to = dict(zip(table.caption_image.tolist(), noise.caption_image.tolist(), strict=True))
    return [to[image] for image in range(len(table.image_ids))]


def rewrite(path: Path, **changes: Any) -> None:
    """Put other arrays, or other values of the header, into a noise table."""
    with np.load(path) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    for name, value in changes.items():
        if name in arrays:
            arrays[name] = value
        else:
            header[name] = value
    arrays["header"] = arrays["header"] if "header" in changes else np.array(json.dumps(header))
    np.savez(path, **arrays)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A noise table of this project's form."""
    NoiseTable.draw(TABLE, MISMATCH).save(tmp_path / "own.npz")
    return tmp_path / "own.npz"


@pytest.fixture(scope="module")
def flickr30k() -> CaptionTable:
    """A split of the size of Flickr30K's training split."""
    return worded((5,) * 29_000)


def test_npz_round_trip(tmp_path: Path) -> None:
    for imbalance in EVERY_SORT:
        noise, path = NoiseTable.draw(TABLE, imbalance), tmp_path / "a folder" / "noise.npz"
        noise.save(path)
        assert_same(read_noise(path, TABLE), noise)
        assert_same(read_noise(path), noise)


@pytest.mark.parametrize("level", ["image", "caption"])
def test_npy_round_trip_keeps_the_pairing(level: Level, tmp_path: Path) -> None:
    for table in (TABLE, FIVE_EACH, shuffled(TABLE)):
        noise, path = NoiseTable.draw(table, replace(MISMATCH, level=level)), tmp_path / "noise.npy"
        noise.save(path)
        found = read_noise(path, table)
        np.testing.assert_array_equal(found.caption_image, noise.caption_image)
        np.testing.assert_array_equal(found.clean, table.caption_image)
        assert sorted(found.rows.tolist()) == sorted(noise.rows.tolist())
        assert found.fingerprint == table.fingerprint
        assert (found.imbalance.kind, found.imbalance.level, found.imbalance.ratio) == ("mismatch", level, noise.ratio)
        assert (found.of, found.wrong_captions_per_image) == (noise.of, noise.wrong_captions_per_image)


@pytest.mark.parametrize("level", ["image", "caption"])
def test_npy_of_equally_many_captions_needs_no_data(level: Level, tmp_path: Path) -> None:
    noise, path = NoiseTable.draw(FIVE_EACH, replace(MISMATCH, level=level)), tmp_path / "noise.npy"
    noise.save(path)
    found = read_noise(path)
    np.testing.assert_array_equal(found.caption_image, noise.caption_image)
    assert (found.collection, found.fingerprint, found.imbalance.level) == ("", "", level)


def test_npy_holds_the_published_form(tmp_path: Path) -> None:
    for level in ["image", "caption"]:
        noise = NoiseTable.draw(TABLE, replace(MISMATCH, level=level))
        noise.save(tmp_path / "noise.npy")
        expected = receivers(TABLE, noise) if level == "image" else noise.caption_image.tolist()
        assert np.load(tmp_path / "noise.npy").tolist() == expected


def test_the_same_bytes_are_written_twice(tmp_path: Path) -> None:
    for suffix in [".npz", ".npy"]:
        paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
        for path in paths:
            NoiseTable.draw(TABLE, MISMATCH).save(path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_an_earlier_file_is_replaced(own: Path) -> None:
    other = NoiseTable.draw(TABLE, replace(MISMATCH, seed=4))
    other.save(own)
    assert_same(read_noise(own, TABLE), other)
    assert list(own.parent.iterdir()) == [own]


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_nothing_is_left_behind_when_writing_fails(suffix: str, tmp_path: Path) -> None:
    occupied = tmp_path / f"noise{suffix}"
    (occupied / "a folder").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        NoiseTable.draw(TABLE, MISMATCH).save(occupied)
    assert list(tmp_path.iterdir()) == [occupied]


def test_unsupported_formats_are_not_written(tmp_path: Path) -> None:
    for imbalance, name in [
        (MISMATCH, "noise.txt"),
        (MISMATCH, "noise"),
        (Imbalance("blur", 0.5), "noise.npy"),
        (Imbalance(), "noise.npy"),
    ]:
        path = tmp_path / "a folder" / name
        with pytest.raises(ValueError, match=rf"{name} must end in \.npz, or in \.npy for a mismatch"):
            NoiseTable.draw(TABLE, imbalance).save(path)
        assert not path.parent.exists()


def test_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    for name in ("none.npz", "none.npy", "folder.npz"):
        with pytest.raises(ValueError, match=f"no noise table at .*{name}: make one with sdr noise make"):
            read_noise(tmp_path / name)


def test_index_with_invalid_rows_is_refused(tmp_path: Path) -> None:
    for content in BROKEN:
        path = tmp_path / "broken.npy"
        np.save(path, BROKEN[content]())
        for table in (None, make_table((1,) * 30)):
            with pytest.raises(ValueError, match=r"broken\.npy is not a published index"):
                read_noise(path, table)


@pytest.mark.parametrize("name", ["rows", "caption_image", "clean"])
def test_table_with_invalid_rows_is_refused(name: str, own: Path) -> None:
    for content in BROKEN:
        NoiseTable.draw(TABLE, MISMATCH).save(own)
        rewrite(own, **{name: BROKEN[content]()})
        with pytest.raises(ValueError, match=r"own\.npz is not a noise table of sdr noise make"):
            read_noise(own, TABLE)


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pickled.npy", "pickled.npz"])
def test_nothing_is_unpickled(name: str, tmp_path: Path) -> None:
    path, touched = tmp_path / name, tmp_path / "touched"
    path.write_bytes(pickle.dumps(Bomb(touched)))
    with pytest.raises(ValueError, match=f"{name} is not"):
        read_noise(path)
    objects = np.array([Bomb(touched)], dtype=object)
    if path.suffix == ".npy":
        np.save(path, objects)
    else:
        np.savez(path, header=objects, rows=objects, caption_image=objects, clean=objects)
    with pytest.raises(ValueError, match=f"{name} is not .* allow_pickle=False"):
        read_noise(path)
    assert not touched.exists()
    assert pickle.loads(pickle.dumps(Bomb(touched))) is None  # noqa: S301
    assert touched.exists()


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    for share in [0, 0.01, 0.5, 0.95, 0.999]:
        path = tmp_path / f"short{suffix}"
        NoiseTable.draw(TABLE, MISMATCH).save(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=rf"short\{suffix} is not"):
            read_noise(path, TABLE)


def test_text_is_refused(tmp_path: Path) -> None:
    for suffix in [".npz", ".npy"]:
        path = tmp_path / f"text{suffix}"
        path.write_text("0\n1\n2\n")
        with pytest.raises(ValueError, match=rf"text\{suffix} is not"):
            read_noise(path)


def test_wrong_suffix_is_refused(own: Path) -> None:
    index = own.parent / "index.npy"
    NoiseTable.draw(TABLE, MISMATCH).save(index)
    index.rename(own.parent / "index.npz")
    own.rename(own.parent / "own.npy")
    with pytest.raises(ValueError, match=r"index\.npz is not a noise table"):
        read_noise(own.parent / "index.npz")
    with pytest.raises(ValueError, match=r"own\.npy is not a published index"):
        read_noise(own.parent / "own.npy")


def test_damaged_table_is_refused_or_read_correctly(own: Path) -> None:
    whole, noise = own.read_bytes(), read_noise(own, TABLE)
    generator = np.random.default_rng(0)
    refused = 0
    for place in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[place] ^= int(generator.integers(1, 256))
        own.write_bytes(damaged)
        try:
            found = read_noise(own, TABLE)
        except ValueError:
            refused += 1
        else:
            assert_same(found, noise)
    assert refused > 100


def test_a_table_of_another_form_is_refused(own: Path) -> None:
    for changes in [
        {"format": "sdr-noise-table-0"},
        {"imbalance": {"kind": "mismach"}},
        {"imbalance": {"kind": "mismatch", "level": "word"}},
        {"imbalance": {"kind": "mismatch", "colour": "red"}},
        {"imbalance": [1]},
        {"imbalance": None},
        {"header": np.array("{")},
        {"header": np.array("[1]")},
        {"header": np.array("{}")},
        {"clean": TABLE.caption_image[1:]},
        {"clean": np.zeros(0, dtype=np.int64), "caption_image": np.zeros(0, dtype=np.int64)},
    ]:
        NoiseTable.draw(TABLE, MISMATCH).save(own)
        rewrite(own, **changes)
        with pytest.raises(ValueError, match=r"own\.npz is not a noise table of sdr noise make"):
            read_noise(own)


def test_a_zip_without_the_arrays_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("readme.txt", "nothing")
    with pytest.raises(ValueError, match=r"other\.npz is not a noise table of sdr noise make: .*header"):
        read_noise(tmp_path / "other.npz")


def test_rows_beyond_the_split_are_refused(own: Path) -> None:
    for changes in [
        {"rows": np.array([len(TABLE.image_ids)])},
        {"caption_image": np.full(len(TABLE.captions), len(TABLE.image_ids))},
        {"clean": TABLE.caption_image[::-1]},
    ]:
        NoiseTable.draw(TABLE, MISMATCH).save(own)
        rewrite(own, **changes)
        with pytest.raises(
            ValueError, match=r"own\.npz is (damaged, its rows are not those of memory train|not a noise table)"
        ):
            read_noise(own, TABLE)


def test_a_table_of_other_data_is_refused(own: Path) -> None:
    for other in [
        make_table((3, 1, 2, 5, 2, 4, 1, 2) * 3, split="val"),
        make_table((3, 1, 2, 5, 2, 4, 1, 2) * 3, name="elsewhere"),
        replace(TABLE, captions=["x", *TABLE.captions[1:]]),
        shuffled(TABLE),
        FIVE_EACH,
    ]:
        message = (
            rf"own\.npz was made for memory train \({TABLE.fingerprint[:12]}\), not for {other.name} {other.split} as"
        )
        with pytest.raises(ValueError, match=message):
            read_noise(own, other)
        if other.split == "train":
            with pytest.raises(ValueError, match=message):
                imbalanced(other, [Imbalance(file=str(own))])


def test_an_index_of_another_size_is_refused(tmp_path: Path) -> None:
    for index in [np.arange(19), np.arange(21), np.arange(99) // 5, np.arange(20) + 1, np.arange(100)]:
        np.save(tmp_path / "index.npy", index)
        message = (
            rf"index\.npy has {len(index)} entries up to {index.max()}; memory train expects 20 \(one an image\) or 100 "
            r"\(one a caption\)"
        )
        with pytest.raises(ValueError, match=message):
            read_noise(tmp_path / "index.npy", FIVE_EACH)


def test_an_index_of_unequally_many_captions_needs_the_data(tmp_path: Path) -> None:
    NoiseTable.draw(make_table(), replace(MISMATCH, level="caption")).save(tmp_path / "index.npy")
    with pytest.raises(ValueError, match=r"index\.npy has 20 entries for 8 images, .*: pass --data"):
        read_noise(tmp_path / "index.npy")


def test_whole_numbers_of_every_type_are_read(tmp_path: Path) -> None:
    for kind in [np.int32, np.uint8, ">i8"]:
        np.save(tmp_path / "index.npy", np.roll(np.arange(20), 1).astype(kind))
        noise = read_noise(tmp_path / "index.npy", FIVE_EACH)
        assert noise.caption_image.dtype == np.int64
        assert noise.wrong_captions_per_image == {5: 20}


def test_wrong_captions_are_counted_by_image() -> None:
    clean, paired = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 1, 1, 0, 0, 3])
    # Image 0 has two captions of others, image 1 has one, images 2 and 3 have none.
    assert wrong_captions_per_image(clean, paired, 4) == {0: 2, 1: 1, 2: 1}
    assert wrong_captions_per_image(clean, paired, 6) == {0: 4, 1: 1, 2: 1}  # two more images that nobody describes


def test_the_record_is_plain_and_complete() -> None:
    record = NoiseTable.draw(TABLE, MISMATCH).record()
    assert json.loads(json.dumps(record)) == {**record, "splits": ["train"]}
    assert (record["kind"], record["level"], record["ratio"], record["seed"]) == ("mismatch", "image", 0.5, 3)
    assert (record["affected"], record["of"], record["realised_ratio"]) == (12, 24, 0.5)


def test_the_hash_tells_tables_apart() -> None:
    drawn = [NoiseTable.draw(TABLE, replace(i, seed=seed)) for i in EVERY_SORT if i.active for seed in (0, 1)]
    assert len({noise.sha256 for noise in drawn}) == len(drawn)
    assert NoiseTable.draw(TABLE, MISMATCH).sha256 == NoiseTable.draw(TABLE, MISMATCH).sha256


@pytest.mark.data
@pytest.mark.parametrize("folder", ["f30k_precomp", "coco_precomp"])
def test_published_indices_of_images(folder: str, shared: Path) -> None:
    for ratio in [0.2, 0.4, 0.5, 0.6, 0.8]:
        noise = read_noise(shared / "data" / "noise_index" / "RCL" / folder / f"noise_inx_{ratio}.npy")
        images = {"f30k_precomp": 29_000, "coco_precomp": 113_287}[folder]
        assert (noise.imbalance.kind, noise.imbalance.level, noise.of) == ("mismatch", "image", images)
        assert noise.ratio == pytest.approx(ratio, abs=0.0001)
        assert noise.wrong_captions_per_image == {0: images - len(noise.rows), 5: len(noise.rows)}


@pytest.mark.data
def test_published_indices_of_captions(shared: Path) -> None:
    for ratio in [0.2, 0.4]:
        noise = read_noise(shared / "data" / "noise_index" / "BiCro" / f"f30k_precomp_{ratio}.npy")
        assert (noise.imbalance.kind, noise.imbalance.level, noise.of) == ("mismatch", "caption", 145_000)
        assert noise.ratio == pytest.approx(ratio, abs=0.0001)
        assert noise.wrong_captions_per_image[0] / 29_000 == pytest.approx((1 - ratio) ** 5, abs=0.006)


@pytest.mark.data
def test_published_histograms_at_forty_per_cent(shared: Path, flickr30k: CaptionTable) -> None:
    folder = shared / "data" / "noise_index"
    images = read_noise(folder / "RCL" / "f30k_precomp" / "noise_inx_0.4.npy", flickr30k)
    captions = read_noise(folder / "BiCro" / "f30k_precomp_0.4.npy", flickr30k)
    assert images.wrong_captions_per_image == {0: 17_400, 5: 11_600}
    assert captions.wrong_captions_per_image == {0: 2264, 1: 7550, 2: 9918, 3: 6739, 4: 2248, 5: 281}


@pytest.mark.data
@pytest.mark.parametrize(("name", "each"), [("RCL/f30k_precomp/noise_inx_0.6", 5), ("BiCro/f30k_precomp_0.2", 1)])
def test_a_published_index_gives_exactly_its_pairing(
    name: str, each: int, shared: Path, flickr30k: CaptionTable
) -> None:
    path = shared / "data" / "noise_index" / f"{name}.npy"
    changed = imbalanced(flickr30k, [Imbalance(file=str(path))])
    np.testing.assert_array_equal(changed.table.caption_image, np.repeat(np.load(path), each))
    assert changed.realised.wrong_captions_per_image == read_noise(path).wrong_captions_per_image


@pytest.mark.data
def test_a_published_index_of_other_data_is_refused(shared: Path, flickr30k: CaptionTable) -> None:
    path = shared / "data" / "noise_index" / "RCL" / "coco_precomp" / "noise_inx_0.4.npy"
    message = (
        r"has 113287 entries up to 113286; worded train expects 29000 \(one an image\) or 145000 \(one a caption\)"
    )
    with pytest.raises(ValueError, match=message):
        read_noise(path, flickr30k)
