"""Training batches from shards, which webdataset reads from begin to end."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.data.datasets import BatchDataset, Draw, PairDataset
from sdr_lightning.data.loaders import BatchLoader, ResumableLoader
from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.shards.library import library
from sdr_lightning.data.shards.order import StreamDraw, StreamSampler
from sdr_lightning.types import CachedFeatures, RetrievalBatch, TextInputs, Tokens


class StreamedPairs(BatchDataset):
    """Shares of global batches; an index is a :class:`~sdr_lightning.data.shards.order.StreamDraw`.

    A worker asks for the draws of its streams in order. It keeps the encoded images that later pairs need.

    Args:
        pairs: builds the batches.
        images: the images of its split.
    """

    def __init__(self, pairs: PairDataset, images: ShardImages) -> None:
        super().__init__(pairs.split)
        self.pairs, self.images = pairs, images
        self._readers: dict[int, ShardReader] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, draw: StreamDraw) -> RetrievalBatch:  # type: ignore[override]
        if draw.begins:
            self._readers = {number: ShardReader(self.images) for number in draw.streams}
        held: dict[int, bytes] = {}
        for number, pairs, reads, uses in zip(draw.streams, draw.pairs, draw.reads, draw.uses, strict=True):
            reader = self._readers[number]
            reader.read(reads, uses)
            held |= reader.take(self.split.table.caption_image[pairs])
        self.images.held = held
        try:
            return self.pairs[Draw(draw.epoch, draw.pairs.T.reshape(-1))]
        finally:
            self.images.held = {}


class ShardReader:
    """Reads the images of one stream, shard by shard.

    Args:
        images: the images of the split.
    """

    def __init__(self, images: ShardImages) -> None:
        self.images = images
        self._location = ""
        self._samples: Iterator[tuple[int, bytes]] = iter(())
        self._held: dict[int, bytes] = {}
        self._uses: dict[int, int] = {}

    def __len__(self) -> int:
        """Return the number of images that are kept."""
        return len(self._held)

    def read(self, rows: Sequence[int] | np.ndarray, uses: Sequence[int] | np.ndarray) -> None:
        """Read images, in the order of the shards.

        Args:
            rows: rows of the images.
            uses: how often :meth:`take` will return each of them; then it is discarded.

        Raises:
            ValueError: a shard cannot be read, or lacks an image.
        """
        for row, number in zip(map(int, rows), map(int, uses), strict=True):
            self._held[row], self._uses[row] = self._next(row), number

    def take(self, rows: np.ndarray) -> dict[int, bytes]:
        """Return the encoded images of some pairs by row; count one use for each pair."""
        found = {row: self._held[row] for row in set(rows.tolist())}
        for row in rows.tolist():
            self._uses[row] -= 1
            if not self._uses[row]:
                del self._held[row], self._uses[row]
        return found

    def _next(self, row: int) -> bytes:
        location = self.images.location(row)
        if location != self._location:
            self._location, self._samples = location, _samples(location)
        for found, content in self._samples:
            if found == row:
                return content
        raise ValueError(
            f"{location} has no image {self.images.index.table.image_ids[row]}: the shard is incomplete, or of another run of "
            "sdr data shard; copy it again"
        )


def _samples(location: str) -> Iterator[tuple[int, bytes]]:
    """Yield row and encoded image of each sample of a shard, by webdataset."""
    webdataset = library()
    try:
        with webdataset.gopen(location) as stream:
            files = webdataset.tariterators.tar_file_expander(
                [{"url": location, "stream": stream}], select_files=lambda name: not name.endswith(".json")
            )
            for sample in webdataset.tariterators.group_by_keys(files):
                yield (
                    int(sample["__key__"]),
                    next(content for name, content in sample.items() if not name.startswith("__")),
                )
    except (OSError, tarfile.TarError) as error:
        if isinstance(error.__context__, GeneratorExit):
            return  # the rest is not needed, and the program at the other end of the pipe could not write it
        reason = getattr(error, "strerror", None) or error.args[0]  # webdataset adds its stream to the arguments
        raise ValueError(f"the shard {location} cannot be read: {reason}") from error


class StreamLoader(ResumableLoader):
    """Joins the shares of the workers to the batches of a process; it can resume within an epoch.

    Args:
        dataset: the shares.
        sampler: the draws.
        workers: number of workers; 0 to read in the main process.
        padding: token id of padding.
    """

    sampler: StreamSampler

    def __init__(self, dataset: StreamedPairs, sampler: StreamSampler, workers: int, padding: int) -> None:
        super().__init__(dataset, sampler, len(sampler.parts) if workers else 0)
        self.padding = padding
        size = sampler.batch_size // sampler.stream_order.streams
        places = [
            k * sampler.stream_order.streams + number for part in sampler.parts for k in range(size) for number in part
        ]
        self._order = torch.from_numpy(np.argsort(places))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._position, self._first_step = self._first_step, 0
        self.sampler.first_step = self._position
        shares = BatchLoader.__iter__(self)
        for parts in zip(*[shares] * len(self.sampler.parts), strict=True):
            self._position += 1
            yield parts[0] if len(parts) == 1 else join(parts, self._order, self.padding)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, and a hash of what determines its order."""
        return {**super().state_dict(), "streams": self.sampler.stream_order.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume the next iteration at the saved position, in any number of processes and workers.

        Raises:
            ValueError: the epoch was begun in another order.
        """
        if state["position"] and state.get("streams") != self.sampler.stream_order.fingerprint:
            raise ValueError(
                "the epoch was begun with other shards, streams, shuffle_buffer, batch size, seed or mismatch: continue with "
                "the same, or from a checkpoint of the end of an epoch"
            )
        super().load_state_dict(state)


def join(parts: Sequence[RetrievalBatch], order: Tensor, padding: int) -> RetrievalBatch:
    """Concatenate batches and reorder their rows.

    Args:
        parts: batches of b pairs in all.
        order: (b,) int64 permutation.
        padding: token id of padding.
    """

    def joined(columns: Sequence[Any]) -> Any:
        return None if columns[0] is None else torch.cat(list(columns))[order]

    images, _, *rest = zip(*parts, strict=True)
    return RetrievalBatch(
        joined(images),
        _joined_texts([part.texts for part in parts], order, padding),
        *map(joined, rest),
    )


def _joined_texts(texts: Sequence[TextInputs], order: Tensor, padding: int) -> TextInputs:
    if isinstance(texts[0], CachedFeatures):
        return CachedFeatures(torch.cat([part.values for part in texts if isinstance(part, CachedFeatures)])[order])
    tokens = [part for part in texts if isinstance(part, Tokens)]
    longest = max(part.input_ids.shape[1] for part in tokens)
    ids, masks = (
        torch.cat([F.pad(part[column], (0, longest - part[column].shape[1]), value=value) for part in tokens])[order]
        for column, value in ((0, padding), (1, 0))
    )
    return Tokens(ids, masks)
