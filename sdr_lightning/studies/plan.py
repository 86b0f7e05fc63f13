"""From a study to its jobs: teachers, banks, cells; each with the folder it fills and the options it is run with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from sdr_lightning import __version__
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.identity import sha256
from sdr_lightning.methods.sdr import TERMS
from sdr_lightning.paths import expand
from sdr_lightning.studies.code import code_fingerprint
from sdr_lightning.studies.spec import Method, Stage, Study

Stack = tuple[Imbalance, ...]


@dataclass(frozen=True)
class TeacherJob:
    """Train one teacher, or take its tower as it is, and measure it.

    Attributes:
        modality: of the teacher.
        folder: its run folder.
        config: its configurations, as options of ``sdr fit``.
        imbalances: of the data it is trained on; None for a pretrained tower.
        description: for the report.
        code: fingerprint of the code that decides its result.
        fingerprint: of everything that decides its result, code included.
    """

    modality: str
    folder: Path
    config: tuple[str, ...]
    imbalances: Stack | None
    description: str
    code: str
    fingerprint: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of ``sdr fit``."""
        noise = imbalance_options(self.imbalances) if self.imbalances else ()
        return (*self.config, *noise, "--run_dir", str(self.folder))

    @property
    def trained_on(self) -> str:
        """What it was trained on, in words."""
        if self.imbalances is None:
            return "used as it is"
        parts = [f"{part.kind} {part.ratio:g}, seed {part.seed}" for part in self.imbalances]
        return f"trained on {' + '.join(parts)}" if parts else "trained on clean data"

    @property
    def test_bank(self) -> Path:
        """Its features of the test split, which the students' structure is compared with."""
        return self.folder / "test.safetensors"

    @property
    def result(self) -> Path:
        """The file that says that the job is finished."""
        return self.folder / "teacher.json"

    @property
    def checkpoint(self) -> Path | None:
        """Where its weights are; None for a pretrained tower."""
        return None if self.imbalances is None else self.folder / "checkpoints" / "final.ckpt"


@dataclass(frozen=True)
class BankJob:
    """Extract one teacher's features of the training data under one imbalance, and the placebo beside them.

    Attributes:
        teacher: whose features.
        imbalances: what is wrong with the data.
        file: the bank.
        placebo: the bank of random features; None where no method asks for one.
    """

    teacher: TeacherJob
    imbalances: Stack
    file: Path
    placebo: Path | None

    @property
    def finished(self) -> bool:
        """Whether the banks are there."""
        return self.file.is_file() and (self.placebo is None or self.placebo.is_file())


@dataclass(frozen=True)
class Cell:
    """One run of the study: a method under an imbalance with a seed.

    Attributes:
        method: name of the method.
        imbalance: as the study names it; ``none`` at ratio 0.
        ratio: of the imbalance.
        seed: of the run.
        folder: its run folder.
        arguments: options of ``sdr fit``, of the last stage.
        earlier: those of the stages before it.
        teachers: whose view of the test split the student's structure is compared with.
        code: fingerprint of the code that decides its result.
        fingerprint: of everything that decides its result, code included.
        with_examples: whether example retrievals are kept.
        distils: whether it needs the teachers' banks.
    """

    method: str
    imbalance: str
    ratio: float
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    earlier: tuple[tuple[str, ...], ...]
    teachers: tuple[TeacherJob, ...]
    code: str
    fingerprint: str
    with_examples: bool
    distils: bool

    @property
    def result(self) -> Path:
        """The file that says that the cell is finished."""
        return self.folder / "results.json"


@dataclass(frozen=True)
class Plan:
    """All jobs of a study, in the order of their phases.

    Attributes:
        code: fingerprint of the code that decides their results, see :func:`study_code`.
        student: configurations of the student, as options of ``sdr fit``.
        protocol: option of the protocol, if it is not the default.
        teachers: the first phase.
        banks: the second.
        cells: the last; those that distil need banks.
    """

    code: str
    student: tuple[str, ...]
    protocol: tuple[str, ...]
    teachers: tuple[TeacherJob, ...]
    banks: tuple[BankJob, ...]
    cells: tuple[Cell, ...]

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the results of the study, code included, save the data."""
        return sha256(*(cell.fingerprint for cell in self.cells))

    def commands(self) -> str:
        """The study as commands, one a line, that could be typed instead."""
        lines = []
        for teacher in self.teachers:
            if teacher.checkpoint is not None:
                lines.append(["sdr", "fit", *teacher.arguments])
        for bank in self.banks:
            checkpoint = ("--ckpt_path", str(bank.teacher.checkpoint)) if bank.teacher.checkpoint else ()
            teacher_config = ("--teacher" if word == "--config" else word for word in bank.teacher.config)
            placebo = ("--placebo", str(bank.placebo)) if bank.placebo else ()
            source = (*teacher_config, *checkpoint, *placebo, "--output", str(bank.file))
            lines.append(["sdr", "extract", *self.student, *imbalance_options(bank.imbalances), *source])
        for cell in self.cells:
            lines += [["sdr", "fit", *arguments] for arguments in (*cell.earlier, cell.arguments)]
            best = ("--ckpt_path", str(cell.folder / "checkpoints" / "best.ckpt"))
            lines.append(["sdr", "test", *self.student, *self.protocol, "--run_dir", str(cell.folder), *best])
        return "\n".join(shlex.join(line) for line in lines)


def plan(study: Study, folder: Path) -> Plan:
    """Lay out a study.

    Args:
        study: the study.
        folder: where its results go.

    Returns:
        The jobs; cells that would be the same (every imbalance at ratio 0) occur once.
    """
    student = _config_options(study.student)
    protocol = () if study.protocol == "clean" else ("--protocol", study.protocol)
    code = study_code(study)
    base = sha256(__version__, code, *map(_text, study.student), *protocol)
    teachers: dict[Path, TeacherJob] = {}
    banks: dict[Path, BankJob] = {}
    cells = []
    for name, ratio in _conditions(study):
        for seed in study.seeds:
            stack = study.imbalance_at(name, ratio, seed) if ratio else ()
            both = tuple(_teacher(study, modality, folder, stack, code) for modality in ("image", "text"))
            teachers |= {teacher.folder: teacher for teacher in both}
            mine = sha256(base, *(teacher.fingerprint for teacher in both))
            for method_name, method in study.methods.items():
                options = ("--seed_everything", str(seed), *protocol, *imbalance_options(stack))
                if method.distils:
                    needed = [_bank(teacher, stack, study, mine) for teacher in both]
                    banks |= {bank.file: bank for bank in needed}
                    for bank in needed:
                        file = bank.placebo if method.teachers == "placebo" else bank.file
                        options += (f"--data.init_args.{bank.teacher.modality}_bank", str(file))
                where = folder / "cells" / method_name / f"{name}-{ratio}" / f"seed-{seed}"
                examples = seed == study.seeds[0] and ratio == max(study.ratios)
                *earlier, last = _stages(method, (*student, *options), where)
                plain = method.weights if method.stages == (Stage(method.weights),) else method.stages
                fingerprint = sha256(mine, method.teachers, str(plain), _text_of(stack), str(seed))
                cells.append(
                    Cell(
                        method_name,
                        name,
                        ratio,
                        seed,
                        where,
                        last,
                        tuple(earlier),
                        both,
                        code,
                        fingerprint,
                        examples,
                        method.distils,
                    )
                )
    return Plan(code, student, protocol, tuple(teachers.values()), tuple(banks.values()), tuple(cells))


def study_code(study: Study) -> str:
    """Fingerprint of the code that decides the results of a study, see :func:`~sdr_lightning.studies.code.code_fingerprint`."""
    configurations = [*study.student, *(path for teacher in study.teachers.values() for path in teacher.config)]
    documents = [document for path in configurations for document in _documents(path)]
    return code_fingerprint(text for document in documents for key, text in _strings(document) if key == "class_path")


def _stages(method: Method, options: tuple[str, ...], folder: Path) -> list[tuple[str, ...]]:
    """Options of ``sdr fit`` for each stage of a method: the last fills the cell's folder, the others one inside it."""
    stages: list[tuple[str, ...]] = []
    start: tuple[str, ...] = ()
    for number, stage in enumerate(method.stages, start=1):
        where = folder if number == len(method.stages) else folder / f"stage-{number}"
        epochs = () if stage.epochs is None else ("--trainer.max_epochs", str(stage.epochs))
        stages.append((*options, *_weights(stage.weights), *epochs, *start, "--run_dir", str(where)))
        start = ("--model.init_args.start_from", str(where / "checkpoints" / "best.ckpt"))
    return stages


def imbalance_options(stack: Stack) -> tuple[str, ...]:
    """Imbalances as an option of the student's data, with every field, so that none is inherited."""
    return ("--data.init_args.imbalance", json.dumps([asdict(part) for part in stack]))


def _conditions(study: Study) -> list[tuple[str, float]]:
    """Names and ratios, the greatest first: features of what is chosen there serve the smaller ones, whose choice is nested."""
    ratios = sorted((ratio for ratio in study.ratios if ratio > 0), reverse=True)
    clean = [("none", 0.0)] if 0 in study.ratios else []
    return clean + [(name, ratio) for ratio in ratios for name in study.imbalances]


def _text(config: Path) -> str:
    """A configuration with the fragments that it refers to; comments do not count."""
    return "\n".join(json.dumps(document, default=str) for document in _documents(config))


def _documents(config: Path) -> Iterator[Any]:
    """The content of a configuration, and of the fragments that it refers to."""
    document = _parsed(config.read_text(encoding="utf-8"))
    yield document
    for _, value in _strings(document):
        if value.endswith(".yaml"):
            yield from _documents(config.parent / value)


_parsed = cache(yaml.safe_load)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a document with the key that it stands under; those of a list have none."""
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _strings(inside, name)
    elif isinstance(value, list):
        for inside in value:
            yield from _strings(inside)
    elif isinstance(value, str):
        yield key, value


def _config_options(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(word for path in paths for word in ("--config", str(path)))


def _weights(weights: dict[str, float]) -> tuple[str, ...]:
    every = {term: weights.get(term, 0) for term in TERMS}  # named one by one, so that none is inherited
    return ("--model.init_args.method.init_args.weights", json.dumps(every))


def _teacher(study: Study, modality: str, folder: Path, stack: Stack, code: str) -> TeacherJob:
    teacher = study.teachers[modality]
    fingerprint = sha256(__version__, code, *map(_text, teacher.config), str(teacher.pretrained))
    where = folder / "teachers" / modality
    imbalances: Stack | None = None if teacher.pretrained else ()
    if (
        teacher.trained_on == "imbalanced"
    ):  # what it sees of its own modality; pairs tell a text teacher who is a sibling
        seen = (modality, "pair") if modality == "text" else (modality,)
        imbalances = tuple(part for part in stack if part.modality in seen or part.file is not None)
        where /= _label(imbalances)
        fingerprint = sha256(fingerprint, _text_of(imbalances)) if imbalances else fingerprint
    return TeacherJob(
        modality, where, _config_options(teacher.config), imbalances, teacher.description, code, fingerprint
    )


def _label(stack: Stack) -> str:
    return "-".join(f"{part.kind}-{part.ratio}-seed-{part.seed}" for part in stack) or "clean"


def _text_of(stack: Stack) -> str:
    """Everything that decides what a stack does, the content of its files included."""
    files = [Path(expand(part.file)) for part in stack if part.file is not None]
    return " ".join([str(stack), *(sha256(file.read_bytes()) for file in files if file.is_file())])


def _bank(teacher: TeacherJob, stack: Stack, study: Study, base: str) -> BankJob:
    # A bank depends on what the teacher is shown alone; only the data can say what a file does.
    shown = tuple(part for part in stack if part.modality == teacher.modality or part.file is not None)
    stem = f"{_label(shown)}-{sha256(base, _text_of(shown))[:12]}"
    banks = teacher.folder / "banks"
    placebo = any(method.teachers == "placebo" for method in study.methods.values())
    return BankJob(
        teacher, shown, banks / f"{stem}.safetensors", banks / f"{stem}-placebo.safetensors" if placebo else None
    )
