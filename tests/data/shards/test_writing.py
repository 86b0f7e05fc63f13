"""Shards hold the collection; an interrupted writing continues."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from sdr_lightning.data import ShardSource
from sdr_lightning.data.images import AnyImage, ImageFiles, InMemory
from sdr_lightning.data.shards import writing
from sdr_lightning.data.shards.index import ShardIndex
from sdr_lightning.data.shards.writing import write_shards
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.strings import Strings
from tests.data.collection import COUNTS, MemorySource


def write(source: Source, folder: Path, size: int = 3, teachers: Any = None) -> int:
    return write_shards(source, folder, size, teachers or {}, lambda *_: None)


class Shuffled(MemorySource):
    """Captions that are not grouped by image, in several scripts."""

    name = "mixed.up"

    def table(self, split: Split) -> CaptionTable:
        table = super().table(split)
        order = np.random.default_rng(0).permutation(len(table.captions))
        captions = [f"{table.captions[k]} ü 犬" for k in order]
        return CaptionTable(
            "mixed.up",
            split,
            table.image_ids,
            captions,
            [table.caption_ids[k] for k in order],
            table.caption_image[order],
        )


class Streamed(MemorySource):
    """Images that can only be read in sequence."""

    def images(self, split: Split) -> Any:
        images = super().images(split)

        class OneAfterAnother(InMemory):
            one_after_another = True

            def stream(self) -> Iterator[tuple[int, AnyImage]]:
                yield from ((row, self.pixels[row]) for row in np.random.default_rng(1).permutation(len(self)).tolist())

            def __getitem__(self, row: int) -> Any:
                raise AssertionError("random access")

        return OneAfterAnother(images.pixels)  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", [MemorySource(), Shuffled(), Streamed()], ids=lambda source: type(source).__name__)
def test_a_collection_comes_back_as_it_was(source: MemorySource, tmp_path: Path) -> None:
    assert write(source, tmp_path) == 9
    found = ShardSource(str(tmp_path))
    assert (found.name, found.splits) == (source.name, ("train", "val", "test"))
    pixels = MemorySource().images("train")
    for split in found.splits:
        assert found.table(split).fingerprint == source.table(split).fingerprint
        images = found.images(split)
        assert all(np.array_equal(images[row], pixels[row]) for row in range(len(COUNTS)))
        assert len({images.identity(row) for row in range(len(images))}) == len(images)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # webdataset leaves files to the collector
def test_webdataset_reads_the_samples(tmp_path: Path) -> None:
    write(MemorySource(), tmp_path)
    samples = list(
        webdataset.WebDataset(str(tmp_path / "train-{000000..000002}.tar"), shardshuffle=False).decode("pil")
    )
    assert {sample["json"]["id"] for sample in samples} == {f"i{k}" for k in range(len(COUNTS))}
    assert [sample["json"]["id"] for sample in samples] != [f"i{k}" for k in range(len(COUNTS))]  # by hash
    for sample in samples:
        row = int(sample["__key__"])
        assert len(sample["json"]["captions"]) == len(sample["json"]["caption_ids"]) == COUNTS[row]
        assert np.array_equal(np.asarray(sample["png"]), MemorySource().images("train")[row])


def test_image_files_are_copied_and_features_are_arrays(tmp_path: Path) -> None:
    (tmp_path / "a.b.JPEG").write_bytes(b"not decoded")

    class Files(MemorySource):
        def images(self, split: Split) -> Any:
            return ImageFiles(tmp_path, Strings(["a.b.JPEG"]))

    class Regions(MemorySource):
        def images(self, split: Split) -> Any:
            found = InMemory([np.arange(6, dtype=np.float64).reshape(2, 3)])  # type: ignore[list-item]
            found.are_features = True
            return found

    write(Files((2,)), tmp_path / "files")
    with tarfile.open(tmp_path / "files/train-000000.tar") as tar:
        assert tar.getnames() == ["000000000.jpg", "000000000.json"]
        assert tar.extractfile("000000000.jpg").read() == b"not decoded"  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"cannot read the image i0 in train-000000\.tar: .*write the shards again"):
        ShardSource(str(tmp_path / "files")).images("train")[0]
    write(Regions((2,)), tmp_path / "regions")
    images = ShardSource(str(tmp_path / "regions")).images("train")
    assert images.are_features
    assert images[0].dtype == np.float32
    assert np.array_equal(images[0], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("source", [MemorySource(), Streamed()], ids=lambda source: type(source).__name__)
def test_interrupted_writing_continues(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is then the same as without interruption, byte by byte except for the tars' index."""
    bank = FeatureBank(
        "text",
        source.table("train").caption_ids,
        source.table("train").text_content,
        torch.randn(sum(COUNTS), 4),
        "tower",
    )
    write(source, tmp_path / "whole", teachers={"text": bank})
    places, calls = writing._places, []

    def stop_in_the_fifth(tar: Path) -> Any:
        calls.append(tar)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return places(tar)

    monkeypatch.setattr(writing, "_places", stop_in_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "cut", teachers={"text": bank})
    with pytest.raises(
        ValueError, match="has 1 of 3 val shards, the first missing is val-000001: run the same sdr data shard"
    ):
        ShardSource(str(tmp_path / "cut")).table("val")
    monkeypatch.undo()
    assert write(source, tmp_path / "cut", teachers={"text": bank}) == 5
    assert write(source, tmp_path / "cut", teachers={"text": bank}) == 0
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "cut").iterdir())
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes() for name in files)
    assert torch.equal(ShardSource(str(tmp_path / "cut")).teacher("text").features, bank.features)  # type: ignore[union-attr]


def test_lost_features_are_written_again(tmp_path: Path) -> None:
    """Those of shards that exist too."""
    table = MemorySource().table("train")
    bank = FeatureBank("text", table.caption_ids, table.text_content, torch.randn(sum(COUNTS), 4), "tower")
    write(MemorySource(), tmp_path, teachers={"text": bank})
    for lost, shards in (["train.text_teacher.npy"], 0), (["train.text_teacher.npy", "train-000001.parquet"], 1):
        for name in lost:
            (tmp_path / name).unlink()
        assert write(MemorySource(), tmp_path, teachers={"text": bank}) == shards
        assert torch.equal(ShardSource(str(tmp_path)).teacher("text").features, bank.features)  # type: ignore[union-attr]


def test_other_data_options_or_banks_are_refused(tmp_path: Path) -> None:
    write(MemorySource(), tmp_path / "shards")
    for source, size in ((MemorySource(), 4), (MemorySource((1, 2)), 3)):
        with pytest.raises(ValueError, match="holds shards of other data or options: choose another --output"):
            write(source, tmp_path / "shards", size)
    bank = FeatureBank("text", ["c0.0"], np.zeros(1, dtype=np.int64), torch.zeros(1, 2), "tower")
    with pytest.raises(ValueError, match="the text bank lacks 19 of 20 ids"):
        write(MemorySource(), tmp_path / "new", teachers={"text": bank})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "streams and shuffle_buffer must be at least 1, got 0 and 1000"),
        ({"url": "https://host/a.tar"}, r"url must hold \{shard\}"),
    ],
)
def test_wrong_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardSource("x", **options)


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file at .*shards\.json .*expected shards, which sdr data shard writes"):
        ShardSource(str(tmp_path)).table("train")
    (tmp_path / "shards.json").write_text("[]")
    with pytest.raises(ValueError, match=r"does not describe shards"):
        ShardSource(str(tmp_path)).table("train")


def test_a_truncated_tar_is_refused(tmp_path: Path) -> None:
    write(MemorySource(), tmp_path)
    index: ShardIndex = ShardSource(str(tmp_path)).images("val").index  # type: ignore[attr-defined]
    tar = tmp_path / "val-000002.tar"
    tar.write_bytes(tar.read_bytes()[: int(index.offset[7]) + 1])
    with pytest.raises(ValueError, match=r"val-000002\.tar is truncated: copy it again"):
        ShardSource(str(tmp_path)).images("val")[7]


def test_truncated_features_are_refused(tmp_path: Path) -> None:
    table = MemorySource().table("train")
    bank = FeatureBank("text", table.caption_ids, table.text_content, torch.randn(sum(COUNTS), 4), "tower")
    write(MemorySource(), tmp_path, teachers={"text": bank})
    file = tmp_path / "train.text_teacher.npy"
    for size in (file.stat().st_size - 4, 0):
        os.truncate(file, size)
        with pytest.raises(ValueError, match=r"train\.text_teacher\.npy cannot be read, .*: copy it again"):
            ShardSource(str(tmp_path)).teacher("text")
