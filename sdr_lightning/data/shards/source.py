"""A collection in webdataset shards, as a source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdr_lightning.data.images import Images
from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.shards.index import ShardIndex, features_file, read_description, read_index
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import SPLITS, CaptionTable, Split
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.types import Modality


class TeacherFeatures(NamedTuple):
    """Features of a teacher beside the shards.

    Attributes:
        features: (n, D) float32 by row of the training split, memory-mapped.
        source: fingerprint of the tower.
        is_placebo: whether the features are random.
    """

    features: Tensor
    source: str
    is_placebo: bool


class ShardSource(Source):
    """A folder written by ``sdr data shard``: tars of images, captions and ids, and features of teachers.

    Training on pairs reads the shards from begin to end, in another order in each epoch, see
    :class:`~sdr_lightning.data.shards.order.StreamOrder`; ids and captions are in memory. Everything else (evaluation, frozen
    towers, methods that measure all pairs, teachers, ``train_images``, ``cached_size``) reads single images by their place in
    the tars. Name, ids, captions and their order are those of the collection that was sharded, so corruptions are the same.
    Graded relevance is ROUGE-L.

    Args:
        folder: the folder; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        url: stream the training shards from here, with ``{shard}`` for the name of a shard without suffix, for example
            ``pipe:aws s3 cp s3://bucket/{shard}.tar -`` or ``https://host/{shard}.tar``, as in webdataset; None for the folder.
            The index, features and the shards of other splits stay in the folder.
        streams: number of streams of an epoch: a multiple of the number of processes and a divisor of the batch size. Batches
            depend on it, and not on the number of processes and workers.
        shuffle_buffer: pairs that each stream shuffles.

    Raises:
        ValueError: fewer than 1 stream or pair, or a url without ``{shard}``.
    """

    def __init__(self, folder: FilePath, url: str | None = None, streams: int = 8, shuffle_buffer: int = 1000) -> None:
        if streams < 1 or shuffle_buffer < 1:
            raise ValueError(f"streams and shuffle_buffer must be at least 1, got {streams} and {shuffle_buffer}")
        if url is not None and "{shard}" not in url:
            raise ValueError(f"url must hold {{shard}} where the name of a shard belongs, got {url!r}")
        self.folder, self.url = folder, url
        self.streams, self.shuffle_buffer = streams, shuffle_buffer

    @property
    def name(self) -> str:  # type: ignore[override]
        """Name of the collection that was sharded."""
        return str(read_description(self._path)["name"])

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits in the folder."""
        found = read_description(self._path)["splits"]
        return tuple(split for split in SPLITS if split in found)

    def table(self, split: Split) -> CaptionTable:
        """Return the images and captions of a split.

        Raises:
            ValueError: the folder holds no shards, not this split, or not all of its shards.
        """
        return _index(self._path, split).table

    def images(self, split: Split) -> Images:
        """Return the images of a split."""
        are_features = read_description(self._path)["images"] == "features"
        url = self.url if split == "train" else None
        return ShardImages(self._path, _index(self._path, split), are_features, url, self.streams, self.shuffle_buffer)

    def teacher(self, modality: Modality) -> TeacherFeatures | None:
        """Return the features of a teacher on the training split; None if the folder has none.

        Raises:
            ValueError: their file is missing or truncated.
        """
        described = read_description(self._path)["teachers"].get(modality)
        if described is None:
            return None
        path = features_file(self._path, "train", modality)
        if not path.is_file():
            raise ValueError(f"no features of the {modality} teacher at {path}: copy the whole folder of the shards")
        try:
            features = torch.from_numpy(np.load(path, mmap_mode="c"))  # private pages, of which none is written
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read, {error}: copy it again, or remove it and run sdr data shard again"
            ) from error
        return TeacherFeatures(features, described["source"], described["is_placebo"])

    @property
    def _path(self) -> Path:
        return Path(expand(self.folder))


@cache
def _index(folder: Path, split: Split) -> ShardIndex:
    """Read the index once: the table and the images of a split are asked for separately."""
    return read_index(folder, split)
