"""Studies and their results: the dataclasses of the YAML file, of the result files and of the report.

``study.json`` holds a :class:`StudyRecord`, ``cells/**/results.json`` a :class:`Run` each, ``trials/**/trial.json`` a
:class:`Trial` each, ``teachers/**/teacher.json`` a :class:`TeacherRecord` each; :mod:`sdr_lightning.results.codec` writes and
reads them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from sdr_lightning.results.codec import key, not_stored

RECALLS = tuple(f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
"""The six recalls whose sum is rsum."""

NO_IMBALANCE = "none"
"""Name of the corruption of a run at ratio 0: such a run belongs to the curves of all corruptions."""

_FOLDER = re.compile(r"\w[\w ,.+()-]*")
_PERCENT = re.compile(r"(R|NDCG)@\d+$|^detection_")


class Condition(NamedTuple):
    """The corruption of the training data, and the share of items that it affects."""

    imbalance: str
    ratio: float

    @classmethod
    def of(cls, imbalance: str, ratio: float) -> Condition:
        """Return the condition of a point on a curve; ratio 0 is the same condition on all curves."""
        return cls(NO_IMBALANCE, 0.0) if ratio == 0 else cls(imbalance, round(ratio, 6))


@dataclass(frozen=True)
class StudyTeacher:
    """A teacher of a study.

    Attributes:
        config: configurations, later ones over earlier ones.
        pretrained: use the tower as configured, without training.
        trained_on: ``clean`` data, once for all conditions; or ``imbalanced``: one teacher per condition, trained on its own
            modality as corrupted there.
        description: one sentence for the report.
        code: in ``study.json``, fingerprint of the code that decides its result.
    """

    config: tuple[Path, ...]
    pretrained: bool = False
    trained_on: Literal["clean", "imbalanced"] = "clean"
    description: str = ""
    code: str = ""

    def __post_init__(self) -> None:
        if self.trained_on not in ("clean", "imbalanced"):
            raise ValueError(f"trained_on must be clean or imbalanced, got {self.trained_on!r}")
        if self.pretrained and self.trained_on == "imbalanced":
            raise ValueError("a pretrained teacher is not trained: leave trained_on out")


@dataclass(frozen=True)
class StudyStage:
    """One training of a method. The next stage starts from its best epoch.

    Attributes:
        config: overlays over the student, such as ``experiments/methods/sdr.yaml``.
        weights: weights of the loss terms, in place of those of the configuration; None leaves them. In ``study.json``,
            the weights of the method as built.
        options: further options of ``sdr fit`` by dotted name.
        epochs: number of epochs; None leaves that of the configuration.
    """

    config: tuple[Path, ...] = ()
    weights: Mapping[str, float] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not isinstance(self.weights, Mapping):
            raise ValueError(f"weights must map terms to numbers, got {self.weights!r}")
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options must map options of sdr fit to values, got {self.options!r}")
        if self.epochs is not None and (not isinstance(self.epochs, int) or self.epochs < 1):
            raise ValueError(f"epochs must be a positive integer, got {self.epochs!r}")


@dataclass(frozen=True)
class Swept:
    """The field in which the methods of a family differ, and the value of one of them."""

    field: str
    value: float


@dataclass(frozen=True)
class StudyMethod:
    """One way to train the student.

    Attributes:
        name: in the study.
        stages: trainings in order; at least one.
        teachers: ``real``, or ``placebo``: random features in place of those of the teachers.
        description: one sentence for the report.
        swept: set for the members of a family of methods.
        space: of a tuned study, the options of ``sdr fit`` that trials choose, by dotted name: ``{values: ...}`` or another
            distribution of a sweep file. Empty if there is nothing to choose; None in a study without tuning.
        points: in ``study.json``, the options of each trial; those of trial 0, the configuration itself, are empty.
        code: in ``study.json``, fingerprint of the code that decides its results.
    """

    name: str
    stages: tuple[StudyStage, ...]
    teachers: Literal["real", "placebo"] = "real"
    description: str = ""
    swept: Swept | None = None
    space: Mapping[str, Mapping[str, Any]] | None = None
    points: tuple[Mapping[str, Any], ...] = ()
    code: str = ""

    def __post_init__(self) -> None:
        if self.teachers not in ("real", "placebo"):
            raise ValueError(f"teachers must be real or placebo, got {self.teachers!r}")

    def with_options(self, options: Mapping[str, Any]) -> StudyMethod:
        """Return the method with further options in every stage, over its own."""
        return replace(
            self, stages=tuple(replace(stage, options={**stage.options, **options}) for stage in self.stages)
        )

    @property
    def total_epochs(self) -> int | None:
        """Epochs of all stages; None where the configuration decides."""
        each = [stage.epochs for stage in self.stages]
        return None if each == [None] else sum(epochs or 0 for epochs in each)


@dataclass(frozen=True)
class StudyImbalance:
    """A corruption of the training data, or a stack of several.

    Attributes:
        name: in the study.
        kind: kinds of the stack, joined by ``+``.
        severities: of the parts whose kind has severities.
        description: for the report.
        parts: fields of :class:`~sdr_lightning.data.imbalance.Imbalance`; ratio and seed are set per cell.
        ratios: of this corruption, in place of those of the study; None for those of the study.
    """

    name: str
    kind: str
    severities: tuple[float, ...] = ()
    description: str = ""
    parts: tuple[Mapping[str, Any], ...] = ()
    ratios: tuple[float, ...] | None = None


@dataclass(frozen=True)
class StudyTuning:
    """How the options of each method are chosen, by validation rsum, for each condition.

    Attributes:
        trials: for each method and condition, at least 2; the first is the method as configured.
        seed: of initialisation, batches and corrupted items of all trials, and of the choice of points; not among the seeds
            of the study.
    """

    trials: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("trials", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"tuning: {name} must be an integer of at least {least}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """A grid of methods, conditions and seeds: the content of a study's YAML.

    Attributes:
        name: name of its folder.
        title: title of its report.
        description: introduction of its report.
        student: configurations of the student, later ones over earlier ones.
        teachers: by modality; none, one or two.
        methods: by name.
        baseline: the method that others are compared with.
        candidate: the method whose claims are tested.
        imbalances: corruptions by name.
        ratios: of each corruption without ratios of its own, in [0, 1]; ratio 0 is run once for all corruptions.
        seeds: of initialisation, order of batches and choice of corrupted items.
        tuning: how options of the methods are chosen; None to use the methods as configured.
        jobs: cells that run at a time.
        protocol: ``clean``: every method trains for equally many epochs; or ``paper``, see docs/sdr.md.
        equal_epochs: False where the number of epochs is studied.
        notes: caveats for the report.
        without_hub: the command of a similar study that needs nothing from the hub, named if the hub cannot be reached.
        file: the YAML file.

    Raises:
        ValueError: a value out of range, or a baseline or candidate that is no method.
    """

    name: str
    title: str
    description: str = ""
    student: tuple[Path, ...] = ()
    teachers: Mapping[str, StudyTeacher] = field(default_factory=dict)
    methods: Mapping[str, StudyMethod]
    baseline: str
    candidate: str
    imbalances: Mapping[str, StudyImbalance]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    tuning: StudyTuning | None = None
    jobs: int = 1
    protocol: str = "clean"
    equal_epochs: bool = True
    notes: tuple[str, ...] = ()
    without_hub: str = ""
    file: Path = Path("study.yaml")

    def __post_init__(self) -> None:
        for name in (self.name, *self.methods, *self.imbalances):
            if not _FOLDER.fullmatch(str(name)):
                raise ValueError(f"{name!r} cannot name a folder: use letters, digits, spaces and , . + - _ ( )")
        for role in ("baseline", "candidate"):
            if getattr(self, role) not in self.methods:
                raise ValueError(f"{role} {getattr(self, role)!r} is not among the methods {', '.join(self.methods)}")
        unknown = sorted(self.teachers.keys() - {"image", "text"})
        if unknown:
            raise ValueError(f"teachers are image and text, got {unknown[0]}")
        lengths = {method.total_epochs for method in self.methods.values()}
        if self.protocol == "clean" and self.equal_epochs and len(lengths) > 1:
            each = ", ".join(f"{n}: {m.total_epochs or 'as configured'}" for n, m in self.methods.items())
            raise ValueError(f"under protocol clean every method trains for equally many epochs, got {each}")
        of_their_own = {f"ratios of {i.name}": i.ratios for i in self.imbalances.values() if i.ratios is not None}
        all_ratios = {"ratios": self.ratios, **of_their_own}
        for what, ratios in all_ratios.items():
            outside = [ratio for ratio in ratios if not 0 <= ratio <= 1]
            if outside:
                raise ValueError(f"{what} must lie in [0, 1], got {outside[0]}")
        for what, values in {**all_ratios, "seeds": self.seeds, "imbalances": [*self.imbalances]}.items():
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{what} must be given, each once, got {list(values)}")
        self._check_tuning()

    def _check_tuning(self) -> None:
        tuning = self.tuning
        for method in self.methods.values():
            if tuning is None and method.space is not None:
                raise ValueError(f"method {method.name} has a space, which nothing searches: add tuning: {{trials: N}}")
            if tuning is not None and method.space is None:
                raise ValueError(
                    f"method {method.name} has no space: tuning gives every method equally many trials; space: {{}} "
                    "means that it has nothing to choose"
                )
        if tuning is not None and tuning.seed in self.seeds:
            raise ValueError(f"tuning: seed {tuning.seed} is among the seeds {list(self.seeds)}: choose another")
        if tuning is not None and self.protocol != "clean":
            raise ValueError(f"protocol {self.protocol} selects on the test split: leave tuning out")

    def ratios_of(self, imbalance: str) -> tuple[float, ...]:
        """Return the ratios of a corruption in order; 0 is among them if the study runs clean data at all."""
        own = {name: self.ratios if each.ratios is None else each.ratios for name, each in self.imbalances.items()}
        clean = {0.0} if any(0 in ratios for ratios in own.values()) else set()
        return tuple(sorted(clean | {round(ratio, 6) for ratio in own[imbalance]}))

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions in order, ratio 0 once."""
        points = (Condition.of(name, ratio) for name in self.imbalances for ratio in self.ratios_of(name))
        return tuple(sorted(dict.fromkeys(points), key=lambda c: c.imbalance != NO_IMBALANCE))

    @property
    def hardest(self) -> tuple[Condition, ...]:
        """The condition of the highest ratio of each corruption."""
        return tuple(dict.fromkeys(Condition.of(name, self.ratios_of(name)[-1]) for name in self.imbalances))

    @property
    def num_expected(self) -> int:
        """Number of cells of the finished study, without trials."""
        return len(self.methods) * len(self.conditions) * len(self.seeds)


@dataclass(frozen=True)
class Data:
    """The data set of a study. Counts are None where they are not recorded."""

    name: str = ""
    description: str = ""
    num_train_images: int | None = None
    num_train_captions: int | None = None
    num_test_images: int | None = None
    num_test_captions: int | None = None
    fingerprint: str = ""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Fingerprints by split."""
    relevance: str = ""


@dataclass(frozen=True, kw_only=True)
class StudyRecord(StudySpec):
    """A study as ``study.json`` records it.

    Attributes:
        data: the data set.
        code: fingerprint of the code that decides the results of all methods and teachers, whose own ones are in their
            entries; empty where it is not recorded.
        command: the command that runs the study.
        wall_time_s: duration of a study that ran without interruption.
    """

    data: Data = Data()
    code: str = ""
    command: str = ""
    wall_time_s: float | None = None

    def is_current(self, result: Run | Trial | TeacherRecord) -> bool:
        """Whether a result was made with the code of the study."""
        entry = (
            self.teachers.get(result.modality) if isinstance(result, TeacherRecord) else self.methods.get(result.method)
        )
        return result.code == ((entry.code if entry is not None else "") or self.code)


@dataclass(frozen=True)
class Part:
    """Realised corruption of one part of a stack: ``affected`` of ``total`` items, images or captions."""

    kind: str
    affected: int
    total: int = field(metadata=key("of"))

    @property
    def ratio(self) -> float:
        """Share of the items that were changed."""
        return self.affected / self.total


@dataclass(frozen=True)
class Degree:
    """Information imbalance between the features of the teachers, in each direction."""

    image_to_text: float
    text_to_image: float


@dataclass(frozen=True)
class Realised:
    """Realised corruption of a split.

    Attributes:
        parts: of the stack.
        sha256: hash of the outcome.
        measured: degree of imbalance, where both teachers are attached.
        wrong_captions_per_image: number of images by number of wrong captions.
    """

    parts: tuple[Part, ...] = field(default=(), metadata=key("imbalances"))
    sha256: str = ""
    measured: Degree | None = field(default=None, metadata=key("degree"))
    wrong_captions_per_image: Mapping[str, int] = field(default_factory=dict)

    @property
    def image_to_text(self) -> float | None:
        """Information imbalance from image features to text features."""
        return None if self.measured is None else self.measured.image_to_text

    @property
    def text_to_image(self) -> float | None:
        """Information imbalance from text features to image features."""
        return None if self.measured is None else self.measured.text_to_image

    @property
    def degree(self) -> float | None:
        """Mean information imbalance over both directions."""
        return None if self.measured is None else (self.measured.image_to_text + self.measured.text_to_image) / 2


@dataclass(frozen=True)
class Selected:
    """The epoch that was tested: its number of ``epochs``, and the ``score`` that selected it."""

    on: str
    score: float | None
    epoch: int
    epochs: int


@dataclass(frozen=True)
class Git:
    """The commit that a job ran from, and whether files differed from it."""

    commit: str = ""
    dirty: bool = False


@dataclass(frozen=True)
class TeacherRecord:
    """A trained or pretrained teacher and its retrieval within its modality, in percent, as ``teacher.json`` records it."""

    modality: str
    description: str = ""
    trained_on: str = ""
    code: str = ""
    fingerprint: str = ""
    tower: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    wall_time_s: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Git = Git()
    hardware: str = ""


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """What the records of trials and cells have in common.

    Attributes:
        options: of ``sdr fit``, over those of the method: of the trial, or chosen by the trials of a tuned study.
        selected: the selected epoch and its score.
        data: fingerprints of the splits that were read.
        code: fingerprint of the code that decides its result; empty where it is not recorded.
        fingerprint: of everything that decides its result, code included.
        folder: relative to the folder of the study.
    """

    method: str
    imbalance: str
    ratio: float
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    selected: Selected | None = None
    data: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    fingerprint: str = ""
    wall_time_s: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    git: Git = Git()
    hardware: str = ""
    folder: Path = field(default=Path(), metadata=not_stored())

    @property
    def condition(self) -> Condition:
        """Its point on the curves."""
        return Condition.of(self.imbalance, self.ratio)


@dataclass(frozen=True, kw_only=True)
class Trial(JobRecord):
    """A finished trial, as ``trial.json`` records it: one point of a method's space under one condition.

    No split but the training and the validation split was read. ``selected`` is None if the training failed.

    Attributes:
        number: from 0, the method as configured, whose options are empty.
        failure: why the training failed: the loss was not finite; empty otherwise.
    """

    number: int
    failure: str = ""

    @property
    def score(self) -> float:
        """Validation rsum of the selected epoch, in [0, 600]; negative infinity if the training failed."""
        return -math.inf if self.selected is None or self.selected.score is None else self.selected.score


def best_trials(trials: Iterable[Trial]) -> dict[tuple[str, Condition], Trial]:
    """Return the trial with the highest score for each method and condition; of equal ones, that of the lowest number."""
    best: dict[tuple[str, Condition], Trial] = {}
    for trial in sorted(trials, key=lambda trial: trial.number):
        key = (trial.method, trial.condition)
        if key not in best or trial.score > best[key].score:
            best[key] = trial
    return best


@dataclass(frozen=True, kw_only=True)
class Run(JobRecord):
    """One finished cell, as ``results.json`` records it.

    Attributes:
        metrics: test metrics. Recalls (``i2t_R@1``) and NDCG (``t2t_NDCG@10``) are in percent, ``rsum`` is the sum of the
            six recalls (0 to 600), tie rates are fractions. Also, in percent, the detection of corrupted training pairs, see
            :func:`~sdr_lightning.metrics.detection.detection`.
        scalars: of the method at the tested epoch, such as its ``temperature``.
        realised: corruption of the training split.
        evaluated_under: corruption of the validation and test splits, where there is any.
        curves: training curves by metric and epoch, of published cells; other cells have a ``metrics.csv``.

    Raises:
        ValueError: a positive ratio without the name of a corruption, a metric outside its unit, or an rsum that is not the sum.
    """

    imbalance: str = NO_IMBALANCE
    protocol: str = "clean"
    metrics: Mapping[str, float]
    scalars: Mapping[str, float] = field(default_factory=dict)
    realised: Realised | None = None
    evaluated_under: Mapping[str, Realised] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.imbalance == NO_IMBALANCE and self.ratio != 0:
            raise ValueError(f"'imbalance' must be named at ratio {self.ratio:g}, found {self.imbalance!r}")
        for name, value in self.metrics.items():
            if _PERCENT.search(name) and (value < 0 or value > 100):
                raise ValueError(f"metrics: {name!r} must be in percent, from 0 to 100, found {value}")
        if "rsum" in self.metrics and all(name in self.metrics for name in RECALLS):
            total = math.fsum(self.metrics[name] for name in RECALLS)
            found = self.metrics["rsum"]
            if abs(found - total) > 0.01:
                raise ValueError(f"metrics: 'rsum' must be the sum of the six recalls, {total:.2f}, found {found}")

    @property
    def commit(self) -> str:
        """The commit that it ran from; empty where it is not recorded."""
        return self.git.commit

    @property
    def dirty(self) -> bool:
        """Whether files differed from the commit."""
        return self.git.dirty

    @property
    def evaluation_corruption(self) -> tuple[str, ...]:
        """Corruption of its validation and test splits, as text."""
        return tuple(
            f"{split}: {part.kind}, {part.affected} of {part.total}"
            for split, realised in self.evaluated_under.items()
            for part in realised.parts
        )


@dataclass(frozen=True, kw_only=True)
class Study(StudyRecord):
    """The folder of a study: its record and the results that are there.

    Attributes:
        root: the folder.
        teacher_records: teachers made with the code of the study.
        runs: cells made with the code of the study, and with the chosen options.
        trials: trials at the points of the study, made with its code.
        chosen: the best trial of each method and condition whose trials are all finished.
        foreign: folders under ``cells`` of runs that are not on the grid, or of another protocol; in no number.
        outdated: folders of runs made with other code or options than the study's; in no number.
    """

    root: Path
    teacher_records: tuple[TeacherRecord, ...]
    runs: Mapping[tuple[str, Condition, int], Run]
    trials: tuple[Trial, ...] = ()
    chosen: Mapping[tuple[str, Condition], Trial] = field(default_factory=dict)
    foreign: tuple[Path, ...] = ()
    outdated: tuple[Path, ...] = ()

    def degree(self, condition: Condition) -> float | None:
        """Return the measured degree of imbalance of a condition: the mean over the seeds with a measurement."""
        by_seed = {
            run.seed: run.realised.degree
            for run in self.runs.values()
            if run.condition == condition and run.realised is not None and run.realised.degree is not None
        }
        return sum(by_seed.values()) / len(by_seed) if by_seed else None

    @property
    def families(self) -> dict[tuple[str, str], list[StudyMethod]]:
        """Methods that differ in one field, by name of the family and field, in the order of the value."""
        families: dict[tuple[str, str], list[StudyMethod]] = {}
        for method in self.methods.values():
            if method.swept is not None:
                name = method.name.removesuffix(f", {method.swept.field} {method.swept.value:g}")
                families.setdefault((name, method.swept.field), []).append(method)
        for members in families.values():
            members.sort(key=lambda method: method.swept.value if method.swept else 0)
        return families

    @property
    def reference(self) -> str:
        """The method that the candidate is compared with, see :meth:`baseline_of`."""
        return self.baseline_of(self.candidate)

    def baseline_of(self, method: str) -> str:
        """Return the method that another is compared with.

        This is the baseline. Where several families differ in the field in which the baseline differs from its family, a member
        of one is compared with the member of the baseline's family that has the same value.
        """
        own, common = self.methods[method].swept, self.methods[self.baseline].swept
        if own is None or common is None or own.field != common.field:
            return self.baseline
        peers = [members for (_, field), members in self.families.items() if field == own.field]
        family = next(members for members in peers if self.methods[self.baseline] in members)
        same = [member.name for member in family if member.swept == own]
        return same[0] if same and len(peers) > 1 else self.baseline

    def runs_of(self, method: str, condition: Condition) -> Iterator[Run]:
        """Yield the runs that are there, in the order of the seeds."""
        for seed in self.seeds:
            run = self.runs.get((method, condition, seed))
            if run is not None:
                yield run
