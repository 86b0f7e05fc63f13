"""Re-ranking at test time against a brute force that scores every image with every caption, one pair at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.functional.ranking import Ranking
from sdr_lightning.functional.search import TopK, top_k
from sdr_lightning.metrics.cross_modal import summarise
from sdr_lightning.metrics.relevance import FactRelevance, Relevance
from sdr_lightning.training.reranking import Captions, Rescored, encode_captions, reranked_metrics
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Encoded, Tokens
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, RaggedSource, student, trainer

pytestmark = LIGHTNINGS_OWN_WARNINGS
COUNTS = (3, 1, 2, 5, 2, 4, 1, 2, 3, 1)  # 10 images, 24 captions


def data_module(**options: Any) -> RetrievalDataModule:
    defaults: dict[str, Any] = {"batch_size": 8, "image_size": 16, "evaluation_batch_size": 5}
    return RetrievalDataModule(RaggedSource(COUNTS), SceneTokenizer(), **{**defaults, **options})


class Truth(NamedTuple):
    """Cosines and matching scores, (images, captions), and the image of each caption."""

    cosines: list[list[float]]
    scores: list[list[float]]
    told: list[int]


@torch.no_grad()
def brute_force(module: RetrievalModule, data: RetrievalDataModule) -> Truth:
    """Every image and every caption encoded alone, without padding, and every pair fused alone."""
    split, encoder = data.split("test"), module.encoder
    assert encoder.fusion is not None
    images = [encoder.image(split.images(np.array([row]))) for row in range(len(split.table.image_ids))]
    texts: list[Encoded] = []
    for row in range(len(split.table.captions)):
        tokens = split.texts(np.array([row]))
        assert isinstance(tokens, Tokens)
        assert tokens.attention_mask.all()
        texts.append(encoder.text(tokens))
    scores = [
        [
            float(encoder.fusion.head(encoder.fusion(text, encoder.fusion.contexts(image.tokens)))[0, 1])
            for text in texts
        ]
        for image in images
    ]
    cosines = [[float(image.embedding[0] @ text.embedding[0]) for text in texts] for image in images]
    return Truth(cosines, scores, split.table.caption_image.tolist())


def transposed(rows: list[list[float]]) -> list[list[float]]:
    return [list(column) for column in zip(*rows, strict=True)]


def ranks(cosines: list[list[float]], scores: list[list[float]], positive: list[list[bool]], k: int) -> list[int]:
    """Sort each query's k first by cosine anew, and count what stands ahead of the first positive."""
    found = []
    for cosine, score, right in zip(cosines, scores, positive, strict=True):
        order = sorted(range(len(cosine)), key=lambda j: -cosine[j])
        order = sorted(order[:k], key=lambda j: -score[j]) + order[k:]
        found.append(next(place for place, j in enumerate(order) if right[j]))
    return found


def expected_metrics(truth: Truth, k: int) -> dict[str, float]:
    right = [[image == told for told in truth.told] for image in range(len(truth.scores))]
    results: dict[str, float] = {}
    for way, cosines, scores, positive in (
        ("i2t", truth.cosines, truth.scores, right),
        (
            "t2i",
            transposed(truth.cosines),
            transposed(truth.scores),
            [list(column) for column in zip(*right, strict=True)],
        ),
    ):
        where = torch.tensor(ranks(cosines, scores, positive, k))
        results |= summarise(way, Ranking(where, torch.zeros(len(where), dtype=torch.bool)))
    results["rsum"] = sum(results[f"{way}_R@{at}"] for way in ("i2t", "t2i") for at in (1, 5, 10))
    return {f"reranked_{name}": value for name, value in results.items()}


class Counted(NamedTuple):
    """How many images and captions the towers saw, and how many pairs the head scored."""

    images: int
    captions: int
    pairs: int


def run_test(k: int | None, **options: Any) -> tuple[dict[str, float], Counted, RetrievalModule, RetrievalDataModule]:
    module, data = student({"itc": 1, "itm": 1}, rerank=k), data_module(**options)
    assert module.encoder.fusion is not None
    scored: list[int] = []
    module.encoder.fusion.head.register_forward_hook(lambda _, __, output: scored.append(len(output)))
    trainer().test(module, datamodule=data, verbose=False)
    towers: Any = module.encoder.image_tower, module.encoder.text_tower
    counted = Counted(sum(towers[0].rows), sum(towers[1].rows), sum(scored))
    return module.test_metrics, counted, module, data


def pairs_asked_for(truth: Truth, k: int) -> int:
    """Those that are among the first k of a direction at least."""

    def first(rows: list[list[float]]) -> list[list[int]]:
        return [sorted(range(len(row)), key=lambda j: -row[j])[:k] for row in rows]

    wanted = {(image, text) for image, texts in enumerate(first(truth.cosines)) for text in texts}
    wanted |= {(image, text) for text, images in enumerate(first(transposed(truth.cosines))) for image in images}
    return len(wanted)


@pytest.mark.parametrize("k", [1, 3, 12, 1000])
def test_the_metrics_are_those_of_a_brute_force(k: int) -> None:
    metrics, counted, module, data = run_test(k)
    truth = brute_force(module, data)
    assert {name: metrics[name] for name in metrics if name.startswith("reranked_")} == pytest.approx(
        expected_metrics(truth, k), abs=1e-9
    )
    assert counted == (20, 48, pairs_asked_for(truth, k))  # the towers once for cosine, once for re-ranking


def test_the_ranking_by_cosine_is_left_as_it_is() -> None:
    with_it, without = run_test(3)[0], run_test(None)[0]
    assert not [name for name in without if name.startswith("reranked_")]
    assert {name: value for name, value in with_it.items() if not name.startswith("reranked_")} == without
    changed = [name for name in ("i2t_MRR", "t2i_MRR") if with_it[f"reranked_{name}"] != with_it[name]]
    assert changed == ["i2t_MRR", "t2i_MRR"]  # or this data tells nothing


def test_all_candidates_are_a_ranking_by_matching_alone() -> None:
    metrics, counted, module, data = run_test(24)
    truth = brute_force(module, data)
    assert counted.pairs == 240
    right = [[image == told for told in truth.told] for image in range(10)]
    by_score = ranks(truth.scores, truth.scores, right, 0)
    assert metrics["reranked_i2t_MRR"] == pytest.approx(np.mean([1 / (rank + 1) for rank in by_score]))


def test_candidates_and_ranks_are_by_cosine_whatever_the_lengths() -> None:
    """Embeddings of low precision are of length 1 only roughly; what is not re-scored keeps its rank by cosine."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(10).repeat_interleave(torch.tensor(COUNTS))
    image, text = torch.randn(10, 6, generator=generator), torch.randn(24, 6, generator=generator)
    image, text = torch.nn.functional.normalize(image), torch.nn.functional.normalize(text)
    rescored = Rescored(
        *(TopK(torch.zeros(len(one), 1), top_k(one, two, 1).items) for one, two in ((image, text), (text, image)))
    )
    longer = torch.linspace(1, 3, 24)[:, None]
    assert reranked_metrics(image, text * longer, index, rescored) == reranked_metrics(image, text, index, rescored)


def test_what_is_undefined_is_not_logged_and_stops_nothing() -> None:
    class Irrelevant(RaggedSource):
        def relevance(self, split: Split, cache: Path) -> Relevance:
            return FactRelevance(np.zeros((len(COUNTS), 1), int), np.zeros((sum(COUNTS), 1), int))

    module, data = student({"itc": 1}), data_module()
    data.source = Irrelevant(COUNTS)
    run = trainer()
    run.test(module, datamodule=data, verbose=False)
    undefined = {name for name, value in module.test_metrics.items() if math.isnan(value)}
    assert undefined == {name for name in module.test_metrics if "NDCG" in name}
    assert run.logged_metrics.keys() == {f"test/{name}" for name in module.test_metrics.keys() - undefined}


def test_batches_change_nothing() -> None:
    small, large = (run_test(4, evaluation_batch_size=size)[0] for size in (1, 100))
    assert small == pytest.approx(large, abs=1e-6)


def test_captions_are_kept_without_padding_and_handed_out_with_as_much_as_they_need() -> None:
    module, data = student({"itc": 1, "itm": 1}), data_module(evaluation_batch_size=3)
    captions = encode_captions(module.encoder, data.items("test", "text"), torch.device("cpu"))
    split = data.split("test")
    lengths = [len(caption.split()) + 2 for caption in split.table.captions]  # [CLS] and [SEP]
    assert captions.starts.diff().tolist() == lengths
    assert len(set(lengths)) > 2
    rows = torch.tensor([2, 0, 7])
    taken = captions.take(rows, torch.device("cpu"))
    expected: Any = split.texts(rows.numpy())
    assert taken.mask is not None
    assert taken.tokens is not None
    assert torch.equal(taken.mask, expected.attention_mask)
    encoded = module.encoder.text(expected).tokens
    assert encoded is not None
    kept: Tensor = expected.attention_mask.bool()
    torch.testing.assert_close(taken.tokens[kept], encoded[kept].detach())
    assert not taken.tokens[~kept].any()


def test_taking_one_caption() -> None:
    captions = Captions(torch.arange(6.0)[:, None], torch.tensor([0, 2, 3, 6]))
    taken = captions.take(torch.tensor([1]), torch.device("cpu"))
    assert taken.tokens is not None
    assert taken.tokens.tolist() == [[[2.0]]]


@pytest.mark.parametrize("rerank", [0, -1])
def test_a_number_of_candidates_that_makes_no_sense(rerank: int) -> None:
    with pytest.raises(ValueError, match=f"rerank must be at least 1 candidate, got {rerank}"):
        student({"itc": 1}, rerank=rerank)


def test_what_needs_a_fusion_encoder_says_so() -> None:
    needing: list[tuple[dict[str, float], dict[str, Any]]] = [
        ({"itc": 1}, {"rerank": 5}),
        ({"itm": 1}, {}),
        ({"kd": 1}, {"relation": "fused"}),
        ({"kd": 1}, {"relation": {"averaged": 1.0, "fused": 0.5}}),
    ]
    for weights, options in needing:
        with pytest.raises(ValueError, match=r"needs a fusion encoder: configure encoder\.fusion"):
            student(weights, fusion=False, **options)
    student({"kdi": 1}, fusion=False, relation="fused")  # reads no student at all


@pytest.mark.parametrize("option", [{"gather": "all"}, {"negatives": "batch"}])
def test_unknown_words(option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gather is exact or albef and negatives local or global"):
        student(**option)


def test_a_non_finite_score_is_told() -> None:
    module = student({"itc": 1, "itm": 1}, rerank=3)
    assert module.encoder.fusion is not None
    torch.nn.init.constant_(module.encoder.fusion.head[3].bias, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matching scores are not finite"):
        trainer().test(module, datamodule=data_module(), verbose=False)
