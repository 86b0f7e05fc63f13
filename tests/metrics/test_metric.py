"""The contract of a torchmetrics Metric, and the numbers of the pure function."""

import pickle

import pytest
import torch
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from sdr_lightning.metrics import ImageTextRetrieval, evaluate
from sdr_lightning.metrics.relevance import FactRelevance

N, COUNTS = 11, torch.tensor([1, 2, 3, 1, 2, 3, 1, 2, 3, 7, 1])
INDEX = torch.arange(N).repeat_interleave(COUNTS)


def problem():
    generator = torch.Generator().manual_seed(0)
    images = normalize(torch.randn(N, 6, generator=generator))
    texts = normalize(images[INDEX] + torch.randn(len(INDEX), 6, generator=generator))
    facts = torch.randint(0, 3, (N, 4), generator=generator)
    return images, texts, FactRelevance(facts, facts[INDEX])


def feed(metric, images, texts, size, order):
    for modality, table in (("text", texts), ("image", images)):
        rows = torch.randperm(len(table), generator=torch.Generator().manual_seed(order))
        for part in rows.split(size):
            metric.update(part, table[part], modality)


def test_batches_in_any_order_and_split():
    images, texts, relevance = problem()
    expected = evaluate(images, texts, INDEX, relevance)
    metric = ImageTextRetrieval(INDEX, relevance)
    for size, order in ((1, 0), (4, 1), (100, 2)):
        feed(metric, images, texts, size, order)
        assert metric.compute() == expected
        metric.reset()
    with pytest.raises(ValueError, match="found no image embeddings"), pytest.warns(UserWarning, match="before the"):
        metric.compute()


def test_repeated_items_count_once():
    images, texts, _ = problem()
    metric = ImageTextRetrieval(INDEX, ties="pessimistic")
    feed(metric, images, texts, 3, 0)
    metric.update(torch.tensor([0, 5]), images[[0, 5]], "image")
    assert metric.compute() == evaluate(images, texts, INDEX, ties="pessimistic")


def test_pickles_half_full_and_keeps_nothing_in_checkpoints():
    images, texts, relevance = problem()
    metric = ImageTextRetrieval(INDEX, relevance)
    metric.update(torch.arange(N), images, "image")
    metric = pickle.loads(pickle.dumps(metric))  # noqa: S301 (its own)
    metric.update(torch.arange(len(INDEX)), texts, "text")
    assert metric.compute() == evaluate(images, texts, INDEX, relevance)
    assert metric.state_dict() == {}


def _process(rank, world, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    images, texts, relevance = problem()
    metric = ImageTextRetrieval(INDEX, relevance)
    for modality, table in (("image", images), ("text", texts)):
        padded = torch.arange(len(table) + (-len(table)) % world) % len(table)  # as DistributedSampler does
        rows = padded[rank::world]
        metric.update(rows, table[rows], modality)
    assert metric.compute() == evaluate(images, texts, INDEX, relevance)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("world", [3])
def test_processes_that_share_the_items(tmp_path, world):
    mp.start_processes(_process, args=(world, str(tmp_path)), nprocs=world, start_method="fork")


def test_errors():
    images, texts, _ = problem()
    metric = ImageTextRetrieval(INDEX)
    with pytest.raises(ValueError, match="'image' or 'text', not 'audio'"):
        metric.update(torch.arange(N), images, "audio")
    with pytest.raises(ValueError, match=r"image rows must be in \[0, 11\), found 1 to 11"):
        metric.update(torch.arange(1, 12), images, "image")
    with pytest.raises(ValueError, match=r"got \(2,\) torch.int64 and \(11, 6\)"):
        metric.update(torch.arange(2), images, "image")
    metric.reset()
    metric.update(torch.arange(N), images, "image")
    metric.update(torch.arange(4), texts[:4], "text")
    with pytest.raises(ValueError, match="22 of 26 text embeddings are missing, the first is row 4"):
        metric.compute()
