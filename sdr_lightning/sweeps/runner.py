"""Run a sweep on this machine: several processes at a time, safe to interrupt and to repeat."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import time
import warnings
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdr_lightning.identity import sha256
from sdr_lightning.paths import claim, read_json, write_json
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.reporting.sweep import check_sweep_report
from sdr_lightning.sweeps.spec import Sweep, engine
from sdr_lightning.training.devices import shares

State = Literal["running", "finished", "failed", "stopped"]
_POLL_S = 0.5
_HOPELESS = 3
_RUN_FOLDER = re.compile(r"\d{3,}-[0-9a-f]{8}")
_SAME = ("method", "metric", "parameters", "command")  # a greater run_cap goes on with the same sweep


@dataclass
class Run:
    """One run of a sweep.

    Attributes:
        number: from 0, in the order that the engine asked for them.
        parameters: by dotted name.
        folder: the run's folder.
        state: ``stopped`` is what early termination does.
        process: while it runs.
        place: which of the places for runs side by side it has.
    """

    number: int
    parameters: dict[str, Any]
    folder: Path
    state: State = "running"
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    place: int = 0

    @property
    def history(self) -> dict[str, dict[int, float]]:
        """What it logged, by metric and epoch."""
        return dict(read_curves(self.folder / "metrics.csv"))

    @property
    def finished(self) -> bool:
        """Whether it trained to its end."""
        path = self.folder / "results.json"
        return path.is_file() and "training" in read_json(path, "results of a run")


class SweepRunner:
    """Runs what is not finished of a sweep.

    Args:
        sweep: the sweep.
        folder: where its runs go; ``sweep.json`` there says which there are.
        jobs: runs at a time.
        console: where progress is shown; the terminal by default.
    """

    def __init__(self, sweep: Sweep, folder: Path, jobs: int, console: Console | None = None) -> None:
        self.sweep, self.folder, self.jobs = sweep, folder, jobs
        self.console = console if console is not None else Console()
        self.runs: list[Run] = []

    def run(self, resume: bool) -> list[Run]:
        """Run the sweep.

        Args:
            resume: go on with the sweep that is in the folder: finished runs stay, cut ones and failed ones continue from
                their last checkpoint, or start again where there is none.

        Returns:
            All runs.

        Raises:
            ValueError: the folder holds a sweep and it is not to be resumed, it holds another one or files of another origin,
                another process runs it, or the first runs all fail before their first epoch.
            KeyboardInterrupt: after the runs were stopped; each continues with ``resume``.
        """
        claim(self.folder)
        waiting = self._restored(resume)
        before = sum(run.state != "running" for run in self.runs)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler)
        total = self.size()
        self.console.print(
            f"{self.sweep.name}: {total or 'up to ' + str(self.sweep.run_cap)} runs in {self.folder}, {before} finished "
            f"before, {self.jobs} at a time"
        )
        columns = (
            *(TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left")),
            *(TimeRemainingColumn(elapsed_when_finished=False), TextColumn("{task.fields[last]}")),
        )
        exhausted = False
        with Progress(*columns, console=self.console, speed_estimate_period=600) as progress:
            bar = progress.add_task("runs", total=total or self.sweep.run_cap, completed=before, last="")
            try:
                while True:
                    while len(self._running()) < self.jobs and (waiting or not exhausted):
                        run = waiting.pop(0) if waiting else self._next()
                        if run is None:
                            exhausted = True
                        else:
                            self._start(run)
                    if not self._running():
                        break
                    time.sleep(_POLL_S)
                    for run in self._ended():
                        progress.update(bar, advance=1, last=f"run {run.number} {run.state}")
                        self._give_up_if_hopeless()
                        if not self.console.is_terminal:
                            line = f"run {run.number} {run.state}: {_words(run.parameters)}"
                            self.console.print(line, soft_wrap=True)
                    self._terminate_early()
            except BaseException:
                for run in self._running():
                    assert run.process is not None
                    run.process.send_signal(signal.SIGTERM)  # which writes its checkpoint
                for run in self._running():
                    assert run.process is not None
                    run.process.wait()
                raise
        return self.runs

    def _restored(self, resume: bool) -> list[Run]:
        """The runs of an earlier time; returns those that are to be run again."""
        record = self.folder / "sweep.json"
        check_sweep_report(self.folder)
        if not record.is_file():
            self._check_run_folders()
            self._save()
            return []
        before = read_json(record, "a sweep")
        if not isinstance(before, dict) or not {"config", "runs"} <= before.keys():
            raise ValueError(f"{record} is not the record of a sweep: move it away, or choose another --output")
        if not resume:
            raise ValueError(
                f"{self.folder} already holds a sweep: --resume continues it, --output names another folder"
            )
        mine = _plain(self.sweep.config)
        other = [key for key in _SAME if before["config"].get(key) != mine.get(key)]
        if other:
            raise ValueError(f"{self.folder} holds a sweep with another {other[0]}: choose another --output")
        self.runs = [
            Run(number, part["parameters"], self.folder / part["folder"], part["state"])
            for number, part in enumerate(before["runs"])
        ]
        self._check_run_folders()
        for run in self.runs:
            run.state = "finished" if run.finished else run.state if run.state == "stopped" else "running"
        return [run for run in self.runs if run.state == "running"]

    def _check_run_folders(self) -> None:
        """Refuse a folder that has the form of a run's and is not of this sweep."""
        known = {run.folder.name for run in self.runs}
        for path in sorted(self.folder.iterdir()):
            if _RUN_FOLDER.fullmatch(path.name) and path.name not in known:
                raise ValueError(f"{path} is not of this sweep: move it away, or choose another --output")

    def _give_up_if_hopeless(self) -> None:
        """Stop, as W&B's agents do, when the first runs all fail before anything was learned: the rest would as well."""
        first = self.runs[:_HOPELESS]
        if len(first) == _HOPELESS and all(run.state == "failed" and not run.history for run in first):
            raise ValueError(f"the first {_HOPELESS} runs all failed, the last with: {last_line(first[-1])}")

    def size(self) -> int | None:
        """How many runs a grid has; None for a search, which ends at its cap."""
        if self.sweep.config["method"] != "grid":
            return None
        sizes = [len(given.get("values", [None])) for given in self.sweep.config["parameters"].values()]
        return min(int(np.prod(sizes)), self.sweep.run_cap or 2**62)

    def _running(self) -> list[Run]:
        return [run for run in self.runs if run.process is not None]

    def _next(self) -> Run | None:
        """The next run as the engine wants it, knowing all so far; None at the end."""
        if self.sweep.run_cap is not None and len(self.runs) >= self.sweep.run_cap:
            return None
        # The engine draws from the processes' own generators: the same sweep, the same runs.
        np.random.seed(len(self.runs))
        random.seed(len(self.runs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the fit of its Gaussian process
            asked = engine().next_run(self.sweep.searched, [self._as_engine_sees(run) for run in self.runs])
        if asked is None:
            return None
        parameters = {name: _plain(part["value"]) for name, part in asked.config.items()}
        key = sha256(json.dumps(parameters, sort_keys=True).encode())[:8]
        run = Run(len(self.runs), parameters, self.folder / f"{len(self.runs):03d}-{key}")
        self.runs.append(run)
        return run

    def _as_engine_sees(self, run: Run) -> Any:
        sweeps, curve = engine(), run.history.get(self.sweep.metric, {})
        values = [curve[epoch] for epoch in sorted(curve)]
        state = {"running": "running", "finished": "finished", "failed": "failed", "stopped": "killed"}[run.state]
        seen = sweeps.SweepRun(
            name=run.folder.name,
            state=state,
            config={name: {"value": value} for name, value in run.parameters.items()},
            stopped=run.state == "stopped",
        )
        # Given to the constructor under these names they are dropped in silence: the package was written for an older pydantic.
        seen.history = [{self.sweep.metric: value} for value in values]
        seen.summary_metrics = {self.sweep.metric: values[-1]} if values else {}
        return seen

    def _start(self, run: Run) -> None:
        run.state = "running"
        self._save()  # before the folder is made, so that every folder of the sweep is on record
        run.folder.mkdir(parents=True, exist_ok=True)
        words = [*self.sweep.words(run.parameters), f"--run_dir={run.folder}", "--trainer.enable_progress_bar=false"]
        if (run.folder / "checkpoints" / "last.ckpt").is_file():
            words.append("--ckpt_path=last")
        else:
            (run.folder / "config.yaml").unlink(missing_ok=True)  # of a run that was cut before its first checkpoint
        threads = str(max(1, (os.cpu_count() or 1) // self.jobs))
        run.place = next(place for place in count() if place not in {other.place for other in self._running()})
        environment = {"OMP_NUM_THREADS": threads, "WANDB_RUN_GROUP": self.sweep.name, **os.environ}
        environment |= shares(self.jobs)[run.place]
        with (run.folder / "log.txt").open("ab") as log:
            run.process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _ended(self) -> list[Run]:
        ended = []
        for run in self._running():
            assert run.process is not None
            if run.process.poll() is not None:
                run.process = None
                if run.finished:  # though early termination may just have asked it to stop
                    run.state = "finished"
                elif run.state != "stopped":
                    run.state = "failed"
                ended.append(run)
        if ended:
            self._save()
        return ended

    def _terminate_early(self) -> None:
        if "early_terminate" not in self.sweep.config or not self._running():
            return
        seen = [self._as_engine_sees(run) for run in self.runs]
        names = {run.name for run in engine().stop_runs(self.sweep.searched, seen)}
        for run in self._running():
            if run.folder.name in names and run.state == "running":
                assert run.process is not None
                run.state = "stopped"
                run.process.send_signal(signal.SIGTERM)

    def _save(self) -> None:
        runs = [{"parameters": run.parameters, "folder": run.folder.name, "state": run.state} for run in self.runs]
        write_json(
            self.folder / "sweep.json", {"name": self.sweep.name, "config": _plain(self.sweep.config), "runs": runs}
        )


def last_line(run: Run) -> str:
    """What a run said last."""
    log = run.folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    told = [line for line in lines if line.startswith("sdr")] or [line for line in lines if line.strip()]
    return told[-1] if told else "it said nothing"


def _words(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.rpartition('.')[2]} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in parameters.items()
    )


def _plain(value: Any) -> Any:
    """As JSON keeps it: numpy's numbers as Python's."""
    return json.loads(json.dumps(value, default=lambda number: number.item()))
