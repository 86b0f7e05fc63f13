"""What a study's folder holds, as typed values: its grid, its runs, its teachers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RECALLS = tuple(f"{direction}_R@{k}" for direction in ("i2t", "t2i") for k in (1, 5, 10))
"""The six recalls whose sum is rsum."""

NO_IMBALANCE = "none"
"""Name of the imbalance of a run at ratio 0: such a run belongs to every imbalance's curve."""


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
    """The data set. Counts are None where the study does not give them."""

    name: str
    description: str
    num_train_images: int | None
    num_train_captions: int | None
    num_test_images: int | None
    num_test_captions: int | None
    fingerprint: str
    relevance: str


@dataclass(frozen=True)
class Stage:
    """A training: the weight of each term, and its epochs (None: as configured)."""

    weights: Mapping[str, float]
    epochs: int | None


@dataclass(frozen=True)
class Swept:
    """The field in which the methods of a family differ, and one method's value."""

    field: str
    value: float


@dataclass(frozen=True)
class Method:
    """A training method under test, stage by stage."""

    name: str
    description: str
    stages: tuple[Stage, ...]
    swept: Swept | None


@dataclass(frozen=True)
class Imbalance:
    """A way of making one modality poor."""

    name: str
    kind: str
    severities: tuple[float, ...]
    description: str


@dataclass(frozen=True)
class Part:
    """What one imbalance of a stack did in fact: ``affected`` of ``total`` items, images or captions."""

    kind: str
    affected: int
    total: int

    @property
    def ratio(self) -> float:
        """Share of the items that were changed."""
        return self.affected / self.total


@dataclass(frozen=True)
class Realised:
    """What a stack of imbalances did in fact, with a hash of the outcome and, where teachers were at hand, its degree."""

    parts: tuple[Part, ...]
    sha256: str
    image_to_text: float | None
    text_to_image: float | None

    @property
    def degree(self) -> float | None:
        """The measured degree of imbalance: the mean of both directions."""
        if self.image_to_text is None or self.text_to_image is None:
            return None
        return (self.image_to_text + self.text_to_image) / 2


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
    realised: Realised | None
    evaluated_under: tuple[str, ...]
    """What is wrong with the data it was validated and tested on."""
    code: str
    """Fingerprint of the code that decided its metrics; empty where it is not recorded."""
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
    trained_on: str
    code: str
    fingerprint: str
    metrics: Mapping[str, float]
    wall_time_s: float | None


@dataclass(frozen=True)
class Study:
    """A grid of methods x conditions x seeds, and those of its runs that are there."""

    root: Path
    name: str
    title: str
    description: str
    data: Data
    baseline: str
    candidate: str
    methods: Mapping[str, Method]
    protocol: str
    imbalances: Mapping[str, Imbalance]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...]
    code: str
    """Fingerprint of the code that decides its results; empty where it is not recorded."""
    command: str
    wall_time_s: float | None
    teachers: tuple[Teacher, ...]
    runs: Mapping[tuple[str, Condition, int], Run]
    foreign: tuple[Path, ...]
    """Folders under ``cells`` whose run is not on the grid, or of another protocol; they enter no number."""
    outdated: tuple[Path, ...]
    """Folders of runs that other code made than that of the study; they enter no number."""

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """All conditions in order, ratio 0 once."""
        points = (Condition.of(name, ratio) for name in self.imbalances for ratio in self.ratios)
        return tuple(sorted(dict.fromkeys(points), key=lambda c: c.imbalance != NO_IMBALANCE))

    def degree(self, condition: Condition) -> float | None:
        """The measured degree of imbalance of a condition: the mean over the seeds for which a run could measure it."""
        by_seed = {
            run.seed: run.realised.degree
            for run in self.runs.values()
            if run.condition == condition and run.realised is not None and run.realised.degree is not None
        }
        return sum(by_seed.values()) / len(by_seed) if by_seed else None

    @property
    def families(self) -> dict[tuple[str, str], list[Method]]:
        """Methods that differ in one field, by the family's name and the field, in the order of its value."""
        families: dict[tuple[str, str], list[Method]] = {}
        for method in self.methods.values():
            if method.swept is not None:
                name = method.name.removesuffix(f", {method.swept.field} {method.swept.value:g}")
                families.setdefault((name, method.swept.field), []).append(method)
        for members in families.values():
            members.sort(key=lambda method: method.swept.value if method.swept else 0)
        return families

    @property
    def hardest(self) -> tuple[Condition, ...]:
        """The condition of the highest ratio of each imbalance."""
        return tuple(dict.fromkeys(Condition.of(name, max(self.ratios)) for name in self.imbalances))

    @property
    def num_expected(self) -> int:
        """How many runs a finished study has."""
        return len(self.methods) * len(self.conditions) * len(self.seeds)

    def runs_of(self, method: str, condition: Condition) -> Iterator[Run]:
        """The runs that are there, in the order of the seeds."""
        for seed in self.seeds:
            run = self.runs.get((method, condition, seed))
            if run is not None:
                yield run
