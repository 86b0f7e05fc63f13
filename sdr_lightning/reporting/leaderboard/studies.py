"""Entries of a leaderboard from the records of a study."""

import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdr_lightning.data.imbalance import KINDS
from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import compare_with_baseline
from sdr_lightning.reporting.leaderboard.aggregates import study_aggregates
from sdr_lightning.reporting.leaderboard.entries import METRICS, Entry, Group, Link, Score
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, Run, Study, StudyMethod

_INFONCE = ({"infonce"}, {"itc"})  # overlays of the same loss
_PUBLISHED = re.compile(r"(.+\.jsonl):(\d+)")


def study_group(study: Study, state: str = "", base: Path = Path()) -> Group:
    """Make the entries of a study, from the cells that are finished: by condition, the highest mean rsum first.

    Args:
        study: the study, in the folder of ``sdr reproduce`` or as published.
        state: what is known about the code that made it; by default its commits.
        base: the folder that the paths of configurations are relative to.

    Raises:
        ValueError: the study has no finished cell.
    """
    if not study.runs:
        raise ValueError(f"{study.root} has no finished cell with the code of its study: run sdr reproduce first")
    report = study.root / "report.md"
    entries = [
        _entry(study, name, c, base)
        for c in study.conditions
        for name in RSUM.ranking(study, [c])
        if _has_runs(study, name, c)
    ]
    return Group(
        title=study.title,
        about=_about(study, state or _measured(study)),
        report=Link("report", report) if report.is_file() else None,
        baseline=study.baseline,
        entries=tuple(entries),
        aggregates=study_aggregates(study),
        outdated=len(study.outdated),
    )


def distinct(groups: Sequence[tuple[Group, Path]]) -> list[Group]:
    """Add the folder to titles that several studies have.

    Raises:
        ValueError: a folder is given twice.
    """
    folders = [folder.resolve() for _, folder in groups]
    twice = next((folder for folder, times in Counter(folders).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice: give each study once")
    count = Counter(group.title for group, _ in groups)
    return [
        group if count[group.title] == 1 else retitled(group, f"{group.title} ({folder.as_posix()})")
        for group, folder in groups
    ]


def retitled(group: Group, title: str) -> Group:
    """Return a group, with its entries, under another title."""
    return replace(group, title=title, entries=tuple(replace(entry, group=title) for entry in group.entries))


def noise_meaning(study: Study, condition: Condition) -> str:
    """Describe the corruption of a condition, without its ratio: ``mismatch, caption level``, ``drop words, severity 5``."""
    if condition.imbalance == NO_IMBALANCE:
        return "none"
    parts = study.imbalances[condition.imbalance].parts
    return " + ".join(_meaning(part) for part in parts) or formatting.name(condition.imbalance)


def overlays(method: StudyMethod) -> tuple[Path, ...]:
    """Return the overlays of a method over the student, each once."""
    return tuple(dict.fromkeys(Path(os.path.normpath(path)) for stage in method.stages for path in stage.config))


def _meaning(part: Mapping[str, Any]) -> str:
    if part.get("file"):
        return f"file {Path(part['file']).name}"
    kind = str(part["kind"])
    words = [f"missing {part['modality']}s" if kind == "missing" else formatting.name(kind)]
    if kind == "mismatch":
        words.append(f"{part.get('level') or 'image'} level")
        if part.get("partner", "random") != "random":
            words.append(f"partner {formatting.name(part['partner'])}")
    if kind in KINDS and KINDS[kind].has_degrees:
        words.append(f"severity {part['severity']:g}")
    splits = list(part.get("splits") or ["train"])
    if splits != ["train"]:
        words.append(f"in {', '.join(splits)}")
    return ", ".join(words)


def _entry(study: Study, name: str, condition: Condition, base: Path) -> Entry:
    method, runs, baseline = study.methods[name], list(study.runs_of(name, condition)), study.baseline_of(name)
    scores = {}
    for key, (quantity, _) in METRICS.items():
        mean = quantity.interval(study, name, condition)
        if mean.n:
            compared = None if name == baseline else compare_with_baseline(study, name, condition, quantity)
            has_pair = compared is not None and compared.difference.n > 0
            scores[key] = Score(mean, compared.difference if compared is not None and has_pair else None)
    files = [base / path for path in overlays(method)]
    return Entry(
        group=study.title,
        method=name,
        overlays=tuple(path.stem for path in files if path.parent.name == "methods"),
        data=study.data.name or formatting.MISSING,
        student=_student(study),
        noise=noise_meaning(study, condition),
        ratio=condition.ratio,
        seeds=len(runs),
        tuning=_tuning(study, method),
        scores=scores,
        baseline=baseline,
        cost=_cost(study, name, condition),
        options=_options(runs[0].options),
        command=study.command,
        configuration=tuple(Link(path.stem, path if path.is_file() else None) for path in files),
        records=tuple(_record(study, run) for run in runs),
    )


def _has_runs(study: Study, method: str, condition: Condition) -> bool:
    return next(study.runs_of(method, condition), None) is not None


def _record(study: Study, run: Run) -> Link:
    published = _PUBLISHED.fullmatch(run.folder.as_posix())
    if published is not None:
        return Link(str(run.seed), study.root / published[1], int(published[2]))
    return Link(str(run.seed), study.root / run.folder / "results.json")


def _tuning(study: Study, method: StudyMethod) -> str:
    if study.tuning is None:
        return "untuned"
    trials = len(method.points)
    return f"tuned with {trials} trials" if trials > 1 else "nothing to tune"


def _options(options: Mapping[str, Any]) -> str:
    """Options that trials chose: the last part of each name, and of each class, with its value."""
    return ", ".join(f"{name.rpartition('.')[2]} {_value(value)}" for name, value in options.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping) and "init_args" in value:
        value = value["init_args"]
    if isinstance(value, Mapping):
        return f"({', '.join(f'{name} {_value(part)}' for name, part in value.items())})"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')


def _student(study: Study) -> str:
    return " + ".join(Path(path).stem for path in study.student) or formatting.MISSING


def _measured(study: Study) -> str:
    runs = study.runs.values()
    commits = " and ".join(sorted({run.commit[:10] for run in runs if run.commit})) or "an unknown commit"
    return f"measured at commit {commits}{' with changes' if any(run.dirty for run in runs) else ''}"


def _about(study: Study, state: str) -> str:
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    data = study.data.name or "unnamed data"
    size = f" ({formatting.count(study.data.num_train_images)} training images)" if study.data.num_train_images else ""
    tuning = "untuned"
    if study.tuning is not None:
        tuning = f"tuned with up to {study.tuning.trials} trials for each method and condition"
    missing = "" if len(study.runs) == study.num_expected else f"; {len(study.runs)} of {study.num_expected} cells"
    hardware = ", ".join(sorted({run.hardware for run in study.runs.values() if run.hardware}))
    return (
        f"Data {data}{size}; student {_student(study)}; protocol {study.protocol}; {seeds}; {tuning}; {state}"
        f"{f'; {hardware}' if hardware else ''}{missing}.{f' Command: {study.command}' if study.command else ''}"
    )


def _cost(study: Study, method: str, condition: Condition) -> float | None:
    """The median over seeds of the wall time relative to that of InfoNCE with the same seed, on the same hardware."""
    reference = _infonce(study)
    if reference is None:
        return None
    references = {run.seed: run for run in study.runs_of(reference, condition)}
    pairs = [(run, references[run.seed]) for run in study.runs_of(method, condition) if run.seed in references]
    ratios = [
        own.wall_time_s / other.wall_time_s
        for own, other in pairs
        if own.wall_time_s and other.wall_time_s and own.hardware == other.hardware
    ]
    return statistics.median(ratios) if ratios else None


def _infonce(study: Study) -> str | None:
    """The method that is InfoNCE, by its overlay; the baseline if several are."""
    found = [name for name, method in study.methods.items() if {p.stem for p in overlays(method)} in _INFONCE]
    return study.baseline if study.baseline in found else next(iter(found), None)
