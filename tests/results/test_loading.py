"""Reading the folder of a study, and the JSON form of its dataclasses."""

import json
import shutil
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.cli.report import run as report
from sdr_lightning.reporting.findings import scope
from sdr_lightning.reporting.notes import caveats
from sdr_lightning.reporting.pages.markdown import markdown_table
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL
from sdr_lightning.reporting.tables.study import chosen_table, spaces_table
from sdr_lightning.results.codec import from_json, to_json
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import (
    Condition,
    Run,
    Selected,
    Study,
    StudyMethod,
    StudyRecord,
    StudyStage,
    StudyTeacher,
    Swept,
    TeacherRecord,
    Trial,
)
from tests.reporting.fake_study import edit_json, folder, metrics_of, write_json, write_study


def written(value: Any) -> Any:
    return json.loads(json.dumps(to_json(value)))


def test_records_survive_json(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, extras=True))
    stage = StudyStage((Path("a.yaml"),), {"itc": 1.5}, {"x.y": [1, "b"]}, 3)
    record = StudyRecord(
        **{field.name: getattr(study, field.name) for field in fields(StudyRecord)}
        | {
            "methods": {**study.methods, "M": StudyMethod("M", (stage, stage), "placebo", "words", Swept("kd", 2.0))},
            "teachers": {"image": StudyTeacher((Path("t.yaml"),), True)},
            "equal_epochs": False,
        }
    )
    assert from_json(StudyRecord, written(record), "here") == record
    run = next(run for run in study.runs.values() if run.realised and run.realised.measured)
    run = replace(run, selected=Selected("val/rsum", None, 3, 8), curves={"val/rsum": {0: 1.5, 7: 2.0}})
    assert from_json(Run, written(run), "here", folder=run.folder) == run
    for teacher in study.teacher_records:
        assert from_json(TeacherRecord, written(teacher), "here") == teacher


def test_ratio_0_is_one_condition_of_every_corruption(tmp_path: Path) -> None:
    write_study(tmp_path, imbalances=("mismatch", "missing words"), ratios=(0.6, 0, 0.3))
    edit_json(folder(tmp_path, "SDR", "none", 0, 1) / "results.json", imbalance="mismatch")  # named, and at ratio 0
    study = load_study(tmp_path)
    assert study.conditions[0] == Condition("none", 0.0)
    assert len(study.conditions) == 5
    assert study.num_expected == len(study.runs) == 2 * 5 * 3
    at_zero = [RSUM.by_seed(study, "SDR", Condition.of(name, 0)) for name in study.imbalances]
    assert at_zero[0] == at_zero[1] == {s: metrics_of("SDR", "none", 0.0, s)["rsum"] for s in (0, 1, 2)}
    assert study.ratios == (0, 0.3, 0.6)
    assert study.hardest == (Condition("mismatch", 0.6), Condition("missing words", 0.6))


def test_means_of_two_tasks(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path))
    metrics = metrics_of("SDR", "mismatch", 0.6, 1)
    run = study.runs["SDR", Condition("mismatch", 0.6), 1]
    assert SINGLE_MODAL.value(run) == pytest.approx((metrics["i2i_NDCG@10"] + metrics["t2t_NDCG@10"]) / 2)
    assert MIXED.value(run) == pytest.approx((metrics["i2it_NDCG@10"] + metrics["t2it_NDCG@10"]) / 2)


def test_missing_cells_metrics_and_fields_are_gaps(tmp_path: Path) -> None:
    write_study(tmp_path)
    shutil.rmtree(folder(tmp_path, "SDR", "mismatch", 0.6, 1))
    path = folder(tmp_path, "SDR", "mismatch", 0.6, 2) / "results.json"
    metrics = json.loads(path.read_text())["metrics"] | {"i2i_NDCG@10": float("nan"), "t2t_NDCG@10": None}
    path.write_text(json.dumps({"method": "SDR", "imbalance": "mismatch", "ratio": 0.6, "seed": 2, "metrics": metrics}))
    study = load_study(tmp_path)
    condition = Condition("mismatch", 0.6)
    assert list(RSUM.by_seed(study, "SDR", condition)) == [0, 2]
    assert list(SINGLE_MODAL.by_seed(study, "SDR", condition)) == [0]
    run = study.runs["SDR", condition, 2]
    assert (run.realised, run.wall_time_s, run.commit, run.dirty) == (None, None, "", False)
    assert study.teacher_records == ()


@pytest.mark.parametrize(
    "change", [{"seed": 17}, {"protocol": "paper"}, {"method": "CLIP"}], ids=lambda c: next(iter(c))
)
def test_run_off_the_grid_is_left_out_and_named(tmp_path: Path, change: dict[str, Any]) -> None:
    write_study(tmp_path)
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json", **change)
    study = load_study(tmp_path)
    assert study.foreign == (Path("cells/mismatch-0.6/SDR/seed-1"),)
    assert len(study.runs) == study.num_expected - 1


def test_runs_of_other_code_are_in_no_number_and_the_report_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a study was interrupted, its code changed, and it was continued."""
    write_study(tmp_path, seeds=(0, 1), extras=True)
    edit_json(tmp_path / "study.json", code="new")
    for path in tmp_path.glob("cells/**/results.json"):
        edit_json(path, code="new" if "seed-0" in str(path) else "old")
    edit_json(tmp_path / "teachers/image/teacher.json", code="new")
    study = load_study(tmp_path)
    assert {seed for _, _, seed in study.runs} == {0}
    assert {path.name for path in study.outdated} == {"seed-1"}
    assert [teacher.modality for teacher in study.teacher_records] == ["image"]
    notes = " ".join(caveats(study))
    assert "4 of 8 runs are not finished" in notes
    assert "Made with other code or options than the rest" in notes
    assert report([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(
        "sdr report: 4 of 8 cells were made with other code or options than the study"
    )
    edit_json(tmp_path / "study.json", code="newer")
    with pytest.raises(
        ValueError, match="8 of 8 cells were made with other code or options than the study, and no cell with its"
    ):
        report([str(tmp_path)])


def tuned(root: Path) -> Path:
    """A tuned study: two trials a method, of which the second is the best under mismatch."""
    write_study(root, seeds=(0, 1), extras=True)
    study = json.loads((root / "study.json").read_text())
    space = {"a.rate": {"values": [1, 2]}}
    for method in study["methods"].values():
        method |= {"space": space, "points": [{}, {"a.rate": 2}], "code": method["name"]}
    edit_json(root / "study.json", methods=study["methods"], tuning={"trials": 3, "seed": 9})
    for path in root.glob("cells/**/results.json"):
        run = json.loads(path.read_text())
        edit_json(path, code=run["method"], options={"a.rate": 2} if run["ratio"] else {})
    for method, imbalance, number in product(("InfoNCE", "SDR"), ("none", "mismatch"), (0, 1)):
        trial = Trial(
            method=method,
            imbalance=imbalance,
            ratio=0.6 if imbalance == "mismatch" else 0,
            seed=9,
            number=number,
            options={"a.rate": 2} if number else {},
            selected=Selected("val/rsum", 100.0 + (number if imbalance == "mismatch" else -number), 1, 2),
            code=method,
        )
        write_json(root / f"trials/{method}/{imbalance}/{number}/trial.json", to_json(trial))
    return root


def tuning_section(study: Study) -> str:
    tables = [markdown_table(table) for table in (spaces_table(study), chosen_table(study)) if table]
    return "\n".join([scope(study), *tables])


def test_tuned_study_has_the_trials_of_its_points_and_the_runs_of_the_chosen_options(tmp_path: Path) -> None:
    mismatch = Condition("mismatch", 0.6)
    study = load_study(tuned(tmp_path))
    assert len(study.trials) == 8
    assert {key: trial.number for key, trial in study.chosen.items()} == {
        (method, condition): int(condition == mismatch)
        for method in ("InfoNCE", "SDR")
        for condition in study.conditions
    }
    assert not study.outdated
    text = tuning_section(study)
    assert "tuned with 3 trials for each method and condition, on validation data" in text
    assert "| InfoNCE | a.rate: 1, 2 | 2 its space has no more points |" in text
    assert "| SDR | a.rate 2 | 1 | 101.0 | 100.0 |" in text
    assert "| SDR | as configured | 0 | 100.0 | 100.0 |" in text

    lines = [json.dumps(to_json(trial)) for trial in study.trials]
    shutil.rmtree(tmp_path / "trials")
    (tmp_path / "trials.jsonl").write_text("\n".join(lines))
    again = load_study(tmp_path)
    assert [to_json(trial) for trial in again.trials] == [json.loads(line) for line in lines]

    other = folder(tmp_path, "SDR", "mismatch", 0.6, 1).relative_to(tmp_path)
    edit_json(tmp_path / other / "results.json", options={"a.rate": 1})
    assert load_study(tmp_path).outdated == (other,)
    spoiled = [json.loads(lines[-1]) | change for change in ({"options": {"a.rate": 3}}, {"seed": 8}, {"code": "old"})]
    for trial in spoiled:
        (tmp_path / "trials.jsonl").write_text("\n".join([*lines[:-1], json.dumps(trial)]))
        unfinished = load_study(tmp_path)
        assert len(unfinished.trials) == 7
        assert ("SDR", Condition("none", 0)) not in unfinished.chosen
        assert "| SDR | 1 of 2 trials are finished |" in tuning_section(unfinished)


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
        (
            {"metrics": metrics_of("SDR", "mismatch", 0.6, 1) | {"rsum": 3.0}},
            r"metrics: 'rsum' must be the sum of the six",
        ),
        ({"git": {"dirty": "yes"}}, "git: 'dirty' must be true or false, found 'yes'"),
        ({"realised": {"imbalances": [3]}}, r"realised: 'imbalances\[0\]' must be an object, found 3"),
    ],
    ids=["text", "number", "integer", "name", "object", "metric", "percent", "sum", "flag", "list"],
)
def test_malformed_result_names_its_file(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    write_study(tmp_path)
    path = folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json"
    edit_json(path, **change)
    with pytest.raises(ValueError, match=rf"^{path}: {complaint}"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (b'{"method": ', r"not valid JSON \(Expecting value, line 1\)"),
        (b"[]", "expected an object, found list"),
        (b"\xff", "not UTF-8"),
    ],
    ids=["broken", "list", "binary"],
)
def test_unreadable_result_names_its_file(tmp_path: Path, text: bytes, complaint: str) -> None:
    path = folder(write_study(tmp_path), "SDR", "mismatch", 0.6, 1) / "results.json"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^{path}: {complaint}"):
        load_study(tmp_path)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"candidate": "SRD"}, "candidate 'SRD' is not among the methods InfoNCE, SDR"),
        ({"seeds": []}, r"seeds must be given, each once, got \[\]"),
        ({"notes": ["a", 1]}, r"'notes\[1\]' must be a string, found 1"),
        (
            {"methods": {"InfoNCE": {"name": "InfoNCE"}}},
            "methods: InfoNCE: 'stages' must be a list, the key is missing",
        ),
    ],
    ids=["candidate", "seeds", "notes", "stages"],
)
def test_malformed_study_names_its_file(tmp_path: Path, change: dict[str, object], complaint: str) -> None:
    edit_json(write_study(tmp_path) / "study.json", **change)
    with pytest.raises(ValueError, match=rf"study\.json: {complaint}"):
        load_study(tmp_path)


def test_folder_without_a_study_and_a_run_in_two_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no study in {tmp_path}: run sdr reproduce first"):
        load_study(tmp_path)
    at = folder(write_study(tmp_path), "SDR", "mismatch", 0.6, 1)
    shutil.copytree(at, at.with_name("copy"))
    with pytest.raises(ValueError, match=r"the same run is also in .*copy; delete one of the two"):
        load_study(tmp_path)
