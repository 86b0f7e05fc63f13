"""Reading the folder of a study. Every malformed file is a ``ValueError`` that names it and the mistake."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sdr_lightning.results.codec import from_json
from sdr_lightning.results.fields import checked_object, read_object
from sdr_lightning.results.schema import Condition, Run, Study, StudyRecord, TeacherRecord, Trial, best_trials


def load_study(root: Path) -> Study:
    """Read the folder of a study, as ``sdr reproduce`` wrote it or as it was published.

    Cells are read from ``cells/**/results.json``, and from ``results.jsonl`` where there is no file of the same cell; trials
    likewise from ``trials/**/trial.json`` and ``trials.jsonl``.

    Raises:
        ValueError: there is no ``study.json``, a file is malformed, or two folders hold the same cell.
    """
    path = root / "study.json"
    if not path.is_file():
        raise ValueError(f"no study in {root}: run sdr reproduce first")
    record = from_json(StudyRecord, read_object(path), str(path))
    found, foreign = _load_runs(root, record)
    trials: dict[tuple[str, Condition, int], Trial] = {}
    for trial in load_trials(root):
        if _is_of(record, trial):
            trials.setdefault((trial.method, trial.condition, trial.number), trial)
    count = Counter((method, condition) for method, condition, _ in trials)
    chosen = {
        key: best
        for key, best in best_trials(trials.values()).items()
        if count[key] == len(record.methods[key[0]].points)
    }
    options = {key: best.options for key, best in chosen.items()}
    current = {
        key: run
        for key, run in found.items()
        if record.is_current(run) and run.options == options.get((run.method, run.condition), run.options)
    }
    values: dict[str, Any] = {field.name: getattr(record, field.name) for field in fields(record)}
    values |= {"ratios": tuple(sorted({round(ratio, 6) for ratio in record.ratios}))}
    return Study(
        **values,
        root=root,
        teacher_records=tuple(teacher for teacher in load_teachers(root) if record.is_current(teacher)),
        runs=current,
        trials=tuple(trials.values()),
        chosen=chosen,
        foreign=foreign,
        outdated=tuple(run.folder for key, run in found.items() if key not in current),
    )


def load_teachers(root: Path) -> Iterator[TeacherRecord]:
    """Read the teachers of a study, from ``teachers/**/teacher.json``, and the others from ``teachers.jsonl``."""
    found = [
        from_json(TeacherRecord, read_object(path), str(path)) for path in sorted(root.glob("teachers/**/teacher.json"))
    ]
    yield from found
    for source, value in _lines(root / "teachers.jsonl"):
        teacher = from_json(TeacherRecord, value, source)
        if all((teacher.modality, teacher.trained_on) != (other.modality, other.trained_on) for other in found):
            yield teacher


def load_trials(root: Path) -> Iterator[Trial]:
    """Read the trials of a study, from ``trials/**/trial.json`` and then from ``trials.jsonl``."""
    for path in sorted(root.glob("trials/**/trial.json")):
        yield from_json(Trial, read_object(path), str(path), folder=path.parent.relative_to(root))
    yield from published_trials(root)


def published_trials(root: Path) -> Iterator[Trial]:
    """Read the trials in ``trials.jsonl``; none where there is no such file."""
    for source, value in _lines(root / "trials.jsonl"):
        yield from_json(Trial, value, source, folder=Path(source).relative_to(root))


def published_runs(root: Path) -> Iterator[Run]:
    """Read the cells in ``results.jsonl``; none where there is no such file."""
    for source, value in _lines(root / "results.jsonl"):
        yield from_json(Run, value, source, folder=Path(source).relative_to(root))


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The objects of a JSONL file with the place of each."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        source = f"{path}:{number}"
        try:
            yield source, checked_object(json.loads(line), source)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}: not valid JSON ({error.msg})") from error


def _is_of(record: StudyRecord, trial: Trial) -> bool:
    """Whether a trial is at a point of the study, and was made with its code."""
    method = record.methods.get(trial.method)
    return (
        method is not None
        and record.tuning is not None
        and trial.seed == record.tuning.seed
        and trial.condition in record.conditions
        and trial.number < len(method.points)
        and trial.options == method.points[trial.number]
        and record.is_current(trial)
    )


def _load_runs(root: Path, record: StudyRecord) -> tuple[dict[tuple[str, Condition, int], Run], tuple[Path, ...]]:
    grid = record.conditions
    runs: dict[tuple[str, Condition, int], Run] = {}
    foreign: list[Path] = []
    for path in sorted(root.glob("cells/**/results.json")):
        run = from_json(Run, read_object(path), str(path), folder=path.parent.relative_to(root))
        key = (run.method, run.condition, run.seed)
        if (
            run.protocol != record.protocol
            or run.method not in record.methods
            or run.condition not in grid
            or run.seed not in record.seeds
        ):
            foreign.append(run.folder)
        elif key in runs:  # choosing one would make the report depend on the names of folders
            raise ValueError(f"{path}: the same run is also in {runs[key].folder}; delete one of the two")
        else:
            runs[key] = run
    for run in published_runs(root):
        key = (run.method, run.condition, run.seed)
        on_grid = run.method in record.methods and run.condition in grid and run.seed in record.seeds
        if on_grid and run.protocol == record.protocol and (key not in runs or not record.is_current(runs[key])):
            runs[key] = run
    return runs, tuple(foreign)
