import json
import shutil
from pathlib import Path

import pytest

from sdr_lightning.reporting.notes import caveats
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition
from tests.reporting.fake_study import edit_json, folder, metrics_of, write_study


def test_ratio_0_is_one_condition_of_every_imbalance(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, imbalances=("mismatch", "missing_words"), ratios=(0, 0.3, 0.6)))
    assert study.conditions[0] == Condition("none", 0.0)
    assert len(study.conditions) == 5
    assert study.num_expected == len(study.runs) == 2 * 5 * 3
    at_zero = [Condition.of(name, 0) for name in study.imbalances]
    values = [RSUM.by_seed(study, "SDR", condition) for condition in at_zero]
    assert values[0] == values[1] == {s: metrics_of("SDR", "none", 0.0, s)["rsum"] for s in (0, 1, 2)}


def test_an_imbalance_named_at_ratio_0_means_none(tmp_path: Path) -> None:
    write_study(tmp_path)
    edit_json(folder(tmp_path, "SDR", "none", 0, 1) / "results.json", imbalance="mismatch")
    assert len(load_study(tmp_path).runs) == 12


def test_the_hardest_condition_of_each_imbalance(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, imbalances=("mismatch", "missing_words"), ratios=(0.6, 0, 0.3)))
    assert study.hardest == (Condition("mismatch", 0.6), Condition("missing_words", 0.6))
    assert study.ratios == (0, 0.3, 0.6)


def test_means_of_two_tasks(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    metrics = metrics_of("SDR", "mismatch", 0.6, 1)
    run = study.runs["SDR", Condition("mismatch", 0.6), 1]
    assert SINGLE_MODAL.value(run) == pytest.approx((metrics["i2i_NDCG@10"] + metrics["t2t_NDCG@10"]) / 2)
    assert MIXED.value(run) == pytest.approx((metrics["i2it_NDCG@10"] + metrics["t2it_NDCG@10"]) / 2)


def test_missing_cells_and_missing_metrics_are_gaps(tmp_path: Path) -> None:
    write_study(tmp_path)
    shutil.rmtree(folder(tmp_path, "SDR", "mismatch", 0.6, 1))
    path = folder(tmp_path, "SDR", "mismatch", 0.6, 2) / "results.json"
    metrics = json.loads(path.read_text())["metrics"]
    edit_json(path, metrics=metrics | {"i2i_NDCG@10": float("nan"), "t2t_NDCG@10": None})
    study = load_study(tmp_path)
    condition = Condition("mismatch", 0.6)
    assert list(RSUM.by_seed(study, "SDR", condition)) == [0, 2]
    assert list(SINGLE_MODAL.by_seed(study, "SDR", condition)) == [0]
    assert len(study.runs) == study.num_expected - 1


def test_a_run_off_the_grid_is_left_out_and_named(tmp_path: Path) -> None:
    write_study(tmp_path)
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json", seed=17)
    study = load_study(tmp_path)
    assert study.foreign == (Path("cells/mismatch-0.6/SDR/seed-1"),)
    assert len(study.runs) == study.num_expected - 1


def test_runs_of_other_code_are_left_out_and_named(tmp_path: Path) -> None:
    """As after a study was interrupted, its code changed, and it was continued."""
    write_study(tmp_path, seeds=(0, 1), extras=True)
    edit_json(tmp_path / "study.json", code="new")
    for path in tmp_path.glob("cells/**/results.json"):
        edit_json(path, code="new" if "seed-0" in str(path) else "old")
    edit_json(tmp_path / "teachers/image/teacher.json", code="new")
    study = load_study(tmp_path)
    assert {seed for _, _, seed in study.runs} == {0}
    assert {path.name for path in study.outdated} == {"seed-1"}
    assert [teacher.modality for teacher in study.teachers] == ["image"]
    notes = " ".join(caveats(study))
    assert "4 of 8 runs are missing" in notes
    assert "Made with other code than the rest" in notes


def test_optional_files_and_fields_may_be_absent(tmp_path: Path) -> None:
    write_study(tmp_path)
    path = folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if k in ("method", "imbalance", "ratio", "seed")}
    path.write_text(json.dumps(kept | {"metrics": {}}))
    study = load_study(tmp_path)
    run = study.runs["SDR", Condition("mismatch", 0.6), 1]
    assert (run.realised, run.wall_time_s, run.commit, run.dirty) == (None, None, "", False)
    assert study.teachers == ()


def test_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no study in {tmp_path}: run sdr reproduce first"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"method": 3}, "'method' must be a string, found 3"),
        ({"ratio": None}, "'ratio' must be a finite number, found None"),
        ({"seed": 0.5}, "'seed' must be a whole number, found 0.5"),
        ({"imbalance": "none"}, "'imbalance' must be named at ratio 0.6, found 'none'"),
        ({"metrics": [1]}, r"'metrics' must be an object, found \[1\]"),
        ({"metrics": {"rsum": "high"}}, "metrics: 'rsum' must be a finite number, found 'high'"),
        ({"metrics": {"i2t_R@1": 101.0}}, "metrics: 'i2t_R@1' must be in percent, from 0 to 100, found 101"),
        ({"git": {"dirty": "yes"}}, "git: 'dirty' must be true or false, found 'yes'"),
    ],
)
def test_a_malformed_result_names_its_file(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    write_study(tmp_path)
    path = folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json"
    edit_json(path, **change)
    with pytest.raises(ValueError, match=rf"^{path}: {complaint}"):
        load_study(tmp_path)


def test_broken_json_names_its_file(tmp_path: Path) -> None:
    path = folder(write_study(tmp_path), "SDR", "mismatch", 0.6, 1) / "results.json"
    path.write_text('{"method": ')
    with pytest.raises(ValueError, match=rf"^{path}: not valid JSON \(Expecting value, line 1\)"):
        load_study(tmp_path)


def test_rsum_must_be_the_sum_of_the_recalls(tmp_path: Path) -> None:
    path = folder(write_study(tmp_path), "SDR", "mismatch", 0.6, 1) / "results.json"
    metrics = json.loads(path.read_text())["metrics"]
    edit_json(path, metrics=metrics | {"rsum": metrics["rsum"] / 100})
    with pytest.raises(ValueError, match=r"'rsum' must be the sum of the six recalls, \d+\.\d\d, found"):
        load_study(tmp_path)


def test_two_folders_with_the_same_run(tmp_path: Path) -> None:
    write_study(tmp_path)
    at = folder(tmp_path, "SDR", "mismatch", 0.6, 1)
    shutil.copytree(at, at.with_name("copy"))
    with pytest.raises(ValueError, match=r"the same run is also in .*copy; delete one of the two"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"candidate": "SRD"}, "'candidate' must be one of the methods ITC, SDR, found 'SRD'"),
        ({"seeds": []}, "'seeds' is empty, so there is nothing to report"),
        ({"notes": ["a", 1]}, "'notes' must be a list of strings"),
    ],
)
def test_a_malformed_study(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    edit_json(write_study(tmp_path) / "study.json", **change)
    with pytest.raises(ValueError, match=rf"study\.json: {complaint}"):
        load_study(tmp_path)
