"""Reading a study's folder. Every malformed file is a ``ValueError`` that names it and what is wrong."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from sdr_lightning.results.fields import Fields
from sdr_lightning.results.schema import (
    NO_IMBALANCE,
    RECALLS,
    Condition,
    Data,
    Imbalance,
    Method,
    Part,
    Realised,
    Run,
    Stage,
    Study,
    Swept,
    Teacher,
)

_PERCENT = re.compile(r"(R|NDCG)@\d+$")


def load_study(study_dir: Path) -> Study:
    """Read a study's folder.

    Raises:
        ValueError: there is no ``study.json``, a file is malformed, or two folders hold the same run.
    """
    path = study_dir / "study.json"
    if not path.is_file():
        raise ValueError(f"no study in {study_dir}: run sdr reproduce first")
    fields = Fields.read(path)
    methods = {name: _method(name, child) for name, child in fields.child("methods").children()}
    imbalances = {name: _imbalance(name, child) for name, child in fields.child("imbalances").children()}
    ratios = tuple(sorted({round(ratio, 6) for ratio in fields.numbers("ratios")}))
    seeds = tuple(dict.fromkeys(int(seed) for seed in fields.numbers("seeds")))
    for key, values in {
        "methods": methods,
        "imbalances": imbalances,
        "ratios": ratios,
        "seeds": seeds,
    }.items():
        if not values:
            raise ValueError(f"{path}: {key!r} is empty, so there is nothing to report")
    for role in ("baseline", "candidate"):
        if fields.text(role) not in methods:
            raise fields.complaint(role, f"one of the methods {', '.join(methods)}")
    protocol = fields.text("protocol", "clean")
    code = fields.text("code", "")
    found, foreign = _load_runs(study_dir, protocol, methods, imbalances, ratios, seeds)
    teachers = (_teacher(path) for path in sorted(study_dir.glob("teachers/**/teacher.json")))
    return Study(
        root=study_dir,
        name=fields.text("name"),
        title=fields.text("title", fields.text("name")),
        description=fields.text("description", ""),
        data=_data(fields.optional_child("data")),
        baseline=fields.text("baseline"),
        candidate=fields.text("candidate"),
        methods=methods,
        protocol=protocol,
        imbalances=imbalances,
        ratios=ratios,
        seeds=seeds,
        notes=fields.texts("notes"),
        code=code,
        command=fields.text("command", ""),
        wall_time_s=fields.optional_number("wall_time_s"),
        teachers=tuple(teacher for teacher in teachers if teacher.code == code),
        runs={key: run for key, run in found.items() if run.code == code},
        foreign=foreign,
        outdated=tuple(run.folder for run in found.values() if run.code != code),
    )


def _load_runs(
    root: Path,
    protocol: str,
    methods: Mapping[str, Method],
    imbalances: Mapping[str, Imbalance],
    ratios: tuple[float, ...],
    seeds: tuple[int, ...],
) -> tuple[dict[tuple[str, Condition, int], Run], tuple[Path, ...]]:
    grid = {Condition.of(name, ratio) for name in imbalances for ratio in ratios}
    runs: dict[tuple[str, Condition, int], Run] = {}
    foreign: list[Path] = []
    for path in sorted(root.glob("cells/**/results.json")):
        run = _run(path, root)
        if Fields.read(path).text("protocol", "clean") != protocol:
            foreign.append(run.folder)
            continue
        if run.method not in methods or run.condition not in grid or run.seed not in seeds:
            foreign.append(run.folder)
            continue
        key = (run.method, run.condition, run.seed)
        if key in runs:
            # Choosing one silently would make the report depend on the names of folders.
            raise ValueError(f"{path}: the same run is also in {runs[key].folder}; delete one of the two")
        runs[key] = run
    return runs, tuple(foreign)


def _run(path: Path, root: Path) -> Run:
    fields = Fields.read(path)
    imbalance, ratio = fields.text("imbalance", NO_IMBALANCE), fields.number("ratio")
    if imbalance == NO_IMBALANCE and ratio != 0:
        raise fields.complaint("imbalance", f"named at ratio {ratio:g}")
    git = fields.optional_child("git")
    return Run(
        folder=path.parent.relative_to(root),
        method=fields.text("method"),
        condition=Condition.of(imbalance, ratio),
        seed=fields.integer("seed"),
        metrics=_metrics(fields.child("metrics")),
        realised=_realised(fields.child("realised")) if "realised" in fields else None,
        evaluated_under=_evaluated_under(fields.optional_child("evaluated_under")),
        code=fields.text("code", ""),
        fingerprint=fields.text("fingerprint", ""),
        wall_time_s=fields.optional_number("wall_time_s"),
        versions=fields.optional_child("versions").words(),
        commit=git.text("commit", ""),
        dirty=git.flag("dirty", default=False),
        hardware=fields.text("hardware", ""),
    )


def _metrics(fields: Fields) -> dict[str, float]:
    """The metrics, after a check of the units that a wrong one would be seen by."""
    metrics = fields.table()
    for key, value in metrics.items():
        if _PERCENT.search(key) and not 0 <= value <= 100:
            raise fields.complaint(key, "in percent, from 0 to 100")
    if "rsum" in metrics and all(key in metrics for key in RECALLS):
        total = math.fsum(metrics[key] for key in RECALLS)
        if not math.isclose(metrics["rsum"], total, abs_tol=0.01):
            raise fields.complaint("rsum", f"the sum of the six recalls, {total:.2f}")
    return metrics


def _realised(fields: Fields) -> Realised:
    degree = fields.optional_child("degree")
    return Realised(
        parts=_parts(fields),
        sha256=fields.text("sha256", ""),
        image_to_text=degree.optional_number("image_to_text"),
        text_to_image=degree.optional_number("text_to_image"),
    )


def _parts(fields: Fields) -> tuple[Part, ...]:
    return tuple(
        Part(part.text("kind"), part.integer("affected"), part.integer("of")) for part in fields.objects("imbalances")
    )


def _evaluated_under(fields: Fields) -> tuple[str, ...]:
    return tuple(
        f"{split}: {part.kind}, {part.affected} of {part.total}"
        for split, record in fields.children()
        for part in _parts(record)
    )


def _data(fields: Fields) -> Data:
    return Data(
        name=fields.text("name", ""),
        description=fields.text("description", ""),
        num_train_images=fields.optional_integer("num_train_images"),
        num_train_captions=fields.optional_integer("num_train_captions"),
        num_test_images=fields.optional_integer("num_test_images"),
        num_test_captions=fields.optional_integer("num_test_captions"),
        fingerprint=fields.text("fingerprint", ""),
        relevance=fields.text("relevance", ""),
    )


def _method(name: str, fields: Fields) -> Method:
    stages = tuple(
        Stage(stage.optional_child("weights").table(), stage.optional_integer("epochs"))
        for stage in fields.objects("stages")
    )
    swept = fields.optional_child("swept")
    return Method(
        name,
        fields.text("description", ""),
        stages,
        Swept(swept.text("field"), swept.number("value")) if "field" in swept else None,
    )


def _imbalance(name: str, fields: Fields) -> Imbalance:
    return Imbalance(name, fields.text("kind", name), fields.numbers("severities"), fields.text("description", ""))


def _teacher(path: Path) -> Teacher:
    fields = Fields.read(path)
    return Teacher(
        modality=fields.text("modality", path.parent.name),
        description=fields.text("description", ""),
        trained_on=fields.text("trained_on", ""),
        code=fields.text("code", ""),
        fingerprint=fields.text("fingerprint", ""),
        metrics=fields.optional_child("metrics").table(),
        wall_time_s=fields.optional_number("wall_time_s"),
    )
