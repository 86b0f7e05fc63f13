"""Order of the training pairs of an epoch, and what each worker of each process reads of it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np

from sdr_lightning.data.samplers import EpochOrder, TrainingSampler
from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.split import Rows
from sdr_lightning.identity import sha256


class Stream(NamedTuple):
    """The pairs of one stream in one epoch.

    Attributes:
        pairs: (n,) rows of the pairs, in the order of training.
        images: (G,) rows of their images, in the order of reading: shard by shard.
        group: (n,) place of the image of each pair in ``images``.
    """

    pairs: Rows
    images: Rows
    group: Rows


class StreamOrder:
    """The order of an epoch: a function of seed, epoch and the options below, for any number of processes and workers.

    The shards are permuted, their pairs are divided into ``streams`` parts of equal length, and each stream is shuffled in a
    buffer: pair k of a stream moves to place k + u with u uniform in [0, buffer), so at most ``buffer`` pairs wait at a time. A
    global batch takes equally many pairs of each stream. The incomplete last batch is left out.

    Args:
        images: images of the split, which know their shards.
        caption_image: (C,) row of the image of each pair, after corruption.
        batch_size: *global* batch size.
        seed: seed of the order.

    Attributes:
        streams: number of streams.
        steps: number of global batches of an epoch.

    Raises:
        ValueError: the batch size is not a multiple of the number of streams.
    """

    def __init__(self, images: ShardImages, caption_image: Rows, batch_size: int, seed: int) -> None:
        self.streams, self.buffer = images.streams, images.shuffle_buffer
        if batch_size % self.streams:
            raise ValueError(
                f"the global batch size {batch_size} is not a multiple of {self.streams} streams: set "
                "data.init_args.source.init_args.streams"
            )
        self.index, self.caption_image = images.index, caption_image
        self.batch_size, self.seed = batch_size, seed
        self.steps = len(caption_image) // batch_size

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that determines the order, besides the epoch."""
        settings = f"{self.streams} {self.buffer} {self.batch_size} {self.seed}"
        return sha256(settings, self.index.shard.tobytes(), self.index.offset.tobytes(), self.caption_image.tobytes())

    def epoch(self, epoch: int) -> list[Stream]:
        """Return the streams of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        place = generator.permutation(len(self.index.names))[self.index.shard]  # of the shard of each image
        reading = np.empty(len(place), dtype=np.int64)  # place of each image in the order of reading
        reading[np.lexsort((self.index.offset, place))] = np.arange(len(place))
        pairs = np.argsort(reading[self.caption_image], kind="stable")[: self.steps * self.batch_size]
        return [self._stream(part, generator) for part in np.split(pairs, self.streams)]

    def _stream(self, pairs: Rows, generator: np.random.Generator) -> Stream:
        image = self.caption_image[pairs]
        begins = np.diff(image, prepend=-1) != 0  # the pairs of an image follow one another
        order = np.argsort(np.arange(len(pairs)) + generator.uniform(0, self.buffer, len(pairs)), kind="stable")
        return Stream(pairs[order], image[begins], (np.cumsum(begins) - 1)[order])


class StreamDraw(NamedTuple):
    """The share of one worker in one global batch.

    Attributes:
        epoch: the epoch, which seeds the augmentation.
        begins: whether it is the first of a worker, which then forgets what it has read before.
        pairs: (m, k) rows of the k pairs of each of m streams.
        streams: the m streams.
        reads: the images that each stream reads from its shards before, in order.
        uses: how often each of them is used from now on.
    """

    epoch: int
    begins: bool
    pairs: Rows
    streams: tuple[int, ...]
    reads: tuple[Rows, ...]
    uses: tuple[Rows, ...]


class StreamSampler(TrainingSampler):
    """Divides the streams over processes and workers.

    Stream l belongs to process l mod W; its streams are dealt to its workers in turn. Each step yields one draw per worker, in
    the order in which a :class:`~torch.utils.data.DataLoader` hands them to its workers.

    Args:
        order: the order.
        rank: rank of this process.
        world_size: number of processes.
        workers: number of workers; 0 counts as one. Workers beyond the number of streams are not used.
        epoch_order: as in :class:`~sdr_lightning.data.samplers.TrainingSampler`; a method may not change the order.

    Attributes:
        parts: the streams of each worker.

    Raises:
        ValueError: the batch size is larger than the data, or the streams cannot be divided over the processes; when
            iterating: a method changes the order.
    """

    def __init__(
        self,
        order: StreamOrder,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        epoch_order: EpochOrder | None = None,
    ) -> None:
        super().__init__(len(order.caption_image), order.batch_size, order.seed, rank, world_size, epoch_order)
        if order.streams % world_size:
            raise ValueError(
                f"{order.streams} streams of shards cannot be divided over {world_size} processes: set "
                f"data.init_args.source.init_args.streams to a multiple of {world_size}"
            )
        self.stream_order = order
        own = range(rank, order.streams, world_size)
        count = max(1, min(workers, len(own)))
        self.parts = [tuple(own[part::count]) for part in range(count)]

    def __iter__(self) -> Iterator[StreamDraw]:  # type: ignore[override]
        streams = self.stream_order.epoch(self.epoch)
        self._refuse_another_order(streams)
        size, first = self.batch_size // self.stream_order.streams, self.first_step
        plans = {number: _plan(streams[number], size, first) for part in self.parts for number in part}
        for step in range(first, len(self)):
            for part in self.parts:
                pairs = np.stack([streams[number].pairs[step * size : (step + 1) * size] for number in part])
                reads, uses = zip(*(next(plans[number]) for number in part), strict=True)
                yield StreamDraw(self.epoch, step == first, pairs, part, reads, uses)

    def _refuse_another_order(self, streams: list[Stream]) -> None:
        if self.epoch_order is None or self.first_step:
            return
        order = np.stack([stream.pairs for stream in streams], axis=1).reshape(-1)
        if self._checked_order(self.epoch_order, order) is not None:
            raise ValueError(
                "the method chooses the order of the pairs (epoch_order), and shards are read in the order in which they are "
                "stored: train from the collection that was sharded"
            )


def _plan(stream: Stream, size: int, first: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield the images that a stream reads before each step from ``first`` on, and how often each is used from then on."""
    uses = np.bincount(stream.group[first * size :], minlength=len(stream.images))
    until = np.maximum.accumulate(stream.group)  # the last image that has been read when a pair is used
    done = 0
    for last in until[(first + 1) * size - 1 :: size]:
        needed = np.arange(done, last + 1)
        needed = needed[uses[needed] > 0]  # an interrupted epoch has used the others
        done = last + 1
        yield stream.images[needed], uses[needed]
