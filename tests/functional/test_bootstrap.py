import math

import numpy as np
import pytest

from sdr_lightning.functional import bootstrap
from sdr_lightning.functional.bootstrap import bootstrap_mean, by_image, interval, mean_over_seeds


def random_problem(seeds=3, images=20, metrics=4, seed=0):
    """Sums and counts (seeds, images, metrics); some images have no query."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 5, (1, images, metrics)).repeat(seeds, 0).astype(float)
    return rng.normal(50, 10, (seeds, images, metrics)) * counts, counts


def slow_bootstrap(sums, counts, replicates, seed):
    """One replicate and one image at a time, from the same draws."""
    image_draws, seed_draws = np.random.default_rng([seed, 0]), np.random.default_rng([seed, 1])
    seeds, images, metrics = sums.shape
    drawn_images = [image_draws.integers(images, size=images) for _ in range(replicates)]
    drawn_seeds = [seed_draws.integers(seeds, size=seeds) for _ in range(replicates)]
    rows = []
    for chosen, chosen_seeds in zip(drawn_images, drawn_seeds, strict=True):
        row = []
        for metric in range(metrics):
            means = [
                sum(sums[s, i, metric] for i in chosen) / sum(counts[s, i, metric] for i in chosen)
                for s in chosen_seeds
            ]
            row.append(math.fsum(means) / seeds)
        rows.append(row)
    return np.array(rows)


def test_queries_are_added_up_by_image():
    sums, counts = by_image(np.array([1.0, np.nan, 4.0, 2.0]), np.array([2, 0, 2, 1]), 4)
    assert sums.tolist() == [0, 2, 5, 0]
    assert counts.tolist() == [0, 1, 2, 0]


def test_the_estimate_is_the_mean_over_seeds_of_the_mean_over_queries():
    sums, counts = np.array([[[2.0], [4.0]], [[1.0], [1.0]]]), np.array([[[1.0], [2.0]], [[1.0], [1.0]]])
    assert mean_over_seeds(sums, counts).tolist() == [1.5]


@pytest.mark.parametrize(("seeds", "chunk_elements"), [(1, 100), (3, 1), (3, 2**22)])
def test_equals_a_slow_loop_for_any_chunk(monkeypatch, seeds, chunk_elements):
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", chunk_elements)
    sums, counts = random_problem(seeds)
    found = bootstrap_mean(sums, counts, replicates=37, seed=5)
    assert found.shape == (37, 4)
    np.testing.assert_allclose(found, slow_bootstrap(sums, counts, 37, 5), rtol=1e-12)


def test_is_a_function_of_its_seed():
    sums, counts = random_problem()
    assert np.array_equal(bootstrap_mean(sums, counts, 50, seed=1), bootstrap_mean(sums, counts, 50, seed=1))
    assert not np.array_equal(bootstrap_mean(sums, counts, 50, seed=1), bootstrap_mean(sums, counts, 50, seed=2))


def test_draws_do_not_depend_on_the_metrics():
    sums, counts = random_problem()
    alone = bootstrap_mean(sums[..., :1], counts[..., :1], 50)
    np.testing.assert_allclose(alone, bootstrap_mean(sums, counts, 50)[:, :1], rtol=1e-12)


def test_difference_of_a_system_to_itself_is_zero():
    sums, counts = random_problem()
    difference = bootstrap_mean(sums, counts) - bootstrap_mean(sums.copy(), counts.copy())
    assert (difference == 0).all()


def test_paired_difference_of_a_constant_shift_is_constant():
    sums, counts = random_problem(1, 200, 1)
    better = bootstrap_mean(sums + counts, counts) - bootstrap_mean(sums, counts)
    np.testing.assert_allclose(better, 1, rtol=1e-10)


def test_seeds_widen_the_interval():
    sums, counts = random_problem(1, 200, 1)
    shifted = np.concatenate((sums - 5 * counts, sums, sums + 5 * counts))
    low, high = interval(bootstrap_mean(sums, counts))
    lower, higher = interval(bootstrap_mean(shifted, counts.repeat(3, 0)))
    assert lower < low - 1
    assert higher > high + 1


def clustered(rng, images, queries=5):
    """Values (images * queries,) around 50, with as much spread among images as within one, and their images."""
    values = 50 + rng.normal(0, 10, (images, 1)) + rng.normal(0, 10, (images, queries))
    return values.ravel(), np.arange(images).repeat(queries)


def ends(values, image, images, replicates=500, seed=0):
    sums, counts = by_image(values, image, images)
    low, high = interval(bootstrap_mean(sums[None, :, None], counts[None, :, None], replicates, seed))
    return low[0], high[0]


def test_intervals_have_the_nominal_coverage():
    rng = np.random.default_rng(0)
    covered = 0
    for repetition in range(200):
        low, high = ends(*clustered(rng, 150), 150, seed=repetition)
        covered += low <= 50 <= high
    assert 0.90 <= covered / 200 <= 0.985


def test_width_equals_the_normal_approximation():
    values, image = clustered(np.random.default_rng(1), 400, queries=1)
    low, high = ends(values, image, 400, replicates=4000)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_repeating_each_caption_adds_no_evidence():
    values, image = clustered(np.random.default_rng(2), 100)
    once, five_times = ends(values, image, 100), ends(values.repeat(5), image.repeat(5), 100)
    assert five_times == pytest.approx(once, rel=1e-12)
    # Drawing captions as if each stood for itself would promise too much.
    alone = ends(values, np.arange(500), 500)
    assert alone[1] - alone[0] < 0.8 * (once[1] - once[0])


def test_replicate_without_a_defined_query_is_skipped():
    sums, counts = np.zeros((1, 3, 2)), np.zeros((1, 3, 2))
    sums[0, 0, 0], counts[0, 0, 0] = 7, 1
    replicates = bootstrap_mean(sums, counts, 100)
    assert np.isnan(replicates[:, 0]).any()
    low, high = interval(replicates)
    assert (low[0], high[0]) == (7, 7)
    assert np.isnan([low[1], high[1]]).all()


def test_invalid_arguments_are_refused():
    for sums, counts, replicates, message in [
        (np.ones((2, 3)), np.ones((2, 3)), 10, "must both be"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 4)), 10, r"\(1, 2, 3\) and \(1, 2, 4\)"),
        (np.ones((1, 0, 3)), np.ones((1, 0, 3)), 10, "found 1 and 0"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3)), 0, "at least 1, not 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            bootstrap_mean(sums, counts, replicates)


def test_confidence_out_of_range_is_refused():
    for confidence in [0, 1, 95]:
        with pytest.raises(ValueError, match="between 0 and 1"):
            interval(np.ones((3, 1)), confidence)
