from itertools import pairwise

import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics import FactRelevance, RougeLRelevance, evaluate
from sdr_lightning.metrics.cross_modal import cross_modal_rankings, modality_gap, summarise_both
from sdr_lightning.metrics.evaluation import cross_modal, cross_modal_folds, evaluate_queries, num_scores
from sdr_lightning.metrics.graded import graded_queries, means
from sdr_lightning.metrics.scores import score_folds


@pytest.fixture
def problem():
    """Ragged captions in any order, embeddings of any length."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 7, (30,), generator=generator)
    index = torch.arange(30).repeat_interleave(counts)
    index = index[torch.randperm(len(index), generator=generator)]
    images = torch.randn(30, 12, generator=generator) * 3
    texts = images[index] * 0.1 + torch.randn(len(index), 12, generator=generator)
    facts = torch.randint(0, 3, (30, 6), generator=generator)
    return images, texts, index, FactRelevance(facts, facts[index])


def test_is_the_sum_of_its_parts_on_normalised_embeddings(problem):
    images, texts, index, relevance = problem
    parts = (normalize(images), normalize(texts))
    expected = summarise_both(*cross_modal_rankings(*parts, index))
    expected |= {"modality_gap": modality_gap(*parts)} | means(graded_queries(*parts, relevance))
    found = evaluate(images, texts, index, relevance)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-6)
    recalls = [found[f"{way}_R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert found["rsum"] == pytest.approx(sum(recalls))


def test_queries_average_to_the_metrics(problem):
    images, texts, index, relevance = problem
    done = []
    metrics, queries = evaluate_queries(images, texts, index, relevance, advance=done.append)
    assert sum(done) == num_scores(len(images), len(texts), graded=True)
    assert queries.pop("t2i_rank").lt(5).double().mean() * 100 == metrics["t2i_R@5"]
    assert queries.pop("i2t_rank").lt(1).double().mean() * 100 == metrics["i2t_R@1"]
    assert len(queries) == 8 * 4
    for key, values in queries.items():
        assert len(values) == (len(images) if key.removeprefix("centred_").startswith("i") else len(texts))
        assert values.nanmean().item() == pytest.approx(metrics[key])


def test_without_relevance_there_is_no_ndcg(problem):
    images, texts, index, relevance = problem
    found = cross_modal(images, texts, index)
    assert not any("NDCG" in key for key in found)
    assert found == evaluate(images, texts, index)
    assert found.items() <= evaluate(images, texts, index, relevance).items()


def test_folds_are_means_over_disjoint_galleries(problem):
    for folds in [1, 3, 7]:
        images, texts, index, _ = problem
        bounds = [round(sum(30 // folds + (f < 30 % folds) for f in range(k))) for k in range(folds + 1)]
        each = []
        for first, end in pairwise(bounds):
            rows = [c for c, image in enumerate(index.tolist()) if first <= image < end]
            each.append(cross_modal(images[first:end], texts[rows], index[rows] - first))
        found = cross_modal_folds(images, texts, index, folds)
        assert found.keys() == {f"{folds}fold_{key}" for key in each[0]}
        for key in each[0]:
            assert found[f"{folds}fold_{key}"] == pytest.approx(sum(fold[key] for fold in each) / folds)
        scores = normalize(images) @ normalize(texts).T
        of_scores = score_folds(scores, scores.T, index, folds)
        assert of_scores == pytest.approx({key: found[key] for key in of_scores})
        assert found.keys() - of_scores.keys() == {f"{folds}fold_modality_gap"}


def test_impossible_folds(problem):
    for folds in [0, 31]:
        with pytest.raises(ValueError, match=f"folds must be from 1 to the 30 images, got {folds}"):
            cross_modal_folds(*problem[:3], folds)


def test_any_chunk_size(problem):
    for chunk_size in [1, 4, 29, 10_000]:
        assert evaluate(*problem, chunk_size=chunk_size) == evaluate(*problem)


def test_the_lengths_of_embeddings_do_not_matter(problem):
    images, texts, index, relevance = problem
    lengths = torch.logspace(-25, 18, len(images))[:, None]  # whose fp32 squares under- and overflow
    assert evaluate(images * lengths, texts, index, relevance) == pytest.approx(evaluate(*problem), rel=1e-5)


def test_half_precision_is_ranked_in_fp32(problem):
    images, texts, index, relevance = problem
    images, texts = images.half(), texts.half()
    assert evaluate(images, texts, index, relevance) == evaluate(images.float(), texts.float(), index, relevance)


def test_permuting_the_items_changes_nothing(problem):
    images, texts, index, _ = problem
    generator = torch.Generator().manual_seed(5)
    image_order = torch.randperm(len(images), generator=generator)
    text_order = torch.randperm(len(texts), generator=generator)
    moved = image_order.argsort()[index][text_order]
    assert evaluate(images[image_order], texts[text_order], moved) == pytest.approx(evaluate(images, texts, index))


def test_a_perfect_model(problem):
    images, _, index, _ = problem
    found = evaluate(images, images[index], index, ties="pessimistic")
    assert found["rsum"] == 600.0
    assert found["t2i_MnR"] == found["i2t_MRR"] == 1.0


def test_a_collapsed_model_is_at_chance(problem):
    _, _, index, _ = problem
    same = torch.tensor([[0.3, -0.2, 0.7]])
    collapsed = same.expand(30, 3), same.expand(len(index), 3), index
    found = evaluate(*collapsed)
    assert found["t2i_tie_rate"] == found["i2t_tie_rate"] == 1.0
    assert found["t2i_R@1"] == pytest.approx(100 * (index == 0).double().mean().item())  # image 0 always wins
    assert found["i2t_R@1"] == pytest.approx(100 / 30)
    assert found["modality_gap"] == pytest.approx(0.0, abs=1e-6)
    assert evaluate(*collapsed, ties="pessimistic")["rsum"] == 0.0


def test_rouge_l_end_to_end():
    captions = ["a red dog", "the red dog", "a blue cat", "a red dog runs", "two birds"]
    index = torch.tensor([0, 0, 1, 2, 3])
    found = evaluate(torch.eye(4), torch.eye(4)[index], index, RougeLRelevance(captions, index, 4), ndcg_at=(1,))
    assert found["t2it_NDCG@1"] == 100.0  # its image, the first in the gallery, has relevance 1
    assert found["t2i_R@1"] == 100.0


@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf])
def test_unusable_embeddings_are_counted_and_located(problem, bad):
    images, texts, index, _ = problem
    texts[[4, 9]] = bad
    message = rf"2 of {len(texts)} text embeddings are all zero or not finite, the first is row 4"
    with pytest.raises(ValueError, match=message):
        evaluate(images, texts, index)


def test_errors(problem):
    images, texts, index, _ = problem
    with pytest.raises(ValueError, match=r"not \(30, 12\) and \(\d+, 11\)"):
        evaluate(images, texts[:, 1:], index)
    with pytest.raises(ValueError, match="one per text"):
        evaluate(images, texts, index[1:])
    with pytest.raises(ValueError, match="float32"):
        evaluate(images, texts, index.float())
    with pytest.raises(ValueError, match=r"in \[0, 29\), found 0 to 29"):
        evaluate(images[:29], texts, index)
    with pytest.raises(ValueError, match="1 of 31 images have no caption, the first is image 30"):
        evaluate(torch.cat((images, images[:1])), texts, index)
    with pytest.raises(ValueError, match="found 30 and 0"):
        evaluate(images, texts[:0], index[:0])
