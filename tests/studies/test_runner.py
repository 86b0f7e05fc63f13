"""The folder of a study, published cells, and the progress that is printed; tests/e2e runs whole studies."""

import io
import json
import multiprocessing
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sdr_lightning.identity import sha256
from sdr_lightning.paths import write_json
from sdr_lightning.reporting.formatting import NBSP, condition_label
from sdr_lightning.reporting.running import Running
from sdr_lightning.results.codec import to_json
from sdr_lightning.results.schema import Condition, Data, Run, Selected, StudyTuning, TeacherRecord, Trial
from sdr_lightning.studies import jobs, progress, runner
from sdr_lightning.studies.plan import Cell, plan, plan_with_trials
from sdr_lightning.studies.runner import Runner
from sdr_lightning.studies.spec import read_study
from sdr_lightning.workers import Task

STUDY = read_study(Path(__file__).with_name("study.yaml"))
CELL = "cells/InfoNCE/mismatch-0.3/seed-0"
DATA = Data(name="scenes", splits={"train": "1", "val": "2", "test": "3"})


@pytest.fixture(autouse=True)
def pages(monkeypatch: pytest.MonkeyPatch) -> list[Running | None]:
    """How far the study was whenever its page was written; building pages is tested in tests/reporting."""
    written: list[Running | None] = []

    def write(folder: Path, running: Running | None = None) -> Path:
        written.append(running)
        return folder / "report.html"

    for module in (runner, progress):
        monkeypatch.setattr(module, "write_page", write)
    return written


class FakeWorkers:
    """Runs no process: tasks succeed at once, and cells leave their result."""

    def __init__(self, count: int) -> None:
        self.started: list[Task] = []
        self.has_free = True

    def __enter__(self) -> "FakeWorkers":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, name: str, *_: object) -> Any:
        return DATA if name == "data" else ["image"]

    def start(self, task: Task) -> None:
        self.started.append(task)
        self.has_free = False
        if task.function is jobs.run_cell and task.failure is None:
            cell = task.arguments[0]
            write_json(cell.result, to_json(result(cell, metrics={"rsum": 68.44})))
            write_json(cell.folder / "begun.json", {})

    def ended(self) -> list[Task]:
        self.has_free = True
        return self.started[-1:]


class FakeTrials(FakeWorkers):
    """Trials leave a result: the higher the number, the better."""

    def start(self, task: Task) -> None:
        super().start(task)
        if task.function is jobs.run_trial:
            leave(task.arguments[0])


def leave(trial: Cell, **changes: Any) -> None:
    values = {
        "code": trial.code,
        "fingerprint": trial.fingerprint,
        "data": {"train": "1", "val": "2"},
        "selected": Selected("val/rsum", float(trial.trial or 0), 0, 1),
    }
    record = Trial(
        method=trial.method,
        imbalance=trial.imbalance,
        ratio=trial.ratio,
        seed=trial.seed,
        number=trial.trial or 0,
        options=trial.options,
        **values | changes,
    )
    write_json(trial.result, to_json(record))
    write_json(trial.folder / "begun.json", {})


def study_runner(folder: Path, console: Console | None = None) -> Runner:
    return Runner(STUDY, plan(STUDY, folder), folder, 1, console)


def result(cell: Cell, **changes: Any) -> Run:
    values = {"code": cell.code, "fingerprint": cell.fingerprint, "data": DATA.splits, "metrics": {}} | changes
    return Run(method=cell.method, imbalance=cell.imbalance, ratio=cell.ratio, seed=cell.seed, **values)


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("study.json", "study.json exists and was not written by this command"),
        ("report.html", "report.html exists and was not written by this command"),
        ("figures/rsum.png", "rsum.png exists and was not written by this command"),
        (
            f"{CELL}/results.json",
            r"seed-0 has no begun\.json, so no job of this study wrote it: move it away, or choose",
        ),
        ("teachers/image/notes.txt", r"image has no begun\.json"),
    ],
)
def test_foreign_file_is_refused_before_the_work(tmp_path: Path, file: str, complaint: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=complaint):
        study_runner(tmp_path).run()
    assert (tmp_path / file).read_text() == "{}"
    assert not multiprocessing.active_children()


def test_files_beside_those_of_a_study_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "cells/notes.txt", f"{CELL}/.begun-abc.json"):  # the last is of an interrupted start
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    study_runner(tmp_path)._check_folder()


@pytest.mark.parametrize("published", [False, True], ids=["folder", "published"])
def test_finished_cells_do_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: bool) -> None:
    """Those with the settings and the data of now, from the folder or from results.jsonl."""
    workers = FakeWorkers(1)
    monkeypatch.setattr(runner, "Workers", lambda _: workers)
    monkeypatch.setattr(runner, "build_report", lambda folder: folder / "report.html")
    running = study_runner(tmp_path, Console(file=io.StringIO()))
    finished, other_settings, other_data, *_ = running.plan.cells
    runs = [result(finished), result(other_settings, fingerprint="old"), result(other_data, data={"train": "0"})]
    if published:
        (tmp_path / "results.jsonl").write_text("".join(json.dumps(to_json(run)) + "\n" for run in runs))
    else:
        for cell, run in zip(running.plan.cells, runs, strict=False):
            write_json(cell.result, to_json(run))
            write_json(cell.folder / "begun.json", {})
    running.run()
    ran = [task.arguments[0] for task in workers.started if task.function is jobs.run_cell]
    assert {cell.folder for cell in ran} == {cell.folder for cell in running.plan.cells if cell != finished}
    order = [task.function.__name__ for task in workers.started]
    assert order[:5] == ["run_features"] * 3 + ["run_teacher"] * 2
    needs = [bool(cell.banks) for cell in ran]
    assert needs == sorted(needs)
    assert max(i for i, name in enumerate(order) if name == "run_bank") < len(order) - sum(needs)
    assert json.loads((tmp_path / "study.json").read_text())["code"] == running.plan.code


@pytest.mark.parametrize(
    ("changed", "trained"), [({}, []), ({"fingerprint": "old"}, ["image"]), ({"data": "old"}, ["image"])], ids=str
)
def test_a_teacher_of_other_settings_or_data_is_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], trained: list[str]
) -> None:
    """Its banks are deleted; those of the other teacher stay."""
    workers = FakeWorkers(1)
    monkeypatch.setattr(runner, "Workers", lambda _: workers)
    monkeypatch.setattr(runner, "build_report", lambda folder: folder / "report.html")
    running = study_runner(tmp_path, Console(file=io.StringIO()))
    for teacher in running.plan.teachers:
        of = {"fingerprint": teacher.fingerprint, "data": sha256(json.dumps(DATA.splits, sort_keys=True))}
        of |= changed if teacher.modality == "image" else {}
        record = TeacherRecord(modality=teacher.modality, code=teacher.code, fingerprint=of["fingerprint"])
        write_json(teacher.result, to_json(record))
        write_json(teacher.folder / "begun.json", {"job": f"{of['fingerprint']} {of['data']}"})
        write_json(teacher.folder / "banks/clean.safetensors", {})
    running.run()
    ran = [task.arguments[0].modality for task in workers.started if task.function is jobs.run_teacher]
    left = {path.parts[-3] for path in tmp_path.rglob("banks/*.safetensors")}
    assert (ran, left) == (trained, {"image", "text"} - set(trained))


def test_each_job_prints_one_line_with_its_score_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: list[Running | None]
) -> None:
    printed = io.StringIO()
    running = study_runner(tmp_path, Console(file=printed, width=20))
    cells = [cell for cell in running.plan.cells if cell.method == "SDR" and cell.ratio][:2]
    trials = [replace(cell, trial=number, folder=tmp_path / f"trial-{number}") for number, cell in enumerate(cells)]
    leave(trials[0])
    leave(trials[1], selected=None, failure="the loss is not finite")
    tasks = [Task("image teacher on clean data", jobs.run_bank), *(Task("", jobs.run_cell, (cell,)) for cell in cells)]
    monkeypatch.setattr(time, "monotonic", iter([100.0, *[116.0] * 1000]).__next__)  # 16 s for the first of 95 cells
    monkeypatch.setattr(progress, "_FEWEST", 1)
    running.progress.begin("runs", 105, 10)
    running._phase(FakeWorkers(1), "teacher features", tasks)  # type: ignore[arg-type]
    monkeypatch.setattr(time, "monotonic", iter([100.0, *[104.0] * 1000]).__next__)
    running.progress.begin("trials", 3, 0)
    running._phase(FakeWorkers(1), "trials", [Task("", jobs.run_trial, (trial,)) for trial in trials])  # type: ignore[arg-type]
    seeds = [cell.seed for cell in cells]
    condition = condition_label(Condition.of(cells[0].imbalance, cells[0].ratio)).replace(NBSP, " ")
    assert [line for line in printed.getvalue().splitlines() if "results so far" not in line] == [
        "teacher features: 1 to prepare",
        "teacher features, 1 of 1: image teacher on clean data",
        f"11 of 105 runs: SDR, {condition}, seed {seeds[0]}: rsum 68.4; about 26 min left",
        f"12 of 105 runs: SDR, {condition}, seed {seeds[1]}: rsum 68.4; about 13 min left",
        f"1 of 3 trials: SDR, {condition}, trial 0: validation rsum 0.0; about 10 s left",
        f"2 of 3 trials: SDR, {condition}, trial 1: failed: the loss is not finite; about 10 s left",
    ]
    monkeypatch.setattr(progress, "_FEWEST", 3)
    running.progress.begin("trials", 3, 0)
    running._phase(FakeWorkers(1), "trials", [Task("", jobs.run_trial, (trials[0],))])  # type: ignore[arg-type]
    assert printed.getvalue().splitlines()[-1].endswith("validation rsum 0.0")  # too few for the time left
    (page,) = pages  # the others would have followed within seconds
    assert page is not None
    assert (page.now, page.left) == ("11 of 105 runs finished", "about 26 min left")


def test_the_page_of_a_study_that_fails_no_longer_says_that_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: list[Running | None]
) -> None:
    workers = FakeWorkers(1)
    monkeypatch.setattr(runner, "Workers", lambda _: workers)
    monkeypatch.setattr(workers, "ended", lambda: [replace(workers.started[-1], failure="ValueError: no")])
    with pytest.raises(ValueError, match="ValueError: no"):
        study_runner(tmp_path, Console(file=io.StringIO())).run()
    assert [None if page is None else page.share for page in pages] == [0.0, None]


def test_first_failure_stops_the_study(tmp_path: Path) -> None:
    workers = FakeWorkers(1)
    tasks = [Task("first", jobs.run_cell, failure="ValueError: too small"), Task("second", jobs.run_cell)]
    with pytest.raises(ValueError, match="first failed: ValueError: too small"):
        study_runner(tmp_path)._phase(workers, "cells", tasks)  # type: ignore[arg-type]
    assert workers.started == tasks[:1]


def test_cells_of_a_tuned_study_follow_its_trials_with_the_options_that_they_choose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = "model.init_args.optimisation.init_args.learning_rate"
    itc = replace(STUDY.methods["InfoNCE"], space={rate: {"values": [1e-3, 4e-3]}})
    study = replace(
        STUDY,
        methods={"InfoNCE": itc},
        candidate="InfoNCE",
        teachers={},
        tuning=StudyTuning(3, 7),
        ratios=(0, 0.6),
        seeds=(0, 1),
    )
    monkeypatch.setattr(runner, "build_report", lambda folder: folder / "report.html")

    def started() -> list[Task]:
        workers = FakeTrials(1)
        monkeypatch.setattr(runner, "Workers", lambda _: workers)
        Runner(study, plan_with_trials(study, tmp_path), tmp_path, 1, Console(file=io.StringIO())).run()
        return [task for task in workers.started if task.function in (jobs.run_trial, jobs.run_cell)]

    tasks = started()
    num_conditions = 1 + len(study.imbalances)
    assert [task.function for task in tasks] == [jobs.run_trial] * 3 * num_conditions + [
        jobs.run_cell
    ] * 2 * num_conditions
    trials, cells = tasks[: 3 * num_conditions], tasks[3 * num_conditions :]
    assert all(task.arguments[2] == {"train": "1", "val": "2"} for task in trials)
    points = plan(study, tmp_path).methods["InfoNCE"].points
    assert all(task.arguments[0].options == points[2] for task in cells)

    first, second = (task.arguments[0] for task in trials[:2])
    leave(first, data={"train": "0", "val": "2"})
    leave(second, fingerprint="other settings")
    again = [task.arguments[0] for task in started()]
    assert [trial.folder for trial in again if trial.trial is not None] == [first.folder, second.folder]
    planned = sorted(plan_with_trials(study, tmp_path).cells, key=lambda cell: cell.seed)  # seed by seed
    assert planned == [task.arguments[0] for task in cells]
