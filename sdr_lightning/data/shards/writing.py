"""Writing of shards: atomic, and continued where it was interrupted."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sdr_lightning.data.images import AnyImage, ImageFiles, Images
from sdr_lightning.data.pixel_cache import identities
from sdr_lightning.data.shards.index import DESCRIPTION, FORMAT, features_file, read_description, shard_name
from sdr_lightning.data.shards.library import library
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.functional.search import chunks
from sdr_lightning.identity import stable_hashes
from sdr_lightning.paths import check_folder, write_atomically, write_json
from sdr_lightning.types import Modality

Progress = Callable[[Split, int, int], object]
"""Called with a split, the number of its finished shards, and the number of all its shards."""

_ROWS = 4096  # of features that are written at a time


def write_shards(
    source: Source, folder: Path, images_per_shard: int, teachers: Mapping[Modality, FeatureBank], progress: Progress
) -> int:
    """Write all splits of a collection as shards; shards that exist are kept.

    Image files are copied as they are, other images are written as PNG, features as ``.npy``. Training images are in the order
    of hashes of their ids, so that each shard is a random part of the split; those of a streamed collection, and of other
    splits, are in the order of the collection.

    Args:
        source: the collection; corruptions are applied when shards are read, not when they are written.
        folder: the folder of the shards.
        images_per_shard: number of images of a shard.
        teachers: features of clean items, by modality; those of the training split are written.
        progress: callback.

    Returns:
        The number of shards written now.

    Raises:
        ValueError: the folder holds shards of other data or options, a bank is of other data, or an image cannot be read.
    """
    if images_per_shard < 1:
        raise ValueError(f"a shard needs at least 1 image, got {images_per_shard}")
    library()
    check_folder(folder)
    parts = [_Part(source, split, folder, images_per_shard, teachers) for split in source.splits]
    description = {
        "format": FORMAT,
        "name": source.name,
        "images": "features" if parts[0].images.are_features else "encoded",
        "images_per_shard": images_per_shard,
        "splits": {part.table.split: part.description() for part in parts},
        "teachers": {
            modality: {"source": bank.source, "fingerprint": bank.fingerprint, "is_placebo": bank.is_placebo}
            for modality, bank in teachers.items()
        },
    }
    if (folder / DESCRIPTION).exists():
        if read_description(folder) != description:
            raise ValueError(f"{folder} holds shards of other data or options: choose another --output")
    else:
        write_json(folder / DESCRIPTION, description)
    return sum(part.write(progress) for part in parts)


class _Part:
    """The shards of one split."""

    def __init__(
        self,
        source: Source,
        split: Split,
        folder: Path,
        images_per_shard: int,
        teachers: Mapping[Modality, FeatureBank],
    ) -> None:
        self.table, self.images = source.table(split), source.images(split)
        self.folder, self.images_per_shard = folder, images_per_shard
        self.captions_of = _captions_of(self.table)
        self.teachers = {
            modality: _TeacherFile(features_file(folder, split, modality), bank, self.table, self.images)
            for modality, bank in (teachers.items() if split == "train" else ())
        }

    def description(self) -> dict[str, Any]:
        images = len(self.table.image_ids)
        shards = -(-images // self.images_per_shard)
        captions, fingerprint = len(self.table.captions), self.table.fingerprint
        return {"shards": shards, "images": images, "captions": captions, "fingerprint": fingerprint}

    def write(self, progress: Progress) -> int:
        """Write the missing shards; return their number."""
        split, shards = self.table.split, self.description()["shards"]
        todo = [number for number in range(shards) if not self._path(number, "parquet").is_file()]
        done = shards - len(todo)
        progress(split, done, shards)
        for teacher in self.teachers.values():
            teacher.write()
        if not todo:
            return 0
        for number, rows, images in self._chunks(todo):
            self._write_shard(number, rows, images)
            done += 1
            progress(split, done, shards)
        return len(todo)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{shard_name(self.table.split, number)}.{suffix}"

    def _chunks(self, todo: Sequence[int]) -> Iterator[tuple[int, Sequence[int], Sequence[AnyImage | None]]]:
        """Yield number, rows and, for streamed collections, the images of each shard."""
        size = self.images_per_shard
        if not self.images.one_after_another:
            order = np.arange(len(self.images))
            if self.table.split == "train":
                order = np.argsort(stable_hashes(("shard",), self.table.image_ids), kind="stable")
            for number in todo:
                rows = order[number * size : (number + 1) * size].tolist()
                yield number, rows, [None] * len(rows)
            return
        wanted, chunk = set(todo), list[tuple[int, AnyImage]]()
        for position, (row, image) in enumerate(self.images.stream()):
            number = position // size
            if number in wanted:
                chunk.append((row, image))
                if position + 1 in ((number + 1) * size, len(self.images)):
                    yield number, [row for row, _ in chunk], [image for _, image in chunk]
                    chunk = []

    def _write_shard(self, number: int, rows: Sequence[int], images: Sequence[AnyImage | None]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        tar, content = self._path(number, "tar"), dict[int, int]()

        def write(part: Path) -> None:
            with part.open("wb") as file, library().TarWriter(file, mtime=0) as writer:
                for row, image in zip(rows, images, strict=True):
                    suffix, encoded = _encoded(self.images, row, image)
                    content[row] = _hash(encoded)
                    captions = self.captions_of.at(row)
                    described = {
                        "id": self.table.image_ids[row],
                        "captions": [self.table.captions[k] for k in captions],
                        "caption_ids": [self.table.caption_ids[k] for k in captions],
                    }
                    writer.write({"__key__": f"{row:09d}", suffix: encoded, "json": described})

        write_atomically(tar, write)
        places = _places(tar)
        captions = [self.captions_of.at(row) for row in rows]
        text, integers = pa.large_string(), pa.int64()
        columns = {
            "image_row": pa.array(rows, integers),
            "image_id": pa.array([self.table.image_ids[row] for row in rows], text),
            "offset": pa.array([places[row].offset for row in rows], integers),
            "size": pa.array([places[row].size for row in rows], integers),
            "content": pa.array([content[row] for row in rows], integers),
            "caption_rows": pa.array(captions, pa.large_list(integers)),
            "captions": pa.array([[self.table.captions[k] for k in some] for some in captions], pa.large_list(text)),
            "caption_ids": pa.array(
                [[self.table.caption_ids[k] for k in some] for some in captions], pa.large_list(text)
            ),
        }
        write_atomically(self._path(number, "parquet"), lambda part: pq.write_table(pa.table(columns), part))


class _TeacherFile:
    """A file of a teacher's features, complete or absent."""

    def __init__(self, path: Path, bank: FeatureBank, table: CaptionTable, images: Images) -> None:
        self.path, self.bank = path, bank
        ids = table.image_ids if bank.modality == "image" else table.caption_ids
        content = table.image_content ^ identities(images) if bank.modality == "image" else table.text_content
        self.positions: Tensor = bank.positions(ids, content)

    def write(self) -> None:
        """Write the file, if it is missing."""
        if not self.path.is_file():
            write_atomically(self.path, self._write)

    def _write(self, part: Path) -> None:
        shape = (len(self.positions), self.bank.width)
        file = np.lib.format.open_memmap(part, "w+", np.float32, shape)
        for rows in chunks(len(file), _ROWS):
            file[rows] = self.bank.features[self.positions[rows]].float().numpy()
        file.flush()


class _CaptionsOf(NamedTuple):
    """Rows of the captions of each image."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    def at(self, image: int) -> list[int]:
        found: list[int] = self.order[self.starts[image] : self.starts[image + 1]].tolist()
        return found


def _captions_of(table: CaptionTable) -> _CaptionsOf:
    order = np.argsort(table.caption_image, kind="stable")
    starts = np.searchsorted(table.caption_image[order], np.arange(len(table.image_ids) + 1))
    return _CaptionsOf(order, starts)


class _Place(NamedTuple):
    offset: int
    size: int


def _places(tar: Path) -> dict[int, _Place]:
    """Find the images in a tar by their row."""
    with tarfile.open(tar) as archive:
        members = [member for member in archive if not member.name.endswith(".json")]
    return {int(member.name.partition(".")[0]): _Place(member.offset_data, member.size) for member in members}


def _encoded(images: Images, row: int, image: AnyImage | None) -> tuple[str, bytes]:
    """Return suffix and bytes of an image; files are not decoded."""
    if isinstance(images, ImageFiles):
        path = images.path(row)
        return path.suffix.lower().lstrip(".").replace("jpeg", "jpg") or "img", path.read_bytes()
    pixels, stream = images[row] if image is None else image, io.BytesIO()
    if pixels.dtype != np.uint8:
        np.save(stream, pixels.astype(np.float32), allow_pickle=False)
        return "npy", stream.getvalue()
    Image.fromarray(pixels).save(stream, "PNG")
    return "png", stream.getvalue()


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)
