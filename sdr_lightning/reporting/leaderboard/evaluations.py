"""Entries of a leaderboard from the files of ``sdr evaluate`` and ``sdr test``."""

from collections.abc import Sequence
from dataclasses import replace

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.evaluation_files import EvaluationFile, System
from sdr_lightning.reporting.leaderboard.entries import METRICS, Entry, Group, Link, Score
from sdr_lightning.reporting.statistics import mean_interval

TITLE = "Evaluations of others"
NOT_STATED = "not stated"

_ABOUT = (
    "Files of sdr evaluate and sdr test. Compare two rows only if data, protocol and model are equal. Noise, ratio and "
    "tuning are as stated with sdr evaluate --training."
)


def evaluations_group(systems: Sequence[System]) -> Group:
    """Make one entry of each system: the mean over its files, one per seed.

    Raises:
        ValueError: the files of a system state different trainings.
    """
    return Group(title=TITLE, about=_ABOUT, entries=tuple(_entry(system) for system in systems))


def _entry(system: System) -> Entry:
    first, *others = system.evaluations
    for other in others:
        if replace(other.training, seed=None) != replace(first.training, seed=None):
            raise ValueError(
                f"{first.path} and {other.path} state different trainings: give files that differ in the seed only"
            )
    training = first.training
    scores = {}
    for key, (quantity, _) in METRICS.items():
        values = [value for each in system.evaluations if (value := quantity.of(each.metrics)) is not None]
        if values:
            scores[key] = Score(mean_interval(values))
    trials = training.trials
    return Entry(
        group=TITLE,
        method=system.name,
        data=_data(first),
        student=training.model or NOT_STATED,
        noise=training.noise or NOT_STATED,
        ratio=training.ratio,
        seeds=len(system.evaluations),
        tuning=NOT_STATED if trials is None else "untuned" if trials == 1 else f"tuned with {trials} trials",
        scores=scores,
        command=training.command,
        records=tuple(_record(number, each) for number, each in enumerate(system.evaluations)),
    )


def _data(evaluation: EvaluationFile) -> str:
    """The training data as stated, and the evaluated data."""
    settings = evaluation.settings
    sizes = f"{formatting.count(settings.images)} images, {formatting.count(settings.texts)} captions"
    evaluated = f"{settings.split or 'data'} {formatting.short(settings.data)}: {sizes}, protocol {settings.protocol}"
    evaluated += f", corrupted ({evaluation.corruption})" if evaluation.corruption else ""
    return f"{evaluation.training.data or NOT_STATED} ({evaluated})"


def _record(number: int, evaluation: EvaluationFile) -> Link:
    seed = evaluation.training.seed
    return Link(str(number if seed is None else seed), evaluation.path)
