"""Files of a folder of shards, and the index of its images and captions.

For each split and number::

    train-000000.tar            one sample per image: the image, and its id and captions as JSON; keys are rows of images
    train-000000.parquet        the same ids and captions, and the place of each image in the tar; written last
    train.image_teacher.npy     (N, D) teachers' features by row of the image
    train.text_teacher.npy      (C, D) teachers' features by row of the caption
    shards.json                 what the folder holds; written first
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.paths import read_json
from sdr_lightning.strings import Strings
from sdr_lightning.types import Modality

FORMAT = "sdr-shards-1"
DESCRIPTION = "shards.json"


class ShardIndex(NamedTuple):
    """Images and captions of a split, and where the images are.

    Attributes:
        table: ids, captions and pairing, as in the collection that was sharded.
        names: names of the shards, without suffix.
        shard: (N,) int64 shard of each image.
        offset: (N,) int64 first byte of each image in its shard.
        size: (N,) int64 number of bytes.
        content: (N,) int64 hashes of these bytes.
    """

    table: CaptionTable
    names: Sequence[str]
    shard: NDArray[np.int64]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    content: NDArray[np.int64]


def shard_name(split: Split, number: int) -> str:
    """Return the name of a shard, without suffix."""
    return f"{split}-{number:06d}"


def features_file(folder: Path, split: Split, modality: Modality) -> Path:
    """Return the file of a teacher's features."""
    return folder / f"{split}.{modality}_teacher.npy"


def read_description(folder: Path) -> dict[str, Any]:
    """Read what a folder of shards holds.

    Raises:
        ValueError: it is not a folder of shards.
    """
    found = read_json(folder / DESCRIPTION, "shards, which sdr data shard writes")
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"{folder / DESCRIPTION} does not describe shards: write them with sdr data shard")
    return found


def read_index(folder: Path, split: Split) -> ShardIndex:
    """Read the index of a split.

    Raises:
        ValueError: the folder has no such split, or shards are missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    description = read_description(folder)
    if split not in description["splits"]:
        raise ValueError(f"{folder} has no {split} split; it has {', '.join(description['splits'])}")
    expected = description["splits"][split]
    names = [shard_name(split, number) for number in range(expected["shards"])]
    missing = [name for name in names if not (folder / f"{name}.parquet").is_file()]
    if missing:
        raise ValueError(
            f"{folder} has {len(names) - len(missing)} of {len(names)} {split} shards, the first missing is "
            f"{missing[0]}: run the same sdr data shard again, which continues"
        )
    parts = [pq.read_table(folder / f"{name}.parquet") for name in names]
    shard = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rows = pa.concat_tables(parts).combine_chunks()

    def column(name: str) -> NDArray[np.int64]:
        found: NDArray[np.int64] = rows[name].to_numpy()
        return found

    def flat(name: str) -> Any:
        return rows[name].combine_chunks().flatten()

    image_row, per_image = column("image_row"), np.diff(rows["caption_rows"].combine_chunks().offsets.to_numpy())
    caption_row = flat("caption_rows").to_numpy()
    by_image, by_caption = np.argsort(image_row), np.argsort(caption_row)
    table = CaptionTable(
        description["name"],
        split,
        _strings(rows["image_id"].combine_chunks().take(pa.array(by_image))),
        _strings(flat("captions").take(pa.array(by_caption))),
        _strings(flat("caption_ids").take(pa.array(by_caption))),
        np.repeat(image_row, per_image)[by_caption],
    )
    if (len(table.image_ids), len(table.captions)) != (expected["images"], expected["captions"]):
        raise ValueError(
            f"{folder} has {len(table.image_ids)} {split} images and {len(table.captions)} captions, expected "
            f"{expected['images']} and {expected['captions']}: its files are of different runs, write them anew"
        )
    places = (column(name)[by_image] for name in ("offset", "size", "content"))
    return ShardIndex(table, names, shard[by_image], *places)


def _strings(array: Any) -> Strings:
    """Convert an Arrow array of ``large_string`` without creating Python strings."""
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    text = np.frombuffer(data, dtype=np.uint8)[ends[0] : ends[-1]] if data is not None else np.empty(0, dtype=np.uint8)
    return Strings.packed(text, ends - ends[0])
