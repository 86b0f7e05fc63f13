"""What a study is: one YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.losses.objective import TERMS

_FOLDER = re.compile(r"\w[\w ,.+()-]*")


@dataclass(frozen=True)
class Teacher:
    """A teacher of a study.

    Attributes:
        config: its configurations, later ones over earlier ones.
        pretrained: use its tower as configured, without training.
        description: one sentence for the report.
    """

    config: tuple[Path, ...]
    pretrained: bool = False
    description: str = ""


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        weights: weight of each term of the objective; absent terms are off.
        teachers: the study's teachers, or ``placebo``: random features in their place.
        description: one sentence for the report.
    """

    weights: dict[str, float]
    teachers: Literal["real", "placebo"] = "real"
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.weights, dict):
            raise ValueError(f"weights must map terms to numbers, got {self.weights!r}")
        unknown = sorted(self.weights.keys() - TERMS.keys())
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}, expected some of {', '.join(TERMS)}")
        if self.teachers not in ("real", "placebo"):
            raise ValueError(f"teachers must be real or placebo, got {self.teachers!r}")

    @property
    def distils(self) -> bool:
        """Whether any teacher is needed."""
        return any(weight > 0 for term, weight in self.weights.items() if term != "itc")


@dataclass(frozen=True)
class Suite:
    """A study.

    Attributes:
        name: names its folder.
        title: heads its report.
        description: opens its report.
        student: configurations of the student, later ones over earlier ones; paths are relative to the study's file.
        teachers: the ``image`` and the ``text`` teacher.
        methods: by name.
        baseline: the method that others are compared with.
        candidate: the method whose claims are tested.
        imbalances: by name, each a stack of one or more; ratio and seed are the study's to set. A field that is given a list
            is swept: ``noise: {kind: blur, severity: [1, 3, 5]}`` is three imbalances. In ``file``, ``{ratio}`` stands for
            the ratio.
        ratios: of each imbalance, in [0, 1]; ratio 0 is run once and shared.
        seeds: of initialisation, order of batches and choice of imbalanced items.
        jobs: cells run at a time, each in a process of its own.
        notes: caveats that the report prints.
        file: where it was read from.
    """

    name: str
    title: str
    student: tuple[Path, ...]
    teachers: dict[str, Teacher]
    methods: dict[str, Method]
    baseline: str
    candidate: str
    imbalances: dict[str, tuple[Imbalance, ...]]
    ratios: tuple[float, ...]
    seeds: tuple[int, ...]
    file: Path
    description: str = ""
    jobs: int = 1
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (self.name, *self.methods, *self.imbalances):
            if not _FOLDER.fullmatch(str(name)):
                raise ValueError(f"{name!r} cannot name a folder: use letters, digits, spaces and , . + - _ ( )")
        for role in ("baseline", "candidate"):
            if getattr(self, role) not in self.methods:
                raise ValueError(f"{role} {getattr(self, role)!r} is not among the methods {', '.join(self.methods)}")
        if set(self.teachers) != {"image", "text"}:
            raise ValueError(f"teachers must be image and text, got {', '.join(self.teachers) or 'none'}")
        fixed = [name for name, stack in self.imbalances.items() for p in stack if p.file and "{ratio}" not in p.file]
        if fixed and sum(ratio > 0 for ratio in self.ratios) > 1:
            raise ValueError(f"imbalance {fixed[0]} has one file for several ratios: put {{ratio}} into its name")
        outside = [ratio for ratio in self.ratios if not 0 <= ratio <= 1]
        if outside:
            raise ValueError(f"ratios must lie in [0, 1], got {outside[0]}")
        for what, values in (("ratios", self.ratios), ("seeds", self.seeds), ("imbalances", self.imbalances)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{what} must be given, each once, got {list(values)}")
        configs = [*self.student, *(path for teacher in self.teachers.values() for path in teacher.config)]
        missing = [path for path in configs if not path.is_file()]
        if missing:
            raise ValueError(f"no configuration at {missing[0]}")

    @classmethod
    def load(cls, path: Path) -> Suite:
        """Read a study.

        Raises:
            ValueError: no such file, not YAML, an unknown or missing key (with the nearest right one), or a value out of
                range; the message starts with the file.
        """
        try:
            document = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"no study at {path}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        try:
            return cls._parse(document, path)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _parse(cls, document: Any, path: Path) -> Suite:
        values = dict(_checked(document, cls, "the study", but=("file",)))
        base = path.parent
        values["student"] = _paths(base, values["student"])
        values["teachers"] = {
            name: Teacher(**{**_checked(entry, Teacher, f"teacher {name}"), "config": _paths(base, entry["config"])})
            for name, entry in _mapping(values["teachers"], "teachers").items()
        }
        values["methods"] = {
            name: Method(**_checked(entry, Method, f"method {name}"))
            for name, entry in _mapping(values["methods"], "methods").items()
        }
        values["imbalances"] = {
            swept: stack
            for name, entry in _mapping(values["imbalances"], "imbalances").items()
            for swept, stack in _stacks(name, entry, base)
        }
        for key in ("ratios", "seeds", "notes"):
            if key in values:
                values[key] = tuple(_listed(values[key]))
        return cls(**values, file=path)

    def imbalance_at(self, name: str, ratio: float, seed: int) -> tuple[Imbalance, ...]:
        """An imbalance of the study at a ratio."""
        return tuple(
            replace(part, file=part.file.replace("{ratio}", f"{ratio:g}"))
            if part.file is not None
            else replace(part, ratio=ratio, seed=seed)
            for part in self.imbalances[name]
        )


def describe_imbalance(stack: Sequence[Imbalance]) -> str:
    """What a stack of imbalances does, in words."""
    return "; ".join(part.meaning for part in stack)


def _stacks(name: str, entry: Any, base: Path) -> Iterator[tuple[str, tuple[Imbalance, ...]]]:
    where = f"imbalance {name}"
    if isinstance(entry, list):
        given = [_beside(_checked(part, Imbalance, where, but=("ratio", "seed")), base) for part in entry]
        yield name, tuple(Imbalance(**part) for part in given)
        return
    fields_given = _beside(_checked(entry, Imbalance, where, but=("ratio", "seed")), base)
    swept = {key: value for key, value in fields_given.items() if isinstance(value, list) and key != "splits"}
    for values in product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        label = ", ".join([name, *(f"{key} {value}" for key, value in chosen.items())])
        yield label, (Imbalance(**{**fields_given, **chosen}),)


def _beside(entry: dict[str, Any], base: Path) -> dict[str, Any]:
    """An imbalance whose file is relative to the study's."""
    file = entry.get("file")
    return entry if file is None or str(file)[:1] in "$~" else {**entry, "file": str(base / str(file))}


def _checked(entry: Any, kind: type, where: str, but: tuple[str, ...] = ()) -> dict[str, Any]:
    mapping = _mapping(entry, where)
    known = [field.name for field in fields(kind) if field.name not in but]
    for key in mapping:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            raise ValueError(
                f"{where} has no {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; it knows {known}")
            )
    required = [field.name for field in fields(kind) if field.name in known and field.default is MISSING]
    missing = [name for name in required if name not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    return mapping


def _mapping(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping, got {type(entry).__name__}")
    return entry


def _paths(base: Path, names: Any) -> tuple[Path, ...]:
    return tuple(base / str(name) for name in _listed(names))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
