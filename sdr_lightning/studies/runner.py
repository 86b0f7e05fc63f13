"""Run a plan: phase by phase, several processes at a time; safe to interrupt and to repeat."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console

from sdr_lightning.data.table import SPLITS
from sdr_lightning.identity import sha256
from sdr_lightning.paths import check_output, claim, write_json
from sdr_lightning.reporting import build_report, check_report
from sdr_lightning.results.codec import from_json, to_json
from sdr_lightning.results.fields import read_object
from sdr_lightning.results.loading import published_runs
from sdr_lightning.results.schema import Data, Run, StudyRecord, StudySpec, TeacherRecord
from sdr_lightning.studies import jobs as work
from sdr_lightning.studies.plan import Cell, Plan, TeacherJob
from sdr_lightning.workers import Task, Workers, progress_bar


class Runner:
    """Runs the unfinished jobs of a study, then writes its report.

    Args:
        study: the study.
        plan: its jobs.
        folder: where its results go.
        jobs: processes at a time.
        console: where progress is shown; the terminal by default.
    """

    def __init__(self, study: StudySpec, plan: Plan, folder: Path, jobs: int, console: Console | None = None) -> None:
        self.study, self.plan, self.folder, self.jobs = study, plan, folder, jobs
        self.console = console if console is not None else Console()
        self._cells_before, self._cells_done, self._cells_since = 0, 0, 0.0

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
        student = self.plan.student
        with Workers(self.jobs) as workers:
            data: Data = workers.call("data", work.describe, student)
            data_fingerprint = sha256(json.dumps(dict(data.splits), sort_keys=True))
            published = {run.fingerprint for run in published_runs(self.folder) if run.data == data.splits}
            cells = [c for c in self.plan.cells if c.fingerprint not in published and not _is_finished(c, data)]
            # A study whose cells are all published needs no teacher.
            teachers = [job for job in self.plan.teachers if not _is_finished(job)] if cells or not published else []
            _drop_banks(teachers if self._splits_before() in (None, data.splits) else self.plan.teachers)
            banks = [bank for bank in self.plan.banks if not bank.finished]
            before = self._cells_before = len(self.plan.cells) - len(cells)
            self.console.print(
                f"{self.study.title}: {len(self.plan.cells)} cells in {self.folder}, {before} finished before, "
                f"{self.jobs} at a time"
            )
            self._write_record(data, None)
            teach = [
                _task(f"{job.modality} teacher {job.trained_on}", work.run_teacher, job, student, data_fingerprint)
                for job in teachers
            ]
            if cells:
                frozen = workers.call("tower features", work.frozen_modalities, student)
                features = [
                    _task(f"{m}, {split}", work.run_features, student, m, split) for split in SPLITS for m in frozen
                ]
                self._phase(workers, "tower features", features)
            self._phase(workers, "teachers", teach)
            if cells:
                extract = [
                    _task(f"{bank.teacher.modality} {bank.file.stem}", work.run_bank, bank, student) for bank in banks
                ]
                first, last = (
                    [self._cell(c, data_fingerprint) for c in cells if c.needs_banks == needs]
                    for needs in (False, True)
                )
                self._phase(workers, "banks and cells", [*extract, *first])
                self._phase(workers, "cells", last)
        if before == 0:  # a study that was continued has no wall time
            self._write_record(data, time.time() - started)
        self.console.print(f"{len(cells)} cells in {(time.time() - started) / 60:.1f} min")
        return build_report(self.folder)

    def _cell(self, cell: Cell, data_fingerprint: str) -> Task:
        name = f"{cell.method}, {cell.imbalance} {cell.ratio:g}, seed {cell.seed}"
        return _task(name, work.run_cell, cell, self.folder / "thumbnails", data_fingerprint)

    def _splits_before(self) -> dict[str, str] | None:
        """Fingerprints of the data that the study of the folder ran on last."""
        path = self.folder / "study.json"
        found = read_object(path).get("data", {}).get("splits") if path.is_file() else None
        return None if found is None else dict(found)

    def _claim_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            raise ValueError(f"cannot write to {self.folder}: choose another folder with --output")
        claim(self.folder)

    def _check_folder(self) -> None:
        """Refuse to replace a file that is not of a study."""
        check_output(self.folder / "study.json", is_own=_is_study)
        check_report(self.folder)
        for folder in [job.folder for job in self.plan.teachers] + [cell.folder for cell in self.plan.cells]:
            work.check_folder(folder)

    def _phase(self, workers: Workers, what: str, tasks: Sequence[Task]) -> None:
        """Run tasks side by side; the first failure stops the study."""
        if not tasks:
            return
        if self._cells_since == 0 and any(task.function is work.run_cell for task in tasks):
            self._cells_since = time.monotonic()
        waiting, done = list(tasks), 0
        with progress_bar(self.console) as progress:
            bar = progress.add_task(what, total=len(tasks), last="")
            while done < len(tasks):
                while waiting and workers.has_free:
                    workers.start(waiting.pop(0))
                for task in workers.ended():
                    if task.failure is not None:
                        raise ValueError(
                            f"{task.name} failed: {task.failure} (see its log.txt; finished jobs in {self.folder} stay)"
                        )
                    done += 1
                    progress.update(bar, advance=1, last=task.name)
                    is_cell = task.function is work.run_cell
                    self._cells_done += is_cell
                    if not self.console.is_terminal:
                        count = self._count_of_cells() if is_cell else f"{done}/{len(tasks)} {what}"
                        self.console.print(f"{count}: {task.name}", soft_wrap=True)

    def _count_of_cells(self) -> str:
        """How many cells of the study are finished, and an estimate of the time left."""
        done, total = self._cells_before + self._cells_done, len(self.plan.cells)
        left_s = (time.monotonic() - self._cells_since) / self._cells_done * (total - done)
        return f"{done}/{total} cells, {math.ceil(left_s / 60)} min left"

    def _write_record(self, data: Data, wall_time_s: float | None) -> None:
        """Write ``study.json``."""
        study = self.study
        values = {field.name: getattr(study, field.name) for field in fields(study)} | {"methods": self.plan.methods}
        command = f"sdr reproduce {study.file}" + (" --protocol paper" if study.protocol == "paper" else "")
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


def _drop_banks(teachers: Sequence[TeacherJob]) -> None:
    for job in teachers:
        for bank in (job.folder / "banks").glob("*.safetensors"):
            bank.unlink()


def _is_finished(job: TeacherJob | Cell, data: Data | None = None) -> bool:
    """Whether a job's result exists and was made with the present settings, and from the present data if given."""
    if not job.result.is_file():
        return False
    values, source = read_object(job.result), str(job.result)
    if isinstance(job, TeacherJob):
        return from_json(TeacherRecord, values, source).fingerprint == job.fingerprint
    run = from_json(Run, values, source)
    return run.fingerprint == job.fingerprint and (data is None or run.data == data.splits)
