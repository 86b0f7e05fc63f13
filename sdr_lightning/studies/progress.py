"""Progress of a running study: one printed line for each finished job, and the page with what is there so far."""

from __future__ import annotations

import math
import time
from pathlib import Path

from rich.console import Console

from sdr_lightning.progress import time_left
from sdr_lightning.reporting import write_page
from sdr_lightning.reporting.formatting import NBSP, condition_label, number
from sdr_lightning.reporting.running import Running
from sdr_lightning.results.codec import from_json
from sdr_lightning.results.fields import read_object
from sdr_lightning.results.schema import Condition, Run, Trial
from sdr_lightning.studies import jobs as work
from sdr_lightning.studies.plan import Cell
from sdr_lightning.workers import Task

_FEWEST = 3
"""Jobs before the time left is estimated: the first ones of each process take longer."""
_LEAST_PAUSE_S = 5.0
_SHARE_OF_TIME = 0.04
"""At most this share of the time is spent on the page."""


class StudyProgress:
    """Counts the trials, and then the runs of the cells, of a study.

    Args:
        console: where lines are printed; they are not cut or wrapped.
        folder: of the study.
    """

    def __init__(self, console: Console, folder: Path) -> None:
        self.console, self.folder = console, folder
        self._what, self._total, self._before, self._done = "runs", 0, 0, 0
        self._since: float | None = None
        self._next_page = -math.inf

    @property
    def has_page(self) -> bool:
        """Whether a page was written."""
        return self._next_page > -math.inf

    def begin(self, what: str, total: int, before: int) -> None:
        """Start to count.

        Args:
            what: ``trials`` or ``runs``.
            total: their number in the study.
            before: how many were finished before.
        """
        self._what, self._total, self._before, self._done = what, total, before, 0
        self._since = None

    def started(self, task: Task) -> None:
        """Note that a job starts; the time left is estimated from the first trial or cell on."""
        if self._since is None and is_counted(task):
            self._since = time.monotonic()

    def ended(self, task: Task, phase: str, done: int, total: int) -> None:
        """Print the line of a finished job and refresh the page.

        Args:
            task: the job.
            phase: in words, such as ``teachers``.
            done: jobs of the phase that are finished.
            total: jobs of the phase.
        """
        if not is_counted(task):
            self.print(f"{phase}, {done} of {total}: {task.name}")
            return
        self._done += 1
        left = self._left()
        job: Cell = task.arguments[0]
        self.print(f"{self._count()}: {in_words(job)}: {score(job)}{f'; {left}' if left else ''}")
        self.refresh()

    def print(self, line: str) -> None:
        """Print a line of any length."""
        self.console.print(line.replace(NBSP, " "), soft_wrap=True, highlight=False, markup=False)

    def refresh(self) -> None:
        """Write the page with what is there so far, unless that was done a moment ago."""
        begun = time.monotonic()
        if begun < self._next_page:
            return
        share = (self._before + self._done) / max(1, self._total)
        page = write_page(
            self.folder, Running(f"{self._count()} finished", share, self._left(), time.strftime("%H:%M:%S"))
        )
        if not self.has_page:
            self.print(f"results so far in {page}, which a browser keeps up to date")
        now = time.monotonic()
        self._next_page = now + max(_LEAST_PAUSE_S, (now - begun) / _SHARE_OF_TIME)

    def _count(self) -> str:
        return f"{self._before + self._done} of {self._total} {self._what}"

    def _left(self) -> str:
        """The time left, from the mean time of the trials or cells that ran; empty before the first few."""
        left = self._total - self._before - self._done
        if self._since is None or self._done < _FEWEST or not left:
            return ""
        return time_left((time.monotonic() - self._since) / self._done * left)


def is_counted(task: Task) -> bool:
    """Whether a task is a trial or a cell."""
    return task.function in (work.run_trial, work.run_cell)


def in_words(job: Cell) -> str:
    """Name a trial or cell: method, condition, and trial or seed."""
    condition = condition_label(Condition.of(job.imbalance, job.ratio))
    return f"{job.method}, {condition}, {f'seed {job.seed}' if job.trial is None else f'trial {job.trial}'}"


def score(job: Cell) -> str:
    """The test rsum of a finished cell, or the validation rsum of a finished trial."""
    values, source = read_object(job.result), str(job.result)
    if job.trial is None:
        run = from_json(Run, values, source)
        return f"rsum {number(run.metrics['rsum'])}" if "rsum" in run.metrics else "no rsum"
    trial = from_json(Trial, values, source)
    return f"validation rsum {number(trial.score)}" if math.isfinite(trial.score) else f"failed: {trial.failure}"
