"""Tables that describe a study: methods, imbalances, tuning, teachers, corrupted data and runs."""

import math
from collections.abc import Mapping
from typing import Any

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.tables.table import Block, Cell, Table, text_row
from sdr_lightning.results.schema import Condition, Realised, Run, Study, StudyStage


def methods_table(study: Study) -> Table:
    """Methods and the weights of their loss terms, by stage."""
    rows = []
    for method in study.methods.values():
        roles = {study.baseline: "baseline", study.candidate: "candidate"}
        weights = "; then ".join(_stage(stage) for stage in method.stages)
        detail = f"({roles[method.name]})" if method.name in roles else ""
        rows.append((Cell(method.name, detail), Cell(method.description), Cell(weights or formatting.MISSING)))
    return Table(
        "methods",
        "Methods",
        ("Method", "Description", "Loss weights"),
        (Block(tuple(rows)),),
        numeric=False,
    )


def _stage(stage: StudyStage) -> str:
    weights = ", ".join(f"{term}{formatting.NBSP}{weight:g}" for term, weight in (stage.weights or {}).items())
    return weights if stage.epochs is None else f"{weights}, {stage.epochs}{formatting.NBSP}epochs"


def imbalances_table(study: Study) -> Table:
    """Kinds of imbalance: description and severities."""
    rows = tuple(
        text_row(
            formatting.name(item.name),
            item.description,
            ", ".join(f"{severity:g}" for severity in item.severities) or formatting.MISSING,
        )
        for item in study.imbalances.values()
    )
    return Table(
        "imbalances",
        "Imbalances",
        ("Imbalance", "Corruption of the training data", "Severity"),
        (Block(rows),),
        numeric=False,
    )


def spaces_table(study: Study) -> Table | None:
    """The space of each method and its number of trials; None without tuning."""
    if study.tuning is None:
        return None
    rows = []
    for method in study.methods.values():
        space = "; ".join(f"{name}: {_distribution(given)}" for name, given in (method.space or {}).items())
        few = "its space has no more points" if len(method.points) < study.tuning.trials else ""
        rows.append((Cell(method.name), Cell(space or "nothing to choose"), Cell(str(len(method.points)), few)))
    headings = ("Method", "Space", "Trials for each condition")
    return Table("spaces", "Options that trials choose", headings, (Block(tuple(rows)),), numeric=False)


def _distribution(given: Mapping[str, Any]) -> str:
    if given.keys() == {"values"}:
        return ", ".join(map(str, given["values"]))
    return ", ".join(f"{key} {value}" for key, value in given.items())


def chosen_table(study: Study) -> Table | None:
    """The chosen options and validation rsum of each method by condition; None without tuning."""
    if study.tuning is None:
        return None
    scores = {(trial.method, trial.condition, trial.number): trial.score for trial in study.trials}
    blocks = []
    for condition in study.conditions:
        rows = []
        for method in study.methods.values():
            best = study.chosen.get((method.name, condition))
            done = sum(key[:2] == (method.name, condition) for key in scores)
            rows.append(
                text_row(method.name, f"{done} of {len(method.points)} trials are finished", *[formatting.MISSING] * 3)
                if best is None
                else text_row(
                    method.name,
                    ", ".join(f"{name} {_value(value)}" for name, value in best.options.items()) or "as configured",
                    str(best.number),
                    _score(best.score),
                    _score(scores[method.name, condition, 0]),
                )
            )
        blocks.append(Block(tuple(rows), formatting.condition_label(condition)))
    headings = ("Method", "Chosen options", "Trial", "Validation rsum", "Validation rsum as configured")
    return Table("chosen", "Chosen options", headings, tuple(blocks), numeric=False)


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _score(value: float) -> str:
    return formatting.number(value) if math.isfinite(value) else "failed"


def teachers_table(study: Study) -> Table | None:
    """Retrieval quality of each teacher within its own modality; None without teachers."""
    if not study.teacher_records:
        return None
    metrics = list(dict.fromkeys(key for teacher in study.teacher_records for key in teacher.metrics))
    rows = tuple(
        (
            Cell(teacher.modality, "; ".join(filter(None, (teacher.description, teacher.trained_on)))),
            *(
                Cell(formatting.number(teacher.metrics[key]) if key in teacher.metrics else formatting.MISSING)
                for key in metrics
            ),
            Cell(formatting.duration(teacher.wall_time_s)),
            Cell(formatting.short(teacher.fingerprint)),
        )
        for teacher in study.teacher_records
    )
    headings = ("Teacher", *(f"{key}, %" for key in metrics), "Wall time", "Fingerprint")
    return Table("teachers", "Teachers: retrieval within their own modality", headings, (Block(rows),))


def realised_table(study: Study) -> Table | None:
    """Corruption of the training data as applied, by condition and seed; None if no run recorded it."""
    rows = []
    for condition in study.conditions:
        for seed in study.seeds:
            found = realised(study, condition, seed)
            if not found:
                continue
            measured = next((item for item in found if item.degree is not None), found[0])
            outcomes = {item.sha256 for item in found}
            rows.append(
                text_row(
                    formatting.condition_label(condition),
                    str(seed),
                    formatting.percent(condition.ratio),
                    ", ".join(formatting.percent(part.ratio) for part in measured.parts) or formatting.MISSING,
                    ", ".join(
                        f"{formatting.count(part.affected)} of {formatting.count(part.total)}"
                        for part in measured.parts
                    )
                    or formatting.MISSING,
                    _share(measured.image_to_text),
                    _share(measured.text_to_image),
                    formatting.short(measured.sha256),
                    f"yes ({len(found)})" if len(outcomes) == 1 else f"no ({len(outcomes)} variants)",
                )
            )
    if not rows:
        return None
    headings = (
        "Condition",
        "Seed",
        "Requested",
        "Applied",
        "Items affected",
        "Δ image → text",
        "Δ text → image",
        "SHA-256",
        "Identical for all methods",
    )
    return Table("realised", "Corruption of the training data: requested and applied", headings, (Block(tuple(rows)),))


def _share(value: float | None) -> str:
    return formatting.MISSING if value is None else f"{value:.3f}"


def realised(study: Study, condition: Condition, seed: int) -> list[Realised]:
    """Return the recorded corruption of the runs of one condition and seed, one entry per method."""
    return [
        run.realised
        for run in study.runs.values()
        if run.condition == condition and run.seed == seed and run.realised is not None
    ]


def runs_table(study: Study) -> Table:
    """One row per run: what it is, its folder or its line of results.jsonl, fingerprint, versions, commit, hardware."""
    rows = tuple(
        text_row(
            run.method,
            formatting.condition_label(run.condition),
            str(run.seed),
            run.folder.as_posix(),
            formatting.short(run.fingerprint),
            formatting.duration(run.wall_time_s),
            ", ".join(f"{package}{formatting.NBSP}{version}" for package, version in run.versions.items())
            or formatting.MISSING,
            commit(run),
            run.hardware or formatting.MISSING,
        )
        for run in study.runs.values()
    )
    headings = (
        "Method",
        "Condition",
        "Seed",
        "Run",
        "Fingerprint",
        "Wall time",
        "Versions",
        "Commit",
        "Hardware",
    )
    return Table("runs", "Runs", headings, (Block(rows),), numeric=False)


def commit(run: Run) -> str:
    """Format the commit of a run, marked if the working tree had uncommitted changes."""
    return formatting.short(run.commit) + (" + changes" if run.dirty else "")
