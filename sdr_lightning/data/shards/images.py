"""Images in shards: those of a training batch from the stream, any other by its place in the tar."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from sdr_lightning.data.images import DECODER_VERSION, AnyImage, Images, reason, to_rgb
from sdr_lightning.data.shards.index import ShardIndex
from sdr_lightning.identity import stable_hash


class ShardImages(Images):
    """The images of a split in shards.

    Args:
        folder: the folder of the shards.
        index: the index of the split.
        are_features: whether the images are precomputed features.
        url: where training streams the shards from, with ``{shard}`` for the name of a shard; None for the folder.
        streams: number of streams of an epoch, see :class:`~sdr_lightning.data.shards.order.StreamOrder`.
        shuffle_buffer: pairs that each stream shuffles.

    Attributes:
        held: encoded images by row that a stream has read; they are used instead of the tar.
    """

    def __init__(
        self, folder: Path, index: ShardIndex, are_features: bool, url: str | None, streams: int, shuffle_buffer: int
    ) -> None:
        self.folder, self.index, self.are_features = folder, index, are_features
        self.url, self.streams, self.shuffle_buffer = url, streams, shuffle_buffer
        self.held: Mapping[int, bytes] = {}

    def __len__(self) -> int:
        return len(self.index.shard)

    def __getitem__(self, row: int) -> AnyImage:
        content = self.held.get(row)
        if content is None:
            content = self._read(row)
        try:
            if self.are_features:
                features: AnyImage = np.load(io.BytesIO(content), allow_pickle=False)
                return features
            with Image.open(io.BytesIO(content)) as image:
                return to_rgb(image)
        except Exception as error:  # decoders raise different exceptions for broken files
            raise ValueError(
                f"cannot read the image {self.index.table.image_ids[row]} in {self.name(row)}.tar: {reason(error)}; replace "
                "the file or leave it out, and write the shards again"
            ) from error

    def name(self, row: int) -> str:
        """Return the name of the shard of an image, without suffix."""
        return self.index.names[int(self.index.shard[row])]

    def location(self, row: int) -> str:
        """Return the path or URL that the shard of an image is streamed from."""
        name = self.name(row)
        return str(self.folder / f"{name}.tar") if self.url is None else self.url.replace("{shard}", name)

    def identity(self, row: int) -> int:
        """Return a hash of the encoded image."""
        return stable_hash(DECODER_VERSION, self.index.content[row])

    def _read(self, row: int) -> bytes:
        path = self.folder / f"{self.name(row)}.tar"
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(int(self.index.offset[row]))
                content = file.read(int(self.index.size[row]))
        except FileNotFoundError as error:
            raise ValueError(
                f"no shard at {path}: only training on pairs streams from a url; evaluation, frozen towers, and methods that "
                "measure all pairs need the shards in the folder"
            ) from error
        if len(content) != self.index.size[row]:
            raise ValueError(f"{path} is truncated: copy it again, or remove its .parquet and run sdr data shard again")
        return content
