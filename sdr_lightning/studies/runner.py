"""Run a plan: phase by phase, several processes at a time; safe to interrupt and to repeat."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from sdr_lightning.data.table import SPLITS
from sdr_lightning.identity import sha256
from sdr_lightning.paths import check_output, claim, write_json
from sdr_lightning.reporting import build_report, check_report, write_page
from sdr_lightning.reporting.formatting import percent
from sdr_lightning.results.codec import from_json, to_json
from sdr_lightning.results.fields import read_object
from sdr_lightning.results.loading import published_runs, published_trials
from sdr_lightning.results.schema import Data, JobRecord, Run, StudyRecord, StudySpec, TeacherRecord, Trial
from sdr_lightning.studies import jobs as work
from sdr_lightning.studies.plan import BankJob, Cell, Plan, TeacherJob, banks_of, plan_with_trials, teachers_of
from sdr_lightning.studies.progress import StudyProgress, in_words, is_counted
from sdr_lightning.workers import Task, Workers, progress_bar


class Runner:
    """Runs the unfinished jobs of a study, then writes its report.

    Args:
        study: the study.
        plan: its jobs; the cells of a tuned study are planned again when its trials are finished.
        folder: where its results go.
        jobs: processes at a time.
        console: where progress is shown; the terminal by default.
    """

    def __init__(self, study: StudySpec, plan: Plan, folder: Path, jobs: int, console: Console | None = None) -> None:
        self.study, self.plan, self.folder, self.jobs = study, plan, folder, jobs
        self.console = console if console is not None else Console()
        self.progress = StudyProgress(self.console, folder)

    def run(self) -> Path:
        """Run the study.

        Returns:
            The report.

        Raises:
            ValueError: a job failed (which, and why), the folder cannot be written, or it holds files that are not of a study.
            KeyboardInterrupt: after the workers were stopped; finished jobs stay.
        """
        started = time.time()
        self._claim_folder()
        self._check_folder()
        with self._closing_page(), Workers(self.jobs) as workers:
            data: Data = workers.call("data", work.describe, self.plan.student)
            self._write_record(data, None)
            continued = False
            if self.plan.trials:
                continued = self._run_all("trials", self.plan.trials, data, workers)
                self.plan = plan_with_trials(self.study, self.folder)
                if not self.plan.cells:
                    raise ValueError(
                        "the code or a configuration changed while the trials ran, so they no longer count: run the command again"
                    )
                self._check_folder()
            continued |= self._run_all("runs", self.plan.cells, data, workers)
        if not continued:  # a study that was continued has no wall time
            self._write_record(data, time.time() - started)
        self.progress.print(f"finished in {(time.time() - started) / 60:.1f} min")
        return build_report(self.folder)

    @contextlib.contextmanager
    def _closing_page(self) -> Iterator[None]:
        """If the block ends by an exception, write the page with what is there, which no longer says that the study runs."""
        try:
            yield
        except BaseException:
            if self.progress.has_page:
                write_page(self.folder)
            raise

    def _run_all(self, what: str, jobs: Sequence[Cell], data: Data, workers: Workers) -> bool:
        """Run the unfinished trials or cells, with their teachers and banks; return whether others were finished before."""
        student, data_fingerprint = self.plan.student, sha256(json.dumps(dict(data.splits), sort_keys=True))
        records: Iterable[JobRecord] = (
            published_trials(self.folder) if what == "trials" else published_runs(self.folder)
        )
        published = {_identity(record) for record in records if _is_of(data, record)}
        waiting = [job for job in jobs if _identity(job) not in published and not _is_finished(job, data)]
        # A study whose cells are all published needs no teacher.
        needed = teachers_of(waiting if published else jobs)
        teachers = [job for job in needed if not _is_finished_teacher(job, data_fingerprint)]
        for teacher in teachers:
            _drop_banks(teacher.folder)
        banks = [bank for bank in banks_of(waiting) if not bank.finished]
        before = len(jobs) - len(waiting)
        self.progress.begin(what, len(jobs), before)
        self.progress.print(
            f"{self.study.title}: {len(jobs)} {what} in {self.folder}, {before} finished before, {self.jobs} at a time"
        )
        if waiting:
            self.progress.refresh()
            frozen = workers.call("frozen towers", work.frozen_modalities, student)
            features = [
                _task(f"{m}s of the {split} split", work.run_features, student, m, split)
                for split in SPLITS
                for m in frozen
            ]
            self._phase(workers, "features of frozen towers", features)
        teach = [
            _task(f"{job.modality} teacher, {job.trained_on}", work.run_teacher, job, student, data_fingerprint)
            for job in teachers
        ]
        self._phase(workers, "teachers", teach)
        if waiting:
            extract = [
                _task(f"{bank.teacher.modality} teacher on {_condition(bank)}", work.run_bank, bank, student)
                for bank in banks
            ]
            # Seed by seed, so that methods can be compared early.
            ordered = sorted(
                waiting, key=lambda job: (bool(job.banks), self.study.seeds.index(job.seed) if job.trial is None else 0)
            )
            tasks = [self._task_of(job, data, data_fingerprint) for job in ordered]
            first = sum(not job.banks for job in waiting)
            self._phase(workers, "teacher features", [*extract, *tasks[:first]])
            self._phase(workers, what, tasks[first:])
        return before > 0

    def _task_of(self, job: Cell, data: Data, data_fingerprint: str) -> Task:
        if job.trial is not None:
            read = {split: data.splits[split] for split in ("train", "val")}
            return _task(in_words(job), work.run_trial, job, data_fingerprint, read)
        return _task(in_words(job), work.run_cell, job, self.folder / "thumbnails", data_fingerprint)

    def _claim_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"cannot write to {self.folder}: choose another folder with --output")
        claim(self.folder)

    def _check_folder(self) -> None:
        """Refuse to replace a file that is not of a study."""
        check_output(self.folder / "study.json", is_own=_is_study)
        check_report(self.folder)
        jobs = [*self.plan.trials, *self.plan.cells]
        for folder in [job.folder for job in self.plan.teachers] + [job.folder for job in jobs]:
            work.check_folder(folder)

    def _phase(self, workers: Workers, what: str, tasks: Sequence[Task]) -> None:
        """Run tasks side by side; the first failure stops the study."""
        if not tasks:
            return
        waiting, done = list(tasks), {True: 0, False: 0}
        counts = Counter(map(is_counted, tasks))
        if counts[False]:
            self.progress.print(f"{what}: {counts[False]} to prepare")
        with progress_bar(self.console) as bar:
            shown = bar.add_task(what, total=len(tasks))
            while sum(done.values()) < len(tasks):
                while waiting and workers.has_free:
                    self.progress.started(waiting[0])
                    workers.start(waiting.pop(0))
                for task in workers.ended():
                    if task.failure is not None:
                        raise ValueError(
                            f"{task.name} failed: {task.failure} (see its log.txt; finished jobs in {self.folder} stay)"
                        )
                    kind = is_counted(task)
                    done[kind] += 1
                    bar.update(shown, advance=1)
                    self.progress.ended(task, what, done[kind], counts[kind])

    def _write_record(self, data: Data, wall_time_s: float | None) -> None:
        """Write ``study.json``."""
        study = self.study
        values = {field.name: getattr(study, field.name) for field in fields(study)}
        values |= {"methods": self.plan.methods, "teachers": self.plan.teacher_entries}
        protocol = ["--protocol", "paper"] if study.protocol == "paper" else []
        command = shlex.join(["sdr", "reproduce", str(study.file), *protocol])
        record = StudyRecord(**values, data=data, code=self.plan.code, command=command, wall_time_s=wall_time_s)
        write_json(self.folder / "study.json", to_json(record))


def _task(name: str, function: Callable[..., Any], *arguments: Any) -> Task:
    return Task(name, function, arguments)


def _is_study(path: Path) -> bool:
    """Whether a file is the record of a study."""
    try:
        return {"name", "data", "methods", "imbalances"} <= read_object(path).keys()
    except ValueError:
        return False


def _drop_banks(folder: Path) -> None:
    """Delete the banks of a teacher."""
    for bank in folder.rglob("banks/*.safetensors"):
        bank.unlink()


def _condition(bank: BankJob) -> str:
    """The training data that a bank is extracted from."""
    parts = [f"{part.kind.replace('_', ' ')} {percent(part.ratio)}, seed {part.seed}" for part in bank.imbalances]
    return " + ".join(parts) or "clean data"


def _is_of(data: Data, record: JobRecord) -> bool:
    """Whether a result was made from the present data; a trial reads the training and the validation split only."""
    read = SPLITS if isinstance(record, Run) else ("train", "val")
    return record.data == {split: data.splits.get(split) for split in read}


def _identity(job: Cell | JobRecord) -> tuple[str, str, float, int, str]:
    """What a job and its record have in common: two methods of equal settings are two jobs."""
    return job.method, job.imbalance, job.ratio, job.seed, job.fingerprint


def _is_finished(job: Cell, data: Data) -> bool:
    """Whether the result of a trial or cell exists and was made with the present settings and data."""
    if not job.result.is_file():
        return False
    values, source = read_object(job.result), str(job.result)
    record = from_json(Run, values, source) if job.trial is None else from_json(Trial, values, source)
    return record.fingerprint == job.fingerprint and _is_of(data, record)


def _is_finished_teacher(job: TeacherJob, data_fingerprint: str) -> bool:
    """Whether the result of a teacher exists and was made with the present settings and data."""
    if not job.result.is_file():
        return False
    record = from_json(TeacherRecord, read_object(job.result), str(job.result))  # does not name the data
    return record.fingerprint == job.fingerprint and work.has_begun(job.folder, job.fingerprint, data_fingerprint)
