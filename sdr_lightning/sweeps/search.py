"""Which run of a sweep comes next, and which runs stop early."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.sweeps.distributions import Distribution
from sdr_lightning.sweeps.spec import Sweep

State = Literal["running", "finished", "failed", "stopped"]
_RANDOM_RUNS = 5  # before the search of bayes uses results


@dataclass(eq=False)
class Run:
    """One run of a sweep.

    Attributes:
        number: from 0, in the order of the search.
        parameters: by dotted name.
        folder: its run folder.
        quantiles: of the parameters in their distributions; empty in a grid.
        state: ``stopped`` by early termination; ``running`` before it started as well.
        failure: why it failed.
    """

    number: int
    parameters: dict[str, Any]
    folder: Path
    quantiles: dict[str, float] = field(default_factory=dict)
    state: State = "running"
    failure: str = ""

    def history(self, metric: str) -> list[float]:
        """The finite values of a metric in the order of the epochs."""
        curve = read_curves(self.folder / "metrics.csv").get(metric, {})
        return [curve[epoch] for epoch in sorted(curve)]


def grid(distributions: Mapping[str, Distribution]) -> Iterator[dict[str, Any]]:
    """Yield the product of the values of discrete distributions, the last parameter fastest."""
    for values in product(*(each.grid or () for each in distributions.values())):
        yield dict(zip(distributions, values, strict=True))


def draw(
    distributions: Mapping[str, Distribution], generator: random.Random
) -> tuple[dict[str, Any], dict[str, float]]:
    """Draw each parameter from its distribution; return the parameters and their quantiles, which constants do not have."""
    quantiles = {name: generator.random() for name, each in distributions.items() if each.kind != "constant"}
    return {name: each.quantile(quantiles.get(name, 0)) for name, each in distributions.items()}, quantiles


def grid_size(sweep: Sweep) -> int | None:
    """Number of runs of a grid; None for a search, which ends at its cap."""
    if sweep.method != "grid":
        return None
    size = math.prod(len(each.grid or ()) for each in sweep.distributions.values())
    return size if sweep.run_cap is None else min(size, sweep.run_cap)


def next_parameters(sweep: Sweep, runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, float]] | None:
    """Choose the parameters of the next run.

    ``grid`` goes through the product of the values in the order of the file, the last parameter fastest. ``random`` draws each
    parameter from its distribution. ``bayes`` searches the quantiles of the distributions with the tree-structured Parzen
    estimator of Optuna; a run that is still running counts as a bad one, so that runs side by side differ. The same
    sweep with the same results gives the same parameters.

    Args:
        sweep: the sweep.
        runs: all runs so far.

    Returns:
        Parameters by name, and their quantiles; None at the end of the sweep.

    Raises:
        ValueError: ``bayes`` without Optuna.
    """
    if sweep.run_cap is not None and len(runs) >= sweep.run_cap:
        return None
    if sweep.method == "grid":
        seen = [run.parameters for run in runs]
        found = next((parameters for parameters in grid(sweep.distributions) if parameters not in seen), None)
        return None if found is None else (found, {})
    if sweep.method == "random":
        return draw(sweep.distributions, random.Random(len(runs)))
    searched = {name: each for name, each in sweep.distributions.items() if each.kind != "constant"}
    quantiles = _estimated(sweep, searched, runs)
    return {name: each.quantile(quantiles.get(name, 0)) for name, each in sweep.distributions.items()}, quantiles


def _estimated(sweep: Sweep, searched: Mapping[str, Distribution], runs: Sequence[Run]) -> dict[str, float]:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError("a bayes sweep needs Optuna: pip install 'sdr_lightning[sweeps]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    unordered = {name: each.given["values"] for name, each in searched.items() if each.kind == "categorical"}
    space: dict[str, Any] = {name: optuna.distributions.FloatDistribution(0, 1) for name in searched}
    space |= {name: optuna.distributions.CategoricalDistribution(range(len(v))) for name, v in unordered.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant_liar is marked as experimental
        sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM_RUNS, constant_liar=True, seed=len(runs))
        study = optuna.create_study(sampler=sampler, direction=sweep.goal)
        states = optuna.trial.TrialState
        for run in runs:
            history = run.history(sweep.metric)
            state = {"running": states.RUNNING, "finished": states.COMPLETE}.get(run.state, states.PRUNED)
            if not history and state != states.RUNNING:
                state = states.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params={
                        n: unordered[n].index(run.parameters[n]) if n in unordered else run.quantiles[n] for n in space
                    },
                    distributions=space,
                    value=history[-1] if state == states.COMPLETE else None,
                    intermediate_values=dict(enumerate(history)),
                )
            )
        chosen = study.ask(space).params
    return {n: (x + 0.5) / len(unordered[n]) if n in unordered else x for n, x in chosen.items()}


def runs_to_stop(sweep: Sweep, runs: Sequence[Run]) -> list[Run]:
    """Choose the runs that early termination stops: hyperband as W&B defines it.

    At each of several numbers of epochs (the bands), the threshold is the value that the best 1/eta of the runs reach there. A
    run stops if its best value so far misses the threshold of the last band that it passed. Bands are ``min_iter``,
    ``min_iter * eta``, ...; or ``max_iter / eta``, ``max_iter / eta ** 2``, ... ``s`` times.

    Args:
        sweep: the sweep.
        runs: all runs so far.

    Returns:
        Some of those in state ``running``; none without ``early_terminate``.
    """
    early = sweep.early_terminate
    if early is None:
        return []
    sign = -1.0 if sweep.goal == "maximize" else 1.0
    losses = {run: [sign * value for value in run.history(sweep.metric)] for run in runs}
    bands = _bands(early, max(map(len, losses.values()), default=0))
    thresholds = [_threshold([loss[band] for loss in losses.values() if len(loss) > band], early) for band in bands]
    stopped = []
    for run, loss in losses.items():
        passed = [threshold for band, threshold in zip(bands, thresholds, strict=True) if band < len(loss)]
        if run.state == "running" and passed and min(loss) > passed[-1]:
            stopped.append(run)
    return stopped


def _bands(early: Mapping[str, Any], longest: int) -> list[int]:
    """Indices into the histories, those beyond the longest one left out."""
    eta, bands = early.get("eta", 3), []
    if "max_iter" in early:
        each = [early["max_iter"] / eta**step for step in range(1, int(early["s"]) + 1)]
        return sorted(int(band) for band in each if 1 <= band < longest)
    band = early["min_iter"]
    while band < longest:
        bands.append(int(band))
        band *= eta
    return bands


def _threshold(losses: Sequence[float], early: Mapping[str, Any]) -> float:
    return sorted(losses)[int(len(losses) / early.get("eta", 3))] if losses else math.inf
