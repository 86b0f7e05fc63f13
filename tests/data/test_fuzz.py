"""Readers and decoders on mutated files: the right captions, or one clear line; never another exception, never fewer captions."""

import csv
import io
import json
import random
import tarfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sdr_lightning.data.coco import CocoSource
from sdr_lightning.data.huggingface import HuggingFaceSource
from sdr_lightning.data.images import decode
from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.lists import ListSource
from sdr_lightning.data.source import Source
from sdr_lightning.data.tabular import TabularSource
from tests.data.pictures import write_pictures

NAMES = [f"{number}.png" for number in range(6)]
CAPTIONS = [f"{words} {number}" for number in range(6) for words in ('a dog, "old", runs', "two\tcats; näh 猫")]
ROUNDS = 60


def mutated(content: bytes, chance: random.Random, cut: bool = True) -> bytes:
    """Change, drop, repeat or insert a few bytes, or cut the end off."""
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1) if changed else 0
        match chance.randrange(6 if cut else 5):
            case 0 if changed:
                changed[min(at, len(changed) - 1)] = chance.randrange(256)
            case 1:
                del changed[at : at + chance.randint(1, 3)]  # fewer than what stands between two captions
            case 2:
                changed[at:at] = changed[at : at + chance.randint(1, 40)]
            case 3:
                changed[at:at] = chance.choice(
                    [b'"', b"'", b"\n", b"\x00", b"[", b"]", b",", b"\t", b"\xff", b"\\ud83d"]
                )
            case 4:
                changed[at:at] = bytes(chance.randrange(256) for _ in range(4))
            case _:
                del changed[max(at, len(changed) // 2) :]
    return bytes(changed)


# Decoders


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    file = io.BytesIO()
    options: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") else {}
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "PPM", "JPEG2000", "ICO", "TGA"])
def test_a_mutated_image_is_read_or_named(kind: str, tmp_path: Path) -> None:
    chance, whole, path = random.Random(kind), encoded(kind), tmp_path / "p.img"
    for _ in range(ROUNDS):
        path.write_bytes(mutated(whole, chance))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pixels = decode(path)
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 (the image may also be readable)
        else:
            assert pixels.dtype == np.uint8
            assert pixels.shape[2] == 3


# Tables


def table(suffix: str) -> bytes:
    rows = [{"image": NAMES[k // 2], "caption": text, "split": "train"} for k, text in enumerate(CAPTIONS)]
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    if suffix == ".parquet":
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file.getvalue()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def tabular(folder: Path, suffix: str) -> tuple[Path, bytes, Callable[[], Source]]:
    path = folder / f"t{suffix}"
    return path, table(suffix), lambda: TabularSource("t", str(path), str(folder), split_column="split")


def karpathy(folder: Path, suffix: str) -> tuple[Path, bytes, Callable[[], Source]]:
    entries = [
        {
            "filename": name,
            "split": "train",
            "sentences": [{"raw": CAPTIONS[2 * k + n], "sentid": 2 * k + n} for n in (0, 1)],
        }
        for k, name in enumerate(NAMES)
    ]
    path = folder / "k.json"
    return path, json.dumps({"images": entries}).encode(), lambda: KarpathySource(str(path), str(folder))


def coco(folder: Path, suffix: str) -> tuple[Path, bytes, Callable[[], Source]]:
    images = [{"id": k, "file_name": name} for k, name in enumerate(NAMES)]
    captions = [{"id": k, "image_id": k // 2, "caption": text} for k, text in enumerate(CAPTIONS)]
    path = folder / "c.json"
    content = json.dumps({"images": images, "annotations": captions}).encode()
    return path, content, lambda: CocoSource("c", str(folder), {"train": str(path)}, {"train": ""})


def lists(folder: Path, suffix: str) -> tuple[Path, bytes, Callable[[], Source]]:
    entries = [{"image": name, "caption": CAPTIONS[2 * k : 2 * k + 2]} for k, name in enumerate(NAMES)]
    path = folder / "l.json"
    return path, json.dumps(entries).encode(), lambda: ListSource("l", str(folder), [str(path)])


def webdataset(folder: Path, suffix: str) -> tuple[Path, bytes, Callable[[], Source]]:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in NAMES:
            for member, content in ((name, (folder / name).read_bytes()), (f"{name[:-4]}.txt", b"a dog")):
                header = tarfile.TarInfo(member)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    path = folder / "shards" / "train.tar"
    path.parent.mkdir()
    return (
        path,
        file.getvalue(),
        lambda: HuggingFaceSource(
            str(path.parent),
            "w",
            id_column="__key__",
            image_column="png",
            caption_column="txt",
            splits={"train": ["train"]},
            streaming=True,
        ),
    )


READERS = [
    *((tabular, suffix) for suffix in (".csv", ".tsv", ".jsonl", ".parquet")),
    *((reader, "") for reader in (karpathy, coco, lists, webdataset)),
]


def captions_of(source: Source) -> Sequence[str]:
    read = source.table("train").captions
    list(source.images("train").stream())
    return list(read)


@pytest.mark.parametrize(("reader", "suffix"), READERS, ids=lambda part: getattr(part, "__name__", part))
def test_mutated_collection_is_read_completely_or_refused(
    reader: Callable[[Path, str], tuple[Path, bytes, Callable[[], Source]]], suffix: str, tmp_path: Path
) -> None:
    write_pictures(tmp_path, NAMES)
    path, whole, source = reader(tmp_path, suffix)
    path.write_bytes(whole)
    count = len(captions_of(source()))
    chance = random.Random(reader.__name__ + suffix)
    for _ in range(ROUNDS):
        changed = mutated(whole, chance, cut=suffix not in (".csv", ".tsv", ".jsonl"))  # which have no end
        path.write_bytes(changed)
        try:
            read = captions_of(source())
        except ValueError:
            continue
        assert len(read) >= count, changed
