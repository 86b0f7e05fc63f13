"""Run a sweep on this machine: several runs at a time; safe to interrupt and to repeat."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from sdr_lightning.configure import run as run_command
from sdr_lightning.configure.arguments import program_arguments
from sdr_lightning.identity import sha256
from sdr_lightning.paths import claim, read_json, write_json
from sdr_lightning.reporting.sweep import check_sweep_report
from sdr_lightning.reporting.wandb_summary import publish
from sdr_lightning.sweeps.distributions import plain
from sdr_lightning.sweeps.search import Run, grid_size, next_parameters, runs_to_stop
from sdr_lightning.sweeps.spec import Sweep
from sdr_lightning.workers import Task, Workers, log_to, progress_bar

_POLL_S = 0.5
_HOPELESS = 3
_RUN_FOLDER = re.compile(r"\d{3,}-[0-9a-f]{8}")
_SAME = ("method", "metric", "parameters", "command")  # a greater run_cap continues the same sweep


class SweepRunner:
    """Runs the unfinished runs of a sweep.

    Args:
        sweep: the sweep.
        folder: where its runs go; ``sweep.json`` lists them.
        jobs: runs at a time.
        console: where progress is shown; the terminal by default.
    """

    def __init__(self, sweep: Sweep, folder: Path, jobs: int, console: Console | None = None) -> None:
        self.sweep, self.folder, self.jobs = sweep, folder, jobs
        self.console = console if console is not None else Console()
        self.runs: list[Run] = []
        self.tasks: dict[Run, Task] = {}

    def run(self, resume: bool) -> list[Run]:
        """Run the sweep.

        Args:
            resume: continue the sweep in the folder: finished runs stay; interrupted and failed ones continue from their
                last checkpoint, or start again without one.

        Returns:
            All runs.

        Raises:
            ValueError: the folder holds a sweep and ``resume`` is False, it holds another sweep or other files, another
                process works in it, or the first runs all fail before their first epoch.
            KeyboardInterrupt: after the runs were stopped; each continues with ``resume``.
        """
        claim(self.folder)
        waiting = self._restored(resume)
        before = sum(run.state != "running" for run in self.runs)
        total = grid_size(self.sweep)
        self.console.print(
            f"{self.sweep.name}: {total or f'up to {self.sweep.run_cap}'} runs in {self.folder}, {before} finished "
            f"before, {self.jobs} at a time",
            markup=False,
        )
        exhausted = False
        with (
            Workers(self.jobs, {"WANDB_RUN_GROUP": self.sweep.name}) as workers,
            progress_bar(self.console) as progress,
        ):
            bar = progress.add_task("runs", total=total or self.sweep.run_cap, completed=before)
            while True:
                while workers.has_free and (waiting or not exhausted):
                    run = waiting.pop(0) if waiting else self._next()
                    if run is None:
                        exhausted = True
                    else:
                        self._start(run, workers)
                if not self.tasks:
                    return self.runs
                for run in self._ended(workers.ended(_POLL_S)):
                    progress.update(bar, advance=1)
                    self._give_up_if_hopeless()
                    self.console.print(
                        f"run {run.number} {run.state}: {_words(run.parameters)}", soft_wrap=True, markup=False
                    )
                for run in runs_to_stop(self.sweep, self.runs):
                    if run in self.tasks:
                        run.state = "stopped"
                        workers.terminate(self.tasks[run])

    def _restored(self, resume: bool) -> list[Run]:
        """Read the runs of an earlier call; return those to run again."""
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
        mine = plain(self.sweep.config)
        other = [key for key in _SAME if before["config"].get(key) != mine.get(key)]
        if other:
            raise ValueError(f"{self.folder} holds a sweep with another {other[0]}: choose another --output")
        self.runs = [
            Run(number, part["parameters"], self.folder / part["folder"], part.get("quantiles", {}), part["state"])
            for number, part in enumerate(before["runs"])
        ]
        self._check_run_folders()
        for run in self.runs:
            run.state = "finished" if _is_finished(run) else run.state if run.state == "stopped" else "running"
        return [run for run in self.runs if run.state == "running"]

    def _check_run_folders(self) -> None:
        """Refuse a folder that is named like a run and is not of this sweep."""
        known = {run.folder.name for run in self.runs}
        for path in sorted(self.folder.iterdir()):
            if _RUN_FOLDER.fullmatch(path.name) and path.name not in known:
                raise ValueError(f"{path} is not of this sweep: move it away, or choose another --output")

    def _give_up_if_hopeless(self) -> None:
        """Stop, as W&B's agents do, when the first runs all fail before an epoch was logged."""
        first = self.runs[:_HOPELESS]
        if len(first) == _HOPELESS and all(run.state == "failed" and not _has_logged(run) for run in first):
            raise ValueError(f"the first {_HOPELESS} runs all failed, the last with: {first[-1].failure}")

    def _next(self) -> Run | None:
        """Add the next run of the search; None at its end."""
        found = next_parameters(self.sweep, self.runs)
        if found is None:
            return None
        parameters, quantiles = found
        key = sha256(json.dumps(parameters, sort_keys=True).encode())[:8]
        run = Run(len(self.runs), parameters, self.folder / f"{len(self.runs):03d}-{key}", quantiles)
        self.runs.append(run)
        return run

    def _start(self, run: Run, workers: Workers) -> None:
        run.state = "running"
        self._save()  # before the folder is made, so that every folder of the sweep is on record
        task = Task(f"run {run.number}", fit, (self.sweep.options(run.parameters), run.folder))
        self.tasks[run] = task
        workers.start(task)

    def _ended(self, tasks: list[Task]) -> list[Run]:
        ended = [run for run, task in self.tasks.items() if task in tasks]
        for run in ended:
            task = self.tasks.pop(run)
            if _is_finished(run):  # even if early termination has just asked it to stop
                run.state = "finished"
            elif run.state != "stopped":
                run.state, run.failure = "failed", task.failure or "it ended without results"
        if ended:
            self._save()
        return ended

    def _save(self) -> None:
        runs = [
            {"parameters": run.parameters, "quantiles": run.quantiles, "folder": run.folder.name, "state": run.state}
            for run in self.runs
        ]
        write_json(
            self.folder / "sweep.json", {"name": self.sweep.name, "config": plain(self.sweep.config), "runs": runs}
        )


def fit(options: list[str], folder: Path) -> None:
    """Run ``sdr fit`` in a worker, from its last checkpoint if there is one."""
    words = ["fit", *options, f"--run_dir={folder}", "--trainer.enable_progress_bar=false"]
    if (folder / "checkpoints" / "last.ckpt").is_file():
        words.append("--ckpt_path=last")
    else:
        (folder / "config.yaml").unlink(missing_ok=True)  # of a run that was interrupted before its first checkpoint
    with log_to(folder / "log.txt"), program_arguments([sys.argv[0], *words]):
        publish(run_command(words))


def _is_finished(run: Run) -> bool:
    path = run.folder / "results.json"
    return path.is_file() and "training" in read_json(path, "results of a run")


def _has_logged(run: Run) -> bool:
    return (run.folder / "metrics.csv").is_file()


def _words(parameters: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.rpartition('.')[2]} {f'{value:.4g}' if isinstance(value, float) else value}"
        for name, value in parameters.items()
    )
