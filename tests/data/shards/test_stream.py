"""Batches from real shards equal those of the collection that was sharded."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, ShardSource
from sdr_lightning.data.datasets import Draw, PairDataset
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.shards.stream import StreamedPairs, StreamLoader, _samples
from sdr_lightning.data.shards.writing import write_shards
from sdr_lightning.types import RetrievalBatch, Tokens
from tests.data.collection import MemorySource, bank_of

COUNTS = (3, 1, 2, 5, 2, 4, 1, 2, 6, 3, 1, 4)
BATCH = 6
NOISE = [
    Imbalance("mismatch", 0.5, seed=1),
    Imbalance("gaussian_noise", 0.4),
    Imbalance("drop_words", 0.3, splits=("train",)),
]


def module(source: Any, **options: Any) -> RetrievalDataModule:
    settings: dict[str, Any] = {"batch_size": BATCH, "image_size": 16, "augmentation": "weak", "imbalance": NOISE}
    return RetrievalDataModule(source, SceneTokenizer(), **settings | options)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 3 images, with the features of two teachers."""
    folder = tmp_path_factory.mktemp("shards")
    clean = module(MemorySource(COUNTS), imbalance=None).split("train")
    teachers = {modality: bank_of(clean, modality) for modality in ("image", "text")}
    assert write_shards(MemorySource(COUNTS), folder, 3, teachers, lambda *_: None) == 12  # type: ignore[arg-type]
    return folder


def source(folder: Path, **options: Any) -> ShardSource:
    return ShardSource(str(folder), **{"streams": 6, "shuffle_buffer": 4, **options})


def loader(data: RetrievalDataModule, rank: int = 0, world_size: int = 1, workers: int = 0) -> StreamLoader:
    """Return the training loader of a process."""
    data._place = lambda: (rank, world_size)  # type: ignore[method-assign]
    data.workers = workers
    data.split("train")
    found = data.train_dataloader()
    assert isinstance(found, StreamLoader)
    return found


def pairs(batches: Iterable[RetrievalBatch]) -> list[list[int]]:
    return [batch.pair_index.tolist() for batch in batches]


def assert_equal(found: RetrievalBatch, expected: RetrievalBatch) -> None:
    for name, value in expected._asdict().items():
        for part, other in zip(
            value if isinstance(value, Tokens) else [value],
            getattr(found, name) if isinstance(value, Tokens) else [getattr(found, name)],
            strict=True,
        ):
            assert (part is None and other is None) or torch.equal(part, other), name


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_batches_equal_those_of_the_collection(shards: Path, world_size: int, workers: int) -> None:
    """Each worker is simulated: a dataset of its own, which gets the draws of that worker."""
    streamed, plain = module(source(shards)), module(MemorySource(COUNTS)).split("train")
    steps = set()
    for rank in range(world_size):
        found = loader(streamed, rank, world_size)
        reference = PairDataset(plain, found.dataset.pairs.transform, 0)  # type: ignore[attr-defined]
        sampler = type(found.sampler)(found.sampler.stream_order, rank, world_size, workers)
        sampler.set_epoch(2)
        workers_of_rank = [StreamedPairs(found.dataset.pairs, found.dataset.images) for _ in sampler.parts]  # type: ignore[attr-defined]
        for number, draw in enumerate(sampler):
            share = workers_of_rank[number % len(sampler.parts)][draw]
            assert_equal(share, reference[Draw(2, share.pair_index.numpy())])
        steps.add((number + 1) / len(sampler.parts))
        assert all(not len(reader) for worker in workers_of_rank for reader in worker._readers.values())
    assert steps == {sum(COUNTS) // BATCH}


def test_workers_give_the_batches_of_the_main_process(shards: Path) -> None:
    """With real workers, from any step, and in the next epoch."""
    alone, helped = loader(module(source(shards))), loader(module(source(shards)), workers=2)
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)
        state = {"position": 2 - epoch, "streams": alone.sampler.stream_order.fingerprint}
        alone.load_state_dict(state)
        helped.load_state_dict(state)
        expected = list(alone)
        assert len(expected) == 5 - state["position"]  # type: ignore[operator]
        for first, second in zip(expected, helped, strict=True):
            assert_equal(second, first)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize(
    ("begun", "continued"), [((1, 0), (1, 0)), ((2, 1), (2, 1)), ((3, 0), (3, 0)), ((1, 0), (3, 0))]
)
def test_a_killed_process_continues(shards: Path, begun: Any, continued: Any, step: int) -> None:
    def run(world_size: int, states: list[Any] | None, until: int) -> tuple[list[Any], list[list[int]]]:
        after, seen = [], []
        for rank in range(world_size):
            found = loader(module(source(shards)), rank, world_size)
            if states is not None:
                found.load_state_dict(states[0])
            batches = iter(found)
            seen.append([row for _ in range(until) for row in next(batches).pair_index.tolist()])
            after.append(found.state_dict())
        return after, seen

    states, before = run(begun[0], None, step)
    assert all(state["position"] == step for state in states)
    _, after = run(continued[0], states, 5 - step)
    rows = [row for share in (*before, *after) for row in share]
    assert len(rows) == 5 * BATCH
    assert len(set(rows)) == len(rows)


def test_an_epoch_that_was_begun_in_another_order_is_refused(shards: Path) -> None:
    first = loader(module(source(shards)))
    next(iter(first))
    other = loader(module(source(shards, shuffle_buffer=5)))
    with pytest.raises(ValueError, match="the epoch was begun with other shards, streams"):
        other.load_state_dict(first.state_dict())
    other.load_state_dict({**first.state_dict(), "position": 0})


def test_training_streams_from_a_url(shards: Path, tmp_path: Path) -> None:
    """The tars of the training split are not in the folder."""
    shutil.copytree(shards, tmp_path / "index", ignore=shutil.ignore_patterns("train-*.tar"))
    remote = source(tmp_path / "index", url=f"pipe:cat {shards}/{{shard}}.tar")
    expected = loader(module(source(shards)))
    for found, batch in zip(loader(module(remote)), expected, strict=True):
        assert_equal(found, batch)
    with pytest.raises(
        ValueError, match=r"no shard at .*/train-00000\d\.tar: only training on pairs streams from a url"
    ):
        next(iter(module(remote).ordered_pairs()))
    broken = loader(module(source(tmp_path / "index")))
    with pytest.raises(ValueError, match=r"the shard .*/train-00000\d\.tar cannot be read"):
        next(iter(broken))


def test_a_program_that_cannot_write_the_rest_of_a_shard_is_no_error(tmp_path: Path) -> None:
    """Programs such as ``aws s3 cp`` fail when their pipe is closed; an error here would be a warning of the collector."""
    write_shards(MemorySource((1, 1, 1, 1), size=256), tmp_path, 4, {}, lambda *_: None)
    code = f"import shutil, sys; shutil.copyfileobj(open('{tmp_path}/train-000000.tar', 'rb'), sys.stdout.buffer)"
    samples = _samples(f'pipe:{sys.executable} -c "{code}" 2> /dev/null')
    next(samples)
    samples.close()  # type: ignore[attr-defined]


def test_a_shard_of_another_run_is_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "mixed")
    tars = sorted((tmp_path / "mixed").glob("train-*.tar"))
    shutil.copy(tars[0], tars[1])
    shutil.copy(tars[0], tars[2])
    shutil.copy(tars[0], tars[3])
    with pytest.raises(ValueError, match=r"has no image i\d+: the shard is incomplete, or of another run"):
        list(loader(module(source(tmp_path / "mixed"))))


def test_everything_else_reads_images_by_their_place(shards: Path) -> None:
    """Evaluation, passes over all pairs, a part of the images, and teachers' batches."""
    streamed, plain = module(source(shards), imbalance=None), module(MemorySource(COUNTS), imbalance=None)
    for first, second in zip(streamed.items("test", "image"), plain.items("test", "image"), strict=True):
        assert torch.equal(first.inputs, second.inputs)  # type: ignore[union-attr, arg-type]
    for first, second in zip(streamed.ordered_pairs(), plain.ordered_pairs(), strict=True):
        assert_equal(first, second)  # type: ignore[arg-type]
    for options in ({"train_images": 5}, {"batches": "image_views"}, {"train_on": ("train",), "train_words": 3}):
        both = [module(found, imbalance=None, **options) for found in (source(shards), MemorySource(COUNTS))]
        for data in both:
            data.split("train")
        if "train_words" in options:
            rows = torch.arange(4).numpy()
            assert torch.equal(both[0].split("train").texts(rows)[0], both[1].split("train").texts(rows)[0])
        else:
            first, second = (next(iter(data.train_dataloader())) for data in both)
            assert torch.equal(first[0], second[0])


def test_teachers_features_stream_with_the_pairs(shards: Path) -> None:
    data = module(source(shards), imbalance=NOISE[0])
    data.attach_teacher("image")
    data.attach_teacher("text")
    for batch in loader(data):
        assert torch.equal(batch.image_teacher, batch.image_index[:, None].float().expand(-1, 3))
        assert torch.equal(batch.text_teacher, batch.pair_index[:, None].float().expand(-1, 3))
    assert torch.equal(data.split("train").training_pairs().text_teacher[:, 0], torch.arange(sum(COUNTS)).float())  # type: ignore[index]
    assert data.split("train").teacher_sources == {"image": "a tower", "text": "a tower"}


@pytest.mark.parametrize(
    ("modality", "options", "message"),
    [
        ("image", {}, "features of clean data, and a corruption changes 5 of 12 images"),
        ("text", {}, "a corruption changes .* texts: write a bank with sdr extract, .*--data.init_args.text_bank"),
        ("text", {"train_images": 5}, "of the whole training split: leave train_images and train_on out"),
    ],
)
def test_features_that_do_not_fit_are_refused(shards: Path, modality: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(source(shards), **options).attach_teacher(modality)
