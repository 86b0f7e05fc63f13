"""Re-ranking against brute force, which scores all pairs one at a time."""

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
    """Cosines and matching scores, both (images, captions), and the image of each caption."""

    cosines: list[list[float]]
    scores: list[list[float]]
    caption_image: list[int]


@torch.no_grad()
def brute_force(module: RetrievalModule, data: RetrievalDataModule) -> Truth:
    """Encode all items and fuse all pairs one at a time, without padding."""
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
    """Re-rank the top k by cosine of each query, and return the rank of the first positive."""
    found = []
    for cosine, score, right in zip(cosines, scores, positive, strict=True):
        order = sorted(range(len(cosine)), key=lambda j: -cosine[j])
        order = sorted(order[:k], key=lambda j: -score[j]) + order[k:]
        found.append(next(place for place, j in enumerate(order) if right[j]))
    return found


def expected_metrics(truth: Truth, k: int) -> dict[str, float]:
    right = [[image == caption_image for caption_image in truth.caption_image] for image in range(len(truth.scores))]
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
    """Number of encoded images and captions, and of scored pairs."""

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


def expected_pairs(truth: Truth, k: int) -> int:
    """Return the number of pairs among the top k of at least one direction."""

    def first(rows: list[list[float]]) -> list[list[int]]:
        return [sorted(range(len(row)), key=lambda j: -row[j])[:k] for row in rows]

    wanted = {(image, text) for image, texts in enumerate(first(truth.cosines)) for text in texts}
    wanted |= {(image, text) for text, images in enumerate(first(transposed(truth.cosines))) for image in images}
    return len(wanted)


@pytest.mark.parametrize("k", [3, 1000])
def test_metrics_equal_brute_force(k: int) -> None:
    metrics, counted, module, data = run_test(k)
    truth = brute_force(module, data)
    assert {name: metrics[name] for name in metrics if name.startswith("reranked_")} == pytest.approx(
        expected_metrics(truth, k), abs=1e-9
    )
    assert counted == (20, 48, expected_pairs(truth, k))  # each item is encoded for cosine and for re-ranking


def test_cosine_metrics_are_unchanged_by_reranking() -> None:
    with_it, without = run_test(3)[0], run_test(None)[0]
    assert not [name for name in without if name.startswith("reranked_")]
    assert {name: value for name, value in with_it.items() if not name.startswith("reranked_")} == without
    changed = [name for name in ("i2t_MRR", "t2i_MRR") if with_it[f"reranked_{name}"] != with_it[name]]
    assert changed == ["i2t_MRR", "t2i_MRR"]


def test_metrics_do_not_depend_on_embedding_norms() -> None:
    """Embeddings of low precision are normalised only approximately."""
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(10).repeat_interleave(torch.tensor(COUNTS))
    image, text = torch.randn(10, 6, generator=generator), torch.randn(24, 6, generator=generator)
    image, text = torch.nn.functional.normalize(image), torch.nn.functional.normalize(text)
    rescored = Rescored(
        *(TopK(torch.zeros(len(one), 1), top_k(one, two, 1).items) for one, two in ((image, text), (text, image)))
    )
    longer = torch.linspace(1, 3, 24)[:, None]
    assert reranked_metrics(image, text * longer, index, rescored) == reranked_metrics(image, text, index, rescored)


def test_undefined_metrics_are_not_logged() -> None:
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


def test_captions_are_stored_without_padding() -> None:
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


def test_take_one_caption() -> None:
    captions = Captions(torch.arange(6.0)[:, None], torch.tensor([0, 2, 3, 6]))
    taken = captions.take(torch.tensor([1]), torch.device("cpu"))
    assert taken.tokens is not None
    assert taken.tokens.tolist() == [[[2.0]]]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rerank": 0}, "rerank must be at least 1 candidate, got 0"),
        ({"gather": "all"}, "gather is exact or albef and negatives local or global"),
        ({"negatives": "batch"}, "gather is exact or albef and negatives local or global"),
        ({"positives": "text"}, "positives is image or image_or_text, got 'text'"),
    ],
)
def test_invalid_options_are_rejected(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        student({"itc": 1}, **option)


def test_missing_fusion_encoder_is_rejected() -> None:
    needing: list[tuple[dict[str, float], dict[str, Any]]] = [
        ({"itc": 1}, {"rerank": 5}),
        ({"itm": 1}, {}),
        ({"kd": 1}, {"relation": "fused"}),
        ({"kd": 1}, {"relation": {"averaged": 1.0, "fused": 0.5}}),
    ]
    for weights, options in needing:
        with pytest.raises(ValueError, match=r"needs a fusion encoder: configure encoder\.fusion"):
            student(weights, fusion=False, **options)
    student({"kdi": 1}, fusion=False, relation="fused")  # kdi does not use the student's relation


def test_non_finite_scores_are_rejected() -> None:
    module = student({"itc": 1, "itm": 1}, rerank=3)
    assert module.encoder.fusion is not None
    torch.nn.init.constant_(module.encoder.fusion.head[3].bias, torch.nan)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="matching scores are not finite"):
        trainer().test(module, datamodule=data_module(), verbose=False)
