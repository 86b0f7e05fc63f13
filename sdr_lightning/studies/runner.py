"""Run a plan: phase by phase, several processes at a time, with the time left; safe to interrupt and to repeat."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdr_lightning.data.imbalance import KINDS
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.identity import sha256
from sdr_lightning.paths import check_output, claim, write_json
from sdr_lightning.reporting import build_report, check_report
from sdr_lightning.studies import jobs as work
from sdr_lightning.studies.plan import BankJob, Cell, Plan, TeacherJob
from sdr_lightning.studies.spec import Study, describe_imbalance
from sdr_lightning.training.distributed.devices import shares
from sdr_lightning.training.tracking.record import environment
from sdr_lightning.types import Modality

_PATIENCE_S = 60

Job = tuple[str, Callable[..., None], tuple[Any, ...]]


class Runner:
    """Runs what is not finished of a study, then writes its report.

    Args:
        study: the study.
        plan: its jobs.
        folder: where its results go.
        jobs: processes at a time.
        console: where progress is shown; the terminal by default.
    """

    def __init__(self, study: Study, plan: Plan, folder: Path, jobs: int, console: Console | None = None) -> None:
        self.study, self.plan, self.folder, self.jobs = study, plan, folder, jobs
        self.console = console if console is not None else Console()
        self._stopped = False
        self._cells_before, self._cells_done, self._cells_since = 0, 0, 0.0

    def run(self) -> Path:
        """Run the study.

        Returns:
            The report.

        Raises:
            ValueError: a job failed (which, and why), the folder cannot be written, or it holds files that are not of a study.
            KeyboardInterrupt: after the workers were stopped; what is finished stays.
        """
        started = time.time()
        for name in (signal.SIGINT, signal.SIGTERM):  # SIGTERM is a batch system's way to say Ctrl-C
            signal.signal(name, self._stop)
        self._claim_folder()
        self._check_folder()
        teachers = [job for job in self.plan.teachers if not _finished(job)]
        _drop_banks(teachers)  # of teachers that are to be made anew
        student = self.plan.student

        def teach(job: TeacherJob) -> Job:
            return f"{job.modality} teacher {job.trained_on}", work.run_teacher, (job, student, data_fingerprint)

        def features(modality: Modality, split: Split) -> Job:
            return f"{modality}, {split}", work.run_features, (student, modality, split)

        def extract(job: BankJob) -> Job:
            return f"{job.teacher.modality} {job.file.stem}", work.run_bank, (job, student)

        def run(cell: Cell) -> Job:
            name = f"{cell.method}, {cell.imbalance} {cell.ratio:g}, seed {cell.seed}"
            return name, work.run_cell, (cell, self.folder / "thumbnails", data_fingerprint)

        stopping = multiprocessing.get_context("spawn").Event()
        with _pool(self.jobs, stopping) as pool:
            try:
                data = pool.submit(work.describe, student).result()
                data_fingerprint = sha256(json.dumps(data["splits"], sort_keys=True))
                if self._described_before() not in (None, data["splits"]):
                    _drop_banks(self.plan.teachers)
                cells = [cell for cell in self.plan.cells if not _finished(cell, data["splits"])]
                banks = [bank for bank in self.plan.banks if not bank.finished] if cells else []
                before = self._cells_before = len(self.plan.cells) - len(cells)
                self.console.print(
                    f"{self.study.title}: {len(self.plan.cells)} cells in {self.folder}, {before} finished before, "
                    f"{self.jobs} at a time"
                )
                write_json(self.folder / "study.json", self._description(data, None))
                if cells:
                    frozen = pool.submit(work.frozen_modalities, student).result()
                    self._phase(pool, "tower features", [features(m, split) for split in SPLITS for m in frozen])
                alone = [cell for cell in cells if not cell.distils]
                self._phase(pool, "teachers", [*map(teach, teachers)])
                self._phase(pool, "banks and cells", [*map(extract, banks), *map(run, alone)])
                self._phase(pool, "cells", [run(cell) for cell in cells if cell.distils])
            except BaseException:
                stopping.set()
                pool.shutdown(wait=False, cancel_futures=True)
                _end(multiprocessing.active_children())
                raise
        if before == 0:  # the time of a study in one go; a continued one has none
            write_json(self.folder / "study.json", self._description(data, time.time() - started))
        self.console.print(f"{len(cells)} cells in {(time.time() - started) / 60:.1f} min")
        return build_report(self.folder)

    def _stop(self, *_: object) -> None:
        self._stopped = True  # an exception that is raised within a finaliser is lost; this is not
        raise KeyboardInterrupt

    def _described_before(self) -> dict[str, str] | None:
        """Fingerprints of the data that the folder's study was last run on."""
        path = self.folder / "study.json"
        found = json.loads(path.read_text(encoding="utf-8"))["data"].get("splits") if path.is_file() else None
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

    def _phase(self, pool: ProcessPoolExecutor, what: str, jobs: Sequence[Job]) -> None:
        """Run jobs side by side; the first failure stops the study."""
        if not jobs:
            return
        columns = (
            TextColumn("{task.description:23}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[last]}"),
        )
        if self._cells_since == 0 and any(function is work.run_cell for _, function, _ in jobs):
            self._cells_since = time.monotonic()
        with Progress(*columns, console=self.console, speed_estimate_period=600) as progress:
            bar = progress.add_task(what, total=len(jobs), last="")
            futures = {pool.submit(work.guarded, job[1], *job[2]): job for job in jobs}
            for done, future in enumerate(as_completed(futures), start=1):
                name, function, _ = futures[future]
                if self._stopped:
                    raise KeyboardInterrupt
                try:
                    failure = future.result()
                except BrokenProcessPool:
                    failure = "its process was ended from outside"
                if failure is not None:
                    raise ValueError(
                        f"{name} failed: {failure} (its log.txt says more; what is finished in {self.folder} stays)"
                    )
                progress.update(bar, advance=1, last=name)
                is_cell = function is work.run_cell
                self._cells_done += is_cell
                if not self.console.is_terminal:
                    count = self._count_of_cells() if is_cell else f"{done}/{len(jobs)} {what}"
                    self.console.print(f"{count}: {name}", soft_wrap=True)

    def _count_of_cells(self) -> str:
        """How many cells of the study are finished, and about how long the others take."""
        done, total = self._cells_before + self._cells_done, len(self.plan.cells)
        left_s = (time.monotonic() - self._cells_since) / self._cells_done * (total - done)
        return f"{done}/{total} cells, {math.ceil(left_s / 60)} min left"

    def _description(self, data: dict[str, Any], wall_time_s: float | None) -> dict[str, Any]:
        study = self.study
        return {
            "name": study.name,
            "title": study.title,
            "description": study.description,
            "data": {"description": "", **data},
            "baseline": study.baseline,
            "candidate": study.candidate,
            "methods": {
                name: {
                    "description": method.description,
                    "stages": [{"weights": stage.weights, "epochs": stage.epochs} for stage in method.stages],
                    "teachers": method.teachers,
                    "swept": None if method.swept is None else dict(zip(("field", "value"), method.swept, strict=True)),
                }
                for name, method in study.methods.items()
            },
            "protocol": study.protocol,
            "imbalances": {
                name: {
                    "kind": " + ".join(part.kind for part in stack),
                    "severities": [part.severity for part in stack if KINDS[part.kind].has_degrees],
                    "description": describe_imbalance(stack),
                }
                for name, stack in study.imbalances.items()
            },
            "ratios": list(study.ratios),
            "seeds": list(study.seeds),
            "notes": list(study.notes),
            "code": self.plan.code,
            "command": f"sdr reproduce {study.file}" + (" --protocol paper" if study.protocol == "paper" else ""),
            "wall_time_s": wall_time_s,
        }


def _pool(jobs: int, stopping: Event) -> ProcessPoolExecutor:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    gpus = context.SimpleQueue()
    for share in shares(jobs):
        gpus.put(share)
    return ProcessPoolExecutor(jobs, context, _prepare_worker, (threads, gpus, stopping))


def _end(processes: Sequence[BaseProcess]) -> None:
    """End workers: a training saves first; whoever takes longer than a minute, or whom a second Ctrl-C meets, does not."""
    try:
        for process in processes:
            process.terminate()
        until = time.monotonic() + _PATIENCE_S
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
    finally:
        for process in processes:
            process.kill()


def _prepare_worker(threads: int, gpus: Any, stopping: Event) -> None:
    work.stopping = stopping
    os.environ.update(gpus.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(threads)
    environment()  # the commit that the code was loaded from, whatever is committed meanwhile


def _is_study(path: Path) -> bool:
    """Whether a file is the description of a study."""
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(description, dict) and {"name", "data", "methods", "imbalances"} <= description.keys()


def _drop_banks(teachers: Sequence[TeacherJob]) -> None:
    for job in teachers:
        for bank in (job.folder / "banks").glob("*.safetensors"):
            bank.unlink()


def _finished(job: TeacherJob | Cell, data: dict[str, str] | None = None) -> bool:
    """Whether a job's result is there and was made with the settings of now, and from the data of now."""
    try:
        result = json.loads(job.result.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return bool(result["fingerprint"] == job.fingerprint and (data is None or result["data"] == data))
