"""Reading a study from its YAML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from difflib import get_close_matches
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from sdr_lightning.configure.shipped import experiment_path
from sdr_lightning.data.imbalance import KINDS, Imbalance
from sdr_lightning.paths import read_yaml
from sdr_lightning.results.schema import (
    StudyImbalance,
    StudyMethod,
    StudySpec,
    StudyStage,
    StudyTeacher,
    StudyTuning,
    Swept,
)
from sdr_lightning.sweeps.distributions import distribution
from sdr_lightning.training.protocol import ProtocolName

_STAGE = ("config", "weights", "options", "epochs")
_METHOD = (*_STAGE, "stages", "teachers", "description", "space")
_TEACHER = ("config", "pretrained", "trained_on", "description")
_PER_CELL = ("ratio", "seed")
_SET_BY_STUDY = ("seed_everything", "run_dir", "protocol", "trainer.max_epochs", "data.init_args.imbalance")


def read_study(path: Path) -> StudySpec:
    """Read a study.

    Paths are relative to the file, or name an experiment of the project (``sdr:methods/sdr.yaml``). A method is an overlay over
    the student: ``config`` (a path or a list of paths), ``weights`` (of the loss terms), ``options`` (of ``sdr fit``) and
    ``epochs``, all optional. ``stages``, a list of such mappings, are trained in order, each from the best epoch of the one
    before. A list of values of ``epochs``, a weight or an option makes a family of methods: ``epochs: [1, 2, 4]`` gives three.
    ``space`` maps options to lists of values or to distributions of sweep files; with ``tuning`` of the study, trials choose
    among them. A list of values of a field of a corruption gives one corruption each, except of ``ratios``, which take the place
    of those of the study; a list of corruptions is a stack. In ``file`` of a corruption, ``{ratio}`` stands for the ratio.

    Raises:
        ValueError: no such file, not YAML, an unknown key (with the nearest known one), a missing key or a value out of range;
            the message starts with the file.
    """
    document = read_yaml(path, "study")
    try:
        return _parsed(document, path)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error


def study_imbalance(name: str, *parts: Imbalance) -> StudyImbalance:
    """Describe a stack of corruptions. Ratio and seed of the parts are dropped: cells set them."""
    return StudyImbalance(
        name=name,
        kind=" + ".join(part.kind for part in parts),
        severities=tuple(float(part.severity) for part in parts if KINDS[part.kind].has_degrees),
        description="; ".join(part.meaning for part in parts),
        parts=tuple({key: value for key, value in asdict(part).items() if key not in _PER_CELL} for part in parts),
    )


def imbalance_at(study: StudySpec, name: str, ratio: float, seed: int) -> tuple[Imbalance, ...]:
    """Return a corruption of a study at a ratio and with a seed."""
    return tuple(
        Imbalance(**{**part, "file": part["file"].replace("{ratio}", f"{ratio:g}")})
        if part["file"] is not None
        else Imbalance(**part, ratio=ratio, seed=seed)
        for part in study.imbalances[name].parts
    )


def _parsed(document: Any, path: Path) -> StudySpec:
    known = [field.name for field in fields(StudySpec) if field.name != "file"]
    required = ("name", "title", "student", "methods", "baseline", "candidate", "imbalances", "ratios", "seeds")
    values = dict(_checked(document, known, required, "the study"))
    base = path.parent
    values["student"] = _paths(base, values["student"])
    values["teachers"] = {
        name: _teacher(name, entry, base) for name, entry in _mapping(values.get("teachers", {}), "teachers").items()
    }
    methods = [m for name, entry in _mapping(values["methods"], "methods").items() for m in _methods(name, entry, base)]
    values["methods"] = {method.name: method for method in methods}
    stacks = [
        s for name, entry in _mapping(values["imbalances"], "imbalances").items() for s in _stacks(name, entry, base)
    ]
    values["imbalances"] = {stack.name: stack for stack in stacks}
    for name in ("ratios", "seeds", "notes"):
        if name in values:
            values[name] = tuple(_listed(values[name]))
    if values.get("tuning") is not None:
        values["tuning"] = _tuning(values["tuning"], values["seeds"])
    study = StudySpec(**values, file=path)
    if study.protocol not in get_args(ProtocolName):
        raise ValueError(f"protocol must be {' or '.join(get_args(ProtocolName))}, got {study.protocol!r}")
    for stack in stacks:
        has_one_file = any(part["file"] and "{ratio}" not in part["file"] for part in stack.parts)
        if has_one_file and sum(ratio > 0 for ratio in study.ratios_of(stack.name)) > 1:
            raise ValueError(f"imbalance {stack.name} has one file for several ratios: put {{ratio}} into its name")
    configs = [*study.student, *(config for teacher in study.teachers.values() for config in teacher.config)]
    configs += [config for method in methods for stage in method.stages for config in stage.config]
    missing = [config for config in configs if not config.is_file()]
    if missing:
        raise ValueError(f"no configuration at {missing[0]}")
    return study


def _tuning(entry: Any, seeds: Sequence[int]) -> StudyTuning:
    """The tuning of a study; its seed follows those of the study if it is not given."""
    given = _checked(entry, ("trials", "seed"), ("trials",), "tuning")
    return StudyTuning(**{"seed": max(seeds, default=0) + 1, **given})


def _space(entry: Any, where: str) -> dict[str, dict[str, Any]]:
    """The options that trials choose, each with its distribution in the notation of sweep files."""
    space = {}
    for name, given in _mapping(entry, f"space of {where}").items():
        space[name] = {"values": given} if isinstance(given, list) else given
        try:
            distribution(name, space[name])
        except ValueError as error:
            raise ValueError(f"space of {where}: {error}") from error
        fixed = next((option for option in _SET_BY_STUDY if f"{name}.".startswith(f"{option}.")), None)
        if fixed is not None:
            raise ValueError(f"space of {where} holds {name}, which the study sets")
    return space


def _teacher(name: str, entry: Any, base: Path) -> StudyTeacher:
    given = _checked(entry, _TEACHER, ("config",), f"teacher {name}")
    return StudyTeacher(**{**given, "config": _paths(base, given["config"])})


def _methods(name: str, entry: Any, base: Path) -> Iterator[StudyMethod]:
    """A method, or the family of methods that a list of values makes of it."""
    where = f"method {name}"
    given = dict(_checked({} if entry is None else entry, _METHOD, (), where))
    about: dict[str, Any] = {key: given.pop(key) for key in ("teachers", "description") if key in given}
    space = given.pop("space", None)
    about["space"] = None if space is None else _space(space, where)
    if "stages" in given:
        stages = given.pop("stages")
        if not isinstance(stages, list) or not stages or "weights" in given or "epochs" in given:
            raise ValueError(f"{where}: give a list of stages, with weights and epochs inside the stages")
        each = [_checked(stage, _STAGE, (), f"a stage of {where}") for stage in stages]
        yield StudyMethod(name, tuple(_stage(_joined(given, stage), base) for stage in each), **about)
        return
    holders = [given, *(given[key] for key in ("weights", "options") if isinstance(given.get(key), dict))]
    swept = [
        (holder, key)
        for holder in holders
        for key, value in holder.items()
        if isinstance(value, list) and key != "config"
    ]
    if not swept:
        yield StudyMethod(name, (_stage(given, base),), **about)
        return
    if len(swept) > 1:
        raise ValueError(f"{where} sweeps {swept[0][1]} and {swept[1][1]}: sweep one field of a method")
    holder, key = swept[0]
    field = key.rpartition(".")[2]
    for value in holder[key]:
        one = {
            part: {**inner, key: value} if inner is holder else inner
            for part, inner in ({**given, key: value} if holder is given else given).items()
        }
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        label = f"{name}, {field} {value:g}" if is_number else f"{name}, {field} {value}"
        yield StudyMethod(label, (_stage(one, base),), **about, swept=Swept(field, float(value)) if is_number else None)


def _joined(method: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """A stage with the configurations and options of its method before its own."""
    config = [*_listed(method.get("config", [])), *_listed(stage.get("config", []))]
    return {**stage, "config": config, "options": {**method.get("options", {}), **stage.get("options", {})}}


def _stage(given: dict[str, Any], base: Path) -> StudyStage:
    return StudyStage(**{**given, "config": _paths(base, given.get("config", []))})


def _stacks(name: str, entry: Any, base: Path) -> Iterator[StudyImbalance]:
    where = f"imbalance {name}"
    known = [field.name for field in fields(Imbalance) if field.name not in _PER_CELL]
    if isinstance(entry, list):
        parts = [_beside(_checked(part, known, (), where), base) for part in entry]
        yield study_imbalance(name, *(Imbalance(**part) for part in parts))
        return
    given = _beside(_checked(entry, (*known, "ratios"), (), where), base)
    own = given.pop("ratios", None)
    ratios = None if own is None else tuple(_listed(own))
    swept = {key: value for key, value in given.items() if isinstance(value, list) and key != "splits"}
    for values in product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        label = ", ".join([name, *(f"{key} {value}" for key, value in chosen.items())])
        yield replace(study_imbalance(label, Imbalance(**{**given, **chosen})), ratios=ratios)


def _beside(entry: dict[str, Any], base: Path) -> dict[str, Any]:
    """The fields of a corruption, with a file relative to that of the study."""
    file = entry.get("file")
    return entry if file is None or str(file)[:1] in "$~" else {**entry, "file": str(base / str(file))}


def _checked(entry: Any, known: Sequence[str], required: Sequence[str], where: str) -> dict[str, Any]:
    mapping = _mapping(entry, where)
    for key in mapping:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected some of {', '.join(known)}"
            raise ValueError(f"{where} has no {key!r}; {hint}")
    missing = [name for name in required if name not in mapping]
    if missing:
        raise ValueError(f"{where} lacks {missing[0]!r}")
    return mapping


def _mapping(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping, got {type(entry).__name__}")
    return entry


def _paths(base: Path, names: Any) -> tuple[Path, ...]:
    return tuple(base / experiment_path(str(name)) for name in _listed(names))


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
