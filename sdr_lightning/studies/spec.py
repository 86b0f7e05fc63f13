"""What a study is: one YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.methods.sdr import DISTILLING, TERMS
from sdr_lightning.training.protocol import ProtocolName

_FOLDER = re.compile(r"\w[\w ,.+()-]*")


@dataclass(frozen=True)
class Teacher:
    """A teacher of a study.

    Attributes:
        config: its configurations, later ones over earlier ones.
        pretrained: use its tower as configured, without training.
        trained_on: ``clean`` data, once for all conditions; or ``imbalanced``: under each condition, its own teacher on its
            own modality as that condition has it.
        description: one sentence for the report.
    """

    config: tuple[Path, ...]
    pretrained: bool = False
    trained_on: Literal["clean", "imbalanced"] = "clean"
    description: str = ""

    def __post_init__(self) -> None:
        if self.trained_on not in ("clean", "imbalanced"):
            raise ValueError(f"trained_on must be clean or imbalanced, got {self.trained_on!r}")
        if self.pretrained and self.trained_on == "imbalanced":
            raise ValueError("a pretrained teacher is not trained: leave trained_on out")


@dataclass(frozen=True)
class Stage:
    """A training of its own, that the next one starts from.

    Attributes:
        weights: weight of each term of the method; absent terms are off.
        epochs: how many; as the student's configuration says when None.
    """

    weights: dict[str, float]
    epochs: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.weights, dict):
            raise ValueError(f"weights must map terms to numbers, got {self.weights!r}")
        unknown = sorted(self.weights.keys() - TERMS.keys())
        if unknown:
            raise ValueError(f"unknown term {unknown[0]!r}, expected some of {', '.join(TERMS)}")
        if self.epochs is not None and (not isinstance(self.epochs, int) or self.epochs < 1):
            raise ValueError(f"epochs must be a number from 1, got {self.epochs!r}")

    @property
    def distils(self) -> bool:
        """Whether any teacher is needed."""
        return any(self.weights.get(term, 0) > 0 for term in DISTILLING)


@dataclass(frozen=True)
class Method:
    """One way to train the student.

    Attributes:
        weights: weight of each term of the method in the last stage; absent terms are off.
        teachers: the study's teachers, or ``placebo``: random features in their place.
        description: one sentence for the report.
        epochs: of the last stage; as the student's configuration says when None.
        earlier: the stages before it.
        swept: for one of a family of methods, the field in which they differ, and its value.
    """

    weights: dict[str, float]
    teachers: Literal["real", "placebo"] = "real"
    description: str = ""
    epochs: int | None = None
    earlier: tuple[Stage, ...] = ()
    swept: tuple[str, float] | None = None

    def __post_init__(self) -> None:
        if self.teachers not in ("real", "placebo"):
            raise ValueError(f"teachers must be real or placebo, got {self.teachers!r}")
        _ = self.stages  # checks the last one

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages, in order."""
        return (*self.earlier, Stage(self.weights, self.epochs))

    @property
    def distils(self) -> bool:
        """Whether any teacher is needed."""
        return any(stage.distils for stage in self.stages)

    @property
    def total_epochs(self) -> int | None:
        """Epochs of all stages; None where the student's configuration decides."""
        each = [stage.epochs for stage in self.stages]
        return None if None in each and len(each) == 1 else sum(epochs or 0 for epochs in each)


@dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
        name: names its folder.
        title: heads its report.
        description: opens its report.
        student: configurations of the student, later ones over earlier ones; paths are relative to the study's file.
        teachers: the ``image`` and the ``text`` teacher.
        methods: by name. One with ``stages``, a list of weights and epochs, is trained in that order, each stage from the best
            epoch of the one before. ``epochs`` or a weight that is given a list is swept: ``epochs: [1, 2, 4]`` is three
            methods.
        baseline: the method that others are compared with.
        candidate: the method whose claims are tested.
        imbalances: by name, each a stack of one or more; ratio and seed are the study's to set. A field that is given a list
            is swept: ``noise: {kind: blur, severity: [1, 3, 5]}`` is three imbalances. In ``file``, ``{ratio}`` stands for
            the ratio.
        ratios: of each imbalance, in [0, 1]; ratio 0 is run once and shared.
        seeds: of initialisation, order of batches and choice of imbalanced items.
        jobs: cells run at a time, each in a process of its own.
        protocol: ``clean``: every method trains equally long; or ``paper``, see docs/method.md.
        equal_epochs: False where the length of training is what is studied.
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
    protocol: ProtocolName = "clean"
    equal_epochs: bool = True
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
        if self.protocol not in get_args(ProtocolName):
            raise ValueError(f"protocol must be {' or '.join(get_args(ProtocolName))}, got {self.protocol!r}")
        lengths = {method.total_epochs for method in self.methods.values()}
        if self.protocol == "clean" and self.equal_epochs and len(lengths) > 1:
            told = ", ".join(f"{n}: {m.total_epochs or 'as configured'}" for n, m in self.methods.items())
            raise ValueError(f"under protocol clean every method trains for equally many epochs, got {told}")
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
    def load(cls, path: Path) -> Study:
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
    def _parse(cls, document: Any, path: Path) -> Study:
        values = dict(_checked(document, cls, "the study", but=("file",)))
        base = path.parent
        values["student"] = _paths(base, values["student"])
        values["teachers"] = {
            name: Teacher(**{**_checked(entry, Teacher, f"teacher {name}"), "config": _paths(base, entry["config"])})
            for name, entry in _mapping(values["teachers"], "teachers").items()
        }
        values["methods"] = {
            swept: method
            for name, entry in _mapping(values["methods"], "methods").items()
            for swept, method in _methods(name, entry)
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


def _methods(name: str, entry: Any) -> Iterator[tuple[str, Method]]:
    """A method, or the family of methods that a list of values makes of it."""
    where = f"method {name}"
    given = dict(_mapping(entry, where))
    stages = given.pop("stages", None)
    if stages is not None:
        if not isinstance(stages, list) or not stages or "weights" in given or "epochs" in given:
            raise ValueError(f"{where}: stages are a list of weights and epochs, in the place of weights and epochs")
        *earlier, last = [_checked(stage, Stage, f"a stage of {where}") for stage in stages]
        given |= last
        yield name, Method(**_checked(given, Method, where, but=_DERIVED), earlier=tuple(Stage(**s) for s in earlier))
        return
    given = _checked(given, Method, where, but=_DERIVED)
    fields_with_lists = [given, given["weights"]] if isinstance(given["weights"], dict) else [given]
    swept = [(holder, key) for holder in fields_with_lists for key, value in holder.items() if isinstance(value, list)]
    if not swept:
        yield name, Method(**given)
    for holder, key in swept[:1]:
        if len(swept) > 1:
            raise ValueError(f"{where} sweeps {key} and {swept[1][1]}: sweep one field of a method")
        for value in holder[key]:
            one = {**given, key: value} if holder is given else {**given, "weights": {**holder, key: value}}
            yield f"{name}, {key} {value:g}", Method(**one, swept=(key, float(value)))


_DERIVED = ("earlier", "swept")


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
