"""The folder of a suite as typed values. Reads only; every malformed file is a ``ValueError`` naming it."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sdr_lightning.reporting.fields import Fields

RECALLS = tuple(f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
"""The six recalls whose sum is rsum."""

NO_IMBALANCE = "none"
"""Name of the imbalance of a run at ratio 0: such a run belongs to every imbalance's curve."""

_PERCENT = re.compile(r"(R|NDCG)@\d+$")


class Condition(NamedTuple):
    """What was done to the training data: which imbalance, and to which fraction of it."""

    imbalance: str
    ratio: float

    @classmethod
    def of(cls, imbalance: str, ratio: float) -> "Condition":
        """The condition of a point on a curve; ratio 0 is the same condition on all of them."""
        return cls(NO_IMBALANCE, 0.0) if ratio == 0 else cls(imbalance, round(ratio, 6))


@dataclass(frozen=True)
class Data:
    """The data set. Counts are None where the suite does not give them."""

    name: str
    description: str
    num_train_images: int | None
    num_train_captions: int | None
    num_test_images: int | None
    num_test_captions: int | None
    fingerprint: str
    relevance: str


@dataclass(frozen=True)
class Method:
    """A training objective under test: the weight of each of its terms."""

    name: str
    description: str
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Imbalance:
    """A way of making one modality poor."""

    name: str
    kind: str
    severity: float | None
    description: str


@dataclass(frozen=True)
class Realised:
    """What an imbalance did in fact: ``affected`` of ``total`` items, and a hash of which."""

    ratio: float | None
    affected: int | None
    total: int | None
    sha256: str


@dataclass(frozen=True)
class Run:
    """One finished training run with its test metrics.

    In ``metrics``, recalls (``i2t_R@1``) and NDCG (``t2t_NDCG@10``) are in percent, ``rsum`` is the sum of
    the six recalls (0 to 600) and tie rates are fractions: what `sdr_lightning.metrics.evaluate` returns.
    """

    folder: Path
    method: str
    condition: Condition
    seed: int
    metrics: Mapping[str, float]
    best_epoch: int | None
    realised: Realised | None
    fingerprint: str
    wall_time_s: float | None
    versions: Mapping[str, str]
    commit: str
    dirty: bool
    hardware: str


@dataclass(frozen=True)
class Teacher:
    """A unimodal teacher and its retrieval quality within its own modality, in percent."""

    modality: str
    description: str
    fingerprint: str
    metrics: Mapping[str, float]
    wall_time_s: float | None


@dataclass(frozen=True)
class Suite:
    """A grid of methods x conditions x seeds, and those of its runs that are there."""

    root: Path
    name: str
    title: str
    description: str
    data: Data
    baseline: str
    candidate: str
    methods: Mapping[str, Method]
    imbalances: Mapping[str, Imbalance]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]
    command: str
    wall_time_s: float | None
    teachers: tuple[Teacher, ...]
    runs: Mapping[tuple[str, Condition, int], Run]
    foreign: tuple[Path, ...]
    """Folders under ``cells`` whose run is not on the grid; they enter no number."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions in order, ratio 0 once."""
        points = (Condition.of(name, ratio) for name in self.imbalances for ratio in self.ratios)
        return tuple(sorted(dict.fromkeys(points), key=lambda c: c.imbalance != NO_IMBALANCE))

    @property
    def hardest(self) -> tuple[Condition, ...]:
        """The condition of the highest ratio of each imbalance."""
        return tuple(dict.fromkeys(Condition.of(name, max(self.ratios)) for name in self.imbalances))

    @property
    def num_expected(self) -> int:
        """How many runs a finished suite has."""
        return len(self.methods) * len(self.conditions) * len(self.seeds)

    def runs_of(self, method: str, condition: Condition) -> Iterator[Run]:
        """The runs that are there, in the order of the seeds."""
        for seed in self.seeds:
            run = self.runs.get((method, condition, seed))
            if run is not None:
                yield run


def load_suite(suite_dir: Path) -> Suite:
    """Read a suite's folder.

    Raises:
        ValueError: there is no ``suite.json``, a file is malformed, or two folders hold the same run.
    """
    path = suite_dir / "suite.json"
    if not path.is_file():
        raise ValueError(f"no suite in {suite_dir}: run sdr reproduce first")
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
    runs, foreign = _load_runs(suite_dir, methods, imbalances, ratios, seeds)
    return Suite(
        root=suite_dir,
        name=fields.text("name"),
        title=fields.text("title", fields.text("name")),
        description=fields.text("description", ""),
        data=_data(fields.optional_child("data")),
        baseline=fields.text("baseline"),
        candidate=fields.text("candidate"),
        methods=methods,
        imbalances=imbalances,
        ratios=ratios,
        seeds=seeds,
        notes=fields.texts("notes"),
        command=fields.text("command", ""),
        wall_time_s=fields.optional_number("wall_time_s"),
        teachers=tuple(_teacher(path) for path in sorted(suite_dir.glob("teachers/*/teacher.json"))),
        runs=runs,
        foreign=foreign,
    )


def _load_runs(
    root: Path,
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
        best_epoch=fields.optional_child("val").optional_integer("best_epoch"),
        realised=_realised(fields.child("realised")) if "realised" in fields else None,
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
    return Realised(
        ratio=fields.optional_number("ratio"),
        affected=fields.optional_integer("affected"),
        total=fields.optional_integer("of"),
        sha256=fields.text("sha256", ""),
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
    return Method(name, fields.text("description", ""), fields.optional_child("weights").table())


def _imbalance(name: str, fields: Fields) -> Imbalance:
    severity = fields.optional_number("severity")
    return Imbalance(name, fields.text("kind", name), severity, fields.text("description", ""))


def _teacher(path: Path) -> Teacher:
    fields = Fields.read(path)
    return Teacher(
        modality=fields.text("modality", path.parent.name),
        description=fields.text("description", ""),
        fingerprint=fields.text("fingerprint", ""),
        metrics=fields.optional_child("metrics").table(),
        wall_time_s=fields.optional_number("wall_time_s"),
    )
