import json
import shutil
from pathlib import Path

import pytest

from sdr_lightning.reporting.claims import compare_claims, summarise
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.reporting.notes import caveats
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition, Study
from tests.reporting.fake_study import PLACEBO, edit_json, folder, realised_of, write_study

HARD = Condition("mismatch", 0.6)


def with_rsums(root: Path, differences: dict[str, tuple[float, ...]]) -> Study:
    """A study in which SDR − ITC in rsum is given, by imbalance, seed by seed (recalls left out)."""
    write_study(root, ratios=(0, 0.6))
    for imbalance, values in differences.items():
        for seed, difference in enumerate(values):
            at = folder(root, "ITC", imbalance, 0.6 if imbalance != "none" else 0, seed)
            other = folder(root, "SDR", imbalance, 0.6 if imbalance != "none" else 0, seed)
            level = 100.0 + 50 * seed  # the seeds differ far more than the methods: only pairing shows it
            edit_json(at / "results.json", metrics={"rsum": level})
            edit_json(other / "results.json", metrics={"rsum": level + difference})
    return load_study(root)


def test_verdicts_in_all_directions(tmp_path: Path) -> None:
    study = with_rsums(tmp_path, {"none": (-5.0, -6.0, -5.5), "mismatch": (5.0, 6.0, 5.5)})
    below, above = compare_claims(study)["Cross-modal retrieval"]
    assert (below.verdict, above.verdict) == ("not supported", "supported")
    assert above.difference.mean == 5.5
    summary = " ".join(summarise(study))
    assert "of 2 comparisons: supported in 1 (mismatch 60\u00a0%), not supported in 1 (no imbalance)." in summary
    # Half of the interval: t(2, 0.975) * 0.5 / sqrt(3).
    assert "mean rsum is 155.5 with SDR and 150.0 with ITC, a paired difference of +5.5 [4.3, 6.7]." in summary


def test_undecided_is_said_as_undecided(tmp_path: Path) -> None:
    study = with_rsums(tmp_path, {"none": (-5.0, 6.0, 1.0), "mismatch": (5.0, -6.0, 2.0)})
    assert "undecided in 2 (no imbalance, mismatch 60\u00a0%)." in " ".join(summarise(study))


def test_one_pair_decides_nothing(tmp_path: Path) -> None:
    write_study(tmp_path)
    for method, seed in (("SDR", 0), ("ITC", 1)):
        shutil.rmtree(folder(tmp_path, method, "mismatch", 0.6, seed))
    study = load_study(tmp_path)
    comparison = compare_claims(study)["Cross-modal retrieval"][1]
    assert comparison.condition == HARD
    assert comparison.difference.n == 1
    assert comparison.verdict == "undecided"
    assert "Only 10 of 12 runs are in." in summarise(study)[0]


def test_whoever_is_best_is_named(tmp_path: Path) -> None:
    write_study(tmp_path, methods=("ITC", "SDR", PLACEBO))
    for seed in (0, 1, 2):
        path = folder(tmp_path, PLACEBO, "mismatch", 0.6, seed) / "results.json"
        metrics = {key: 90.0 for key in json.loads(path.read_text())["metrics"] if "_R@" in key}
        edit_json(path, metrics=metrics | {"rsum": 540.0})
    assert f"of the 3 methods, {PLACEBO} has the highest mean." in summarise(load_study(tmp_path))[-1]


def test_different_corruption_within_a_pair_is_said(tmp_path: Path) -> None:
    write_study(tmp_path)
    realised = realised_of("mismatch", 0.6, 1, measured=False) | {"sha256": "other"}
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json", realised=realised)
    doubts = [note for note in caveats(load_study(tmp_path)) if "pairing is in doubt" in note]
    assert len(doubts) == 1
    assert doubts[0].startswith("mismatch 60\u00a0%, seed 1: ")


def test_imbalanced_evaluation_data_is_said(tmp_path: Path) -> None:
    write_study(tmp_path)
    noisy = {"test": realised_of("gaussian_noise", 0.5, 0, measured=False)}
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json", evaluated_under=noisy)
    (said,) = [note for note in caveats(load_study(tmp_path)) if "evaluation data" in note]
    assert said == "The evaluation data is imbalanced in 1 of 12 runs: test: gaussian_noise, 10000 of 20000."


def test_the_degree_is_the_mean_over_seeds_that_measured_it(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, extras=True))
    assert study.degree(Condition("mismatch", 0.6)) == pytest.approx(0.3 + 0.5 * 0.6 + 0.05 + 0.01)
    assert load_study(write_study(tmp_path / "plain")).degree(Condition("mismatch", 0.6)) is None


def test_claims_without_metrics_are_left_out(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, ndcg=False))
    assert list(compare_claims(study)) == ["Cross-modal retrieval"]
    assert RSUM.present(study)
