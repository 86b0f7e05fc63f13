"""Every pair once per epoch, over processes, workers, interruptions and epochs, without reading a shard."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.shards.index import ShardIndex
from sdr_lightning.data.shards.order import StreamDraw, StreamOrder, StreamSampler
from sdr_lightning.data.table import CaptionTable

SHARDS, BATCH = 7, 12


def order(
    images: int = 40, streams: int = 6, buffer: int = 9, seed: int = 0, mismatch: bool = False, batch: int = BATCH
) -> StreamOrder:
    """Build the order of images with 1 to 5 captions in shards of different sizes."""
    generator = np.random.default_rng(images)
    paired = np.repeat(np.arange(images), generator.integers(1, 6, images))
    names = [str(k) for k in range(len(paired))]
    table = CaptionTable("many", "train", names[:images], names, names, paired)
    shard = np.sort(generator.integers(0, SHARDS, images))[generator.permutation(images)]
    index = ShardIndex(
        table,
        [f"train-{k:06d}" for k in range(SHARDS)],
        shard,
        generator.permutation(images) * 512,
        np.full(images, 9),
        np.zeros(images, dtype=np.int64),
    )
    caption_image = generator.permutation(table.caption_image) if mismatch else table.caption_image
    return StreamOrder(ShardImages(Path(), index, False, None, streams, buffer), caption_image, batch, seed)


def draws(whole: StreamOrder, world_size: int, workers: int, epoch: int = 0, first: int = 0) -> list[list[StreamDraw]]:
    """Return the draws of each worker of each process."""
    found = []
    for rank in range(world_size):
        sampler = StreamSampler(whole, rank, world_size, workers)
        sampler.set_epoch(epoch)
        sampler.first_step = first
        all_draws = list(sampler)
        parts = len(sampler.parts)
        assert len(all_draws) == parts * (len(sampler) - first)
        found += [all_draws[part::parts] for part in range(parts)]
    return found


def batches(shares: list[list[StreamDraw]]) -> list[list[int]]:
    """Return the sorted pairs of each global batch."""
    return [sorted(row for draw in step for row in draw.pairs.flatten().tolist()) for step in zip(*shares, strict=True)]


PLACES = [(world_size, workers) for world_size in (1, 2, 3) for workers in (0, 1, 2)]


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(12, 60),
    streams=st.sampled_from([6, 12]),
    buffer=st.sampled_from([1, 5, 1000]),
    mismatch=st.booleans(),
    epoch=st.integers(0, 3),
    begun=st.sampled_from(PLACES),
    continued=st.sampled_from(PLACES),
    data=st.data(),
)
def test_an_interrupted_epoch_has_every_pair_once(
    images: int, streams: int, buffer: int, mismatch: bool, epoch: int, begun: Any, continued: Any, data: Any
) -> None:
    """Whatever the processes and workers before and after the interruption, the global batches are the same."""
    whole = order(images, streams, buffer, mismatch=mismatch)
    step = data.draw(st.integers(0, whole.steps))
    uninterrupted = batches(draws(whole, 1, 0, epoch))
    assert [len(batch) for batch in uninterrupted] == [BATCH] * (len(whole.caption_image) // BATCH)
    pairs = [row for batch in uninterrupted for row in batch]
    assert len(set(pairs)) == len(pairs)
    before = batches(draws(whole, *begun, epoch))[:step]
    assert before + batches(draws(whole, *continued, epoch, step)) == uninterrupted


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("mismatch", [False, True])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (2, 2), (3, 1)])
def test_streams_read_forward_and_keep_no_more_than_the_buffer(
    world_size: int, workers: int, mismatch: bool, first: int
) -> None:
    whole = order(200, 6, 20, mismatch=mismatch)
    place = np.random.default_rng([0, 1]).permutation(SHARDS)
    for share in draws(whole, world_size, workers, 1, first):
        held: dict[int, Counter[int]] = {number: Counter() for number in share[0].streams}
        read: dict[int, list[tuple[int, int]]] = {number: [] for number in share[0].streams}
        for draw in share:
            assert draw.begins == (draw is share[0])
            for number, pairs, images, uses in zip(draw.streams, draw.pairs, draw.reads, draw.uses, strict=True):
                for image, count in zip(images.tolist(), uses.tolist(), strict=True):
                    assert image not in held[number]
                    held[number][image] = count
                    read[number].append((place[whole.index.shard[image]], whole.index.offset[image]))
                held[number].subtract(whole.caption_image[pairs].tolist())
                held[number] = +held[number]  # an image without further use
                assert len(held[number]) <= 20
        assert all(not kept for kept in held.values())  # each image was used as often as announced
        assert all(places == sorted(set(places)) for places in read.values())


def test_the_buffer_bounds_how_far_a_pair_moves() -> None:
    unshuffled, shuffled = order(200, 6, 1).epoch(0), order(200, 6, 20).epoch(0)
    for before, after in zip(unshuffled, shuffled, strict=True):
        assert sorted(before.pairs) == sorted(after.pairs)
        place = {pair: k for k, pair in enumerate(before.pairs.tolist())}
        moved = np.array([k - place[pair] for k, pair in enumerate(after.pairs.tolist())])
        assert np.abs(moved).max() < 20
        assert np.abs(moved).mean() > 3


def test_order_depends_on_seed_and_epoch() -> None:
    found = [batches(draws(order(seed=seed), 1, 0, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0))]
    assert found[0] == found[4]
    assert all(found[0] != other for other in found[1:4])


def test_another_order_has_another_fingerprint() -> None:
    settings = [{}, {"streams": 12}, {"buffer": 8}, {"seed": 1}, {"mismatch": True}, {"batch": 24}, {"images": 41}]
    assert len({order(**options).fingerprint for options in settings}) == len(settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "place", "message"),
    [
        ({"streams": 5}, (0, 1), "batch size 12 is not a multiple of 5 streams: set .*streams"),
        ({"streams": 4}, (0, 3), "4 streams of shards cannot be divided over 3 processes: set .*multiple of 3"),
        ({"images": 2}, (0, 1), "batch size 12 is larger than"),
    ],
)
def test_what_cannot_be_divided_is_refused(options: dict[str, int], place: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamSampler(order(**options), *place)  # type: ignore[arg-type]


def test_a_method_may_not_choose_the_order() -> None:
    same = StreamSampler(order(), epoch_order=lambda epoch, permutation, size: permutation)
    assert len(list(same)) == len(same)
    other = StreamSampler(order(), epoch_order=lambda epoch, permutation, size: torch.flip(permutation, [0]))
    with pytest.raises(ValueError, match=r"the method chooses the order of the pairs .*train from the collection"):
        list(other)
