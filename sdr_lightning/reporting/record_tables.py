"""Tables of what was run rather than what came out: methods, imbalances, teachers, provenance."""

from collections import Counter

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.table import Block, Cell, Table, cells
from sdr_lightning.results.schema import Condition, Realised, Run, Study, StudyStage


def methods_table(study: Study) -> Table:
    """The methods and the weights of their terms."""
    rows = []
    for method in study.methods.values():
        roles = {study.baseline: "baseline", study.candidate: "candidate"}
        weights = "; then ".join(_stage(stage) for stage in method.stages)
        detail = f"({roles[method.name]})" if method.name in roles else ""
        rows.append((Cell(method.name, detail), Cell(method.description), Cell(weights or write.MISSING)))
    return Table(
        "methods",
        "Methods",
        ("Method", "What it is", "Weights of the terms"),
        (Block(tuple(rows)),),
        numeric=False,
    )


def _stage(stage: StudyStage) -> str:
    weights = ", ".join(f"{term}{write.NBSP}{weight:g}" for term, weight in (stage.weights or {}).items())
    return weights if stage.epochs is None else f"{weights}, {stage.epochs}{write.NBSP}epochs"


def imbalances_table(study: Study) -> Table:
    """The imbalances."""
    rows = tuple(
        cells(
            write.name(item.name),
            item.description,
            ", ".join(f"{severity:g}" for severity in item.severities) or write.MISSING,
        )
        for item in study.imbalances.values()
    )
    return Table(
        "imbalances",
        "Imbalances",
        ("Imbalance", "What is done to the training data", "Severity"),
        (Block(rows),),
        numeric=False,
    )


def teachers_table(study: Study) -> Table | None:
    """The teachers' own retrieval quality."""
    if not study.teacher_records:
        return None
    metrics = list(dict.fromkeys(key for teacher in study.teacher_records for key in teacher.metrics))
    rows = tuple(
        (
            Cell(teacher.modality, "; ".join(filter(None, (teacher.description, teacher.trained_on)))),
            *(Cell(write.number(teacher.metrics[key]) if key in teacher.metrics else write.MISSING) for key in metrics),
            Cell(write.duration(teacher.wall_time_s)),
            Cell(write.short(teacher.fingerprint)),
        )
        for teacher in study.teacher_records
    )
    headings = ("Teacher", *(f"{key}, %" for key in metrics), "Wall time", "Fingerprint")
    return Table("teachers", "Teachers, each within its own modality", headings, (Block(rows),))


def realised_table(study: Study) -> Table | None:
    """What each imbalance did in fact, by seed, how much of it is measured, and whether it was the same for all methods."""
    rows = []
    for condition in study.conditions:
        for seed in study.seeds:
            found = realised(study, condition, seed)
            if not found:
                continue
            measured = next((item for item in found if item.degree is not None), found[0])
            outcomes = {item.sha256 for item in found}
            rows.append(
                cells(
                    write.condition_label(condition),
                    str(seed),
                    write.percent(condition.ratio),
                    ", ".join(write.percent(part.ratio) for part in measured.parts) or write.MISSING,
                    ", ".join(f"{write.count(part.affected)} of {write.count(part.total)}" for part in measured.parts)
                    or write.MISSING,
                    _share(measured.image_to_text),
                    _share(measured.text_to_image),
                    write.short(measured.sha256),
                    f"yes ({len(found)})" if len(outcomes) == 1 else f"no, {len(outcomes)} different",
                )
            )
    if not rows:
        return None
    headings = (
        "Condition",
        "Seed",
        "Asked",
        "Realised",
        "Affected",
        "Δ image → text",
        "Δ text → image",
        "SHA-256",
        "Same for all methods",
    )
    return Table("realised", "Imbalance asked for and imbalance found", headings, (Block(tuple(rows)),))


def _share(value: float | None) -> str:
    return write.MISSING if value is None else f"{value:.3f}"


def realised(study: Study, condition: Condition, seed: int) -> list[Realised]:
    """What the runs of one condition and seed say was done to their data, one entry a method."""
    return [
        run.realised
        for run in study.runs.values()
        if run.condition == condition and run.seed == seed and run.realised is not None
    ]


def provenance_table(study: Study) -> Table:
    """Where each number comes from: one row per run."""
    rows = tuple(
        cells(
            run.folder.as_posix(),
            write.short(run.fingerprint),
            str(run.seed),
            write.duration(run.wall_time_s),
            ", ".join(f"{package}{write.NBSP}{version}" for package, version in run.versions.items()) or write.MISSING,
            commit(run),
            run.hardware or write.MISSING,
        )
        for run in study.runs.values()
    )
    headings = (
        "Run folder",
        "Fingerprint",
        "Seed",
        "Wall time",
        "Versions",
        "Commit",
        "Hardware",
    )
    return Table("runs", "Every run", headings, (Block(rows),), numeric=False)


def commit(run: Run) -> str:
    """The commit a run was made from, marked where files had been changed since."""
    return write.short(run.commit) + (" + changes" if run.dirty else "")


def provenance_line(study: Study) -> str:
    """One line that says how the numbers were made."""
    runs = study.runs.values()
    dirty = sum(run.dirty for run in runs)
    parts = [
        [f"protocol {study.protocol}"],
        [f"made by {study.command}"] if study.command else [],
        [f"data {write.short(study.data.fingerprint)}"] if study.data.fingerprint else [],
        sorted({f"commit {write.short(run.commit)}" for run in runs if run.commit}),
        [f"code {write.short(study.code)}"] if study.code else [],
        [f"{dirty} of {len(runs)} runs with changes to it"] if dirty else [],
        sorted({f"torch {run.versions['torch']}" for run in runs if "torch" in run.versions}),
        sorted({run.hardware for run in runs if run.hardware}),
        [f"wall time {write.duration(study.wall_time_s)}"] if study.wall_time_s is not None else [],
    ]
    return " · ".join(", ".join(part) for part in parts if part)


def caveats(study: Study) -> list[str]:
    """The study's own notes, and what the folder itself gives reason to say."""
    notes = list(study.notes)
    missing = study.num_expected - len(study.runs)
    if missing:
        notes.append(f"{missing} of {study.num_expected} runs are missing; n is shown wherever it is smaller.")
    for condition in study.conditions:
        for seed in study.seeds:
            if len({item.sha256 for item in realised(study, condition, seed)}) > 1:
                where = f"{write.condition_label(condition)}, seed {seed}"
                notes.append(f"{where}: the methods did not see the same corrupted data, so pairing is in doubt.")
    under = Counter(text for run in study.runs.values() for text in run.evaluation_corruption)
    for text, runs in sorted(under.items()):
        notes.append(f"The evaluation data is imbalanced in {runs} of {len(study.runs)} runs: {text}.")
    dirty = sum(run.dirty for run in study.runs.values())
    if dirty:
        notes.append(f"{dirty} runs were made from files that differ from their commit.")
    if study.outdated:
        folders = ", ".join(folder.as_posix() for folder in study.outdated)
        notes.append(
            f"Made with other code than the rest, in no number until sdr reproduce runs them again: {folders}."
        )
    if study.foreign:
        folders = ", ".join(folder.as_posix() for folder in study.foreign)
        notes.append(f"Not part of the study and in no number: {folders}.")
    return notes
