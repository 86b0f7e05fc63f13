"""Protocol paper against the definitions of the public code, in loops; and each of its differences from protocol clean."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.functional.search import similarity
from sdr_lightning.metrics.evaluation import evaluate
from sdr_lightning.metrics.paper_protocol import evaluate_published, first_five
from sdr_lightning.metrics.relevance import CaptionRelevance
from tests.reference import public_metric

N = 30


@pytest.fixture
def problem():
    """Five captions an image, some images with a sixth at the end, which does not count."""
    generator = torch.Generator().manual_seed(0)
    index = torch.cat([torch.arange(N).repeat_interleave(5), torch.tensor([3, 7])])
    images = normalize(torch.randn(N, 8, generator=generator))
    texts = normalize(images[index] + 0.7 * torch.randn(len(index), 8, generator=generator))
    rouge = torch.rand(len(index), N, generator=generator) * (torch.rand(len(index), N, generator=generator) > 0.5)
    rouge[torch.arange(len(index)), index] = 1.0
    return images, texts, index, CaptionRelevance(rouge.numpy(), index, "table")


def literal(images, texts, rouge, i2t, t2i):
    image_cosines, text_cosines = similarity(images, images).tolist(), similarity(texts, texts).tolist()
    expected = {}
    for k in (10, 20, 50):
        expected[f"i2i_NDCG@{k}"] = public_metric.i2i(image_cosines, rouge, k)
        expected[f"t2t_NDCG@{k}"] = public_metric.t2t(text_cosines, rouge, k)
        expected[f"i2it_NDCG@{k}"] = public_metric.i2it(image_cosines, i2t, rouge, k)
        expected[f"t2it_NDCG@{k}"] = public_metric.t2it(text_cosines, t2i, rouge, k)
    return expected


@pytest.mark.parametrize("scores", ["cosines", "logits"])
def test_equals_the_definitions(problem, scores):
    images, texts, index, relevance = problem
    rouge = relevance.rows("text", "image", slice(0, 5 * N)).tolist()
    given = ()
    if scores == "logits":  # -100 for what was not re-scored, and two directions that differ
        generator = torch.Generator().manual_seed(1)
        i2t, t2i = (
            3 * torch.randn(N, len(index), generator=generator),
            3 * torch.randn(len(index), N, generator=generator),
        )
        i2t[i2t < 1], t2i[t2i < 0] = -100, -100
        given = (i2t, t2i)
    found = evaluate_published(images, texts, index, relevance, *given)
    i2t, t2i = given or (similarity(images, texts), similarity(texts, images))
    expected = literal(images, texts[: 5 * N], rouge, i2t[:, : 5 * N].tolist(), t2i[: 5 * N].tolist())
    assert {key: value for key, value in found.metrics.items() if "NDCG" in key} == pytest.approx(expected)
    assert len(found.queries["t2i_rank"]) == 5 * N
    assert len(found.queries["t2t_NDCG@10"]) == N


def test_scores_of_other_sizes_or_beyond_fp64_are_refused(problem):
    for scores in [torch.zeros(N, 5 * N), torch.full((N, 5 * N + 2), 2**53 + 1), torch.zeros(5 * N + 2, N)]:
        with pytest.raises(
            ValueError, match=r"i2t scores are .*, expected \(30, 152\) of floats, or of integers up to 2\^53"
        ):
            evaluate_published(*problem, scores)


def test_scores_in_fp64_are_not_rounded(problem):
    images, texts, index, _ = problem
    scores = 1 + 1e-12 * (index == torch.arange(N)[:, None]).double()
    assert evaluate_published(images, texts, index, None, scores, scores.T).metrics["rsum"] == 600


def test_recall_is_of_the_first_five_captions(problem):
    images, texts, index, _ = problem
    found = evaluate_published(images, texts, index).metrics
    assert not any("NDCG" in key for key in found)
    assert found == pytest.approx(evaluate(images, texts[: 5 * N], index[: 5 * N]))


def test_captions_may_come_in_any_order(problem):
    images, texts, index, relevance = problem
    order = index.argsort(stable=True)
    moved = CaptionRelevance(
        relevance.rows("text", "image", slice(0, len(index)))[order].numpy(), index[order], "moved"
    )
    found = evaluate_published(images, texts[order], index[order], moved).metrics
    assert found == pytest.approx(evaluate_published(images, texts, index, relevance).metrics)


def test_the_query_stays_in_mixed_galleries(problem):
    """With itself in front, at relevance 1, an image asked among images and captions does better than it should."""
    images, texts, index, relevance = problem
    paper, clean = (
        evaluate_published(images, texts, index, relevance).metrics,
        evaluate(images, texts, index, relevance),
    )
    assert paper["i2it_NDCG@10"] > clean["i2it_NDCG@10"]
    assert not any("_exp@" in key or key.startswith(("i2t_NDCG", "t2i_NDCG")) for key in paper)


def test_query_without_relevant_items_counts_as_zero(problem):
    images, texts, index, _ = problem
    rouge = np.zeros((len(index), N), np.float32)
    rouge[0, 1] = 1  # only the first caption of image 0 is relevant, to image 1
    found = evaluate_published(images, texts, index, CaptionRelevance(rouge, index, "one"))
    assert (found.queries["i2i_NDCG@50"] > 0).sum() == 1
    assert found.metrics["i2i_NDCG@50"] == pytest.approx(found.queries["i2i_NDCG@50"].sum().item() / N)


def test_fewer_than_five_captions_are_refused():
    with pytest.raises(ValueError, match=r"1 images have fewer, the first is image 1 with 4: use protocol clean"):
        first_five(torch.tensor([0] * 5 + [1] * 4), 2)
