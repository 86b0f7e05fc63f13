"""From a study to its jobs: teachers, banks, cells; each with the folder it fills and the options it is run with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from sdr_lightning import __version__
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.identity import sha256
from sdr_lightning.losses.objective import TERMS
from sdr_lightning.suite.spec import Suite

_CONTENT = {"gaussian_noise": "image", "missing_words": "text"}  # which modality's items an imbalance changes


@dataclass(frozen=True)
class TeacherJob:
    """Train one teacher, or take its tower as it is, and measure it.

    Attributes:
        modality: of the teacher.
        folder: its run folder.
        config: its configurations, as options of ``sdr fit``.
        pretrained: not to be trained.
        description: for the report.
        fingerprint: of everything that decides its result.
    """

    modality: str
    folder: Path
    config: tuple[str, ...]
    pretrained: bool
    description: str
    fingerprint: str

    @property
    def result(self) -> Path:
        """The file that says that the job is finished."""
        return self.folder / "teacher.json"

    @property
    def checkpoint(self) -> Path | None:
        """Where its weights are; None for a pretrained tower."""
        return None if self.pretrained else self.folder / "checkpoints" / "final.ckpt"


@dataclass(frozen=True)
class BankJob:
    """Extract one teacher's features of the training data under one imbalance, and the placebo beside them.

    Attributes:
        teacher: whose features.
        imbalance: what is wrong with the data.
        file: the bank.
        placebo: the bank of random features; None where no method asks for one.
    """

    teacher: TeacherJob
    imbalance: Imbalance
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
        imbalance_name: as the study names it; ``none`` at ratio 0.
        imbalance: with ratio and seed.
        seed: of the run.
        folder: its run folder.
        arguments: options of ``sdr fit``.
        fingerprint: of everything that decides its result.
        with_examples: whether example retrievals are kept.
        distils: whether it needs the teachers' banks.
    """

    method: str
    imbalance_name: str
    imbalance: Imbalance
    seed: int
    folder: Path
    arguments: tuple[str, ...]
    fingerprint: str
    with_examples: bool
    distils: bool

    @property
    def result(self) -> Path:
        """The file that says that the cell is finished."""
        return self.folder / "results.json"


@dataclass(frozen=True)
class Plan:
    """All jobs of a study, in the order of their phases."""

    student: tuple[str, ...]
    teachers: tuple[TeacherJob, ...]
    banks: tuple[BankJob, ...]
    cells: tuple[Cell, ...]

    def commands(self) -> str:
        """The study as commands, one a line, that could be typed instead."""
        lines = []
        for teacher in self.teachers:
            if not teacher.pretrained:
                lines.append(["sdr", "fit", *teacher.config, "--run_dir", str(teacher.folder)])
        for bank in self.banks:
            checkpoint = ("--ckpt_path", str(bank.teacher.checkpoint)) if bank.teacher.checkpoint else ()
            teacher_config = ("--teacher" if word == "--config" else word for word in bank.teacher.config)
            placebo = ("--placebo", str(bank.placebo)) if bank.placebo else ()
            source = (*teacher_config, *checkpoint, *placebo, "--output", str(bank.file))
            lines.append(["sdr", "extract", *self.student, *imbalance_options(bank.imbalance), *source])
        for cell in self.cells:
            lines.append(["sdr", "fit", *cell.arguments])
            best = ("--ckpt_path", str(cell.folder / "checkpoints" / "best.ckpt"))
            lines.append(["sdr", "test", *self.student, "--run_dir", str(cell.folder), *best])
        return "\n".join(shlex.join(line) for line in lines)


def plan(suite: Suite, folder: Path) -> Plan:
    """Lay out a study.

    Args:
        suite: the study.
        folder: where its results go.

    Returns:
        The jobs; cells that would be the same (every imbalance at ratio 0) occur once.
    """
    student = _config_options(suite.student)
    teachers = tuple(_teacher(suite, modality, folder) for modality in ("image", "text"))
    base = sha256(__version__, *map(_text, suite.student), *(t.fingerprint for t in teachers))
    banks: dict[Path, BankJob] = {}
    cells = []
    for name, imbalance in _imbalances(suite):
        for seed in suite.seeds:
            actual = replace(imbalance, seed=seed)
            for method_name, method in suite.methods.items():
                options = _seed_and_weights(seed, method.weights) + imbalance_options(actual)
                if method.distils:
                    needed = [_bank(teacher, actual, suite, base) for teacher in teachers]
                    banks |= {bank.file: bank for bank in needed}
                    for bank in needed:
                        file = bank.placebo if method.teachers == "placebo" else bank.file
                        options += (f"--data.init_args.{bank.teacher.modality}_bank", str(file))
                where = folder / "cells" / method_name / f"{name}-{imbalance.ratio}" / f"seed-{seed}"
                examples = seed == suite.seeds[0] and imbalance.ratio == max(suite.ratios)
                arguments = (*student, *options, "--run_dir", str(where))
                fingerprint = sha256(base, method.teachers, str(method.weights), str(actual), str(seed))
                cells.append(
                    Cell(method_name, name, actual, seed, where, arguments, fingerprint, examples, method.distils)
                )
    return Plan(student, teachers, tuple(banks.values()), tuple(cells))


def imbalance_options(imbalance: Imbalance) -> tuple[str, ...]:
    """An imbalance as options of the student's data."""
    prefix = "--data.init_args.imbalance"
    if not imbalance.active:
        return (f"{prefix}.kind", "none")
    return tuple(
        word
        for field in ("kind", "ratio", "severity", "seed")
        for word in (f"{prefix}.{field}", str(getattr(imbalance, field)))
    )


def _imbalances(suite: Suite) -> Sequence[tuple[str, Imbalance]]:
    clean = [("none", Imbalance())] if 0 in suite.ratios else []
    return clean + [
        (name, replace(imbalance, ratio=ratio))
        for ratio in suite.ratios
        if ratio > 0
        for name, imbalance in suite.imbalances.items()
    ]


def _text(config: Path) -> str:
    """A configuration with the fragments that it refers to."""
    text = config.read_text(encoding="utf-8")
    values = (yaml.safe_load(text) or {}).values()
    fragments = [config.parent / value for value in values if isinstance(value, str) and value.endswith(".yaml")]
    return "\n".join([text, *(fragment.read_text(encoding="utf-8") for fragment in fragments)])


def _config_options(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(word for path in paths for word in ("--config", str(path)))


def _seed_and_weights(seed: int, weights: dict[str, float]) -> tuple[str, ...]:
    every = {term: weights.get(term, 0) for term in TERMS}  # named one by one, so that none is inherited
    return ("--seed_everything", str(seed), "--model.init_args.objective.init_args.weights", json.dumps(every))


def _teacher(suite: Suite, modality: str, folder: Path) -> TeacherJob:
    teacher = suite.teachers[modality]
    fingerprint = sha256(__version__, *map(_text, teacher.config), str(teacher.pretrained))
    where = folder / "teachers" / modality
    return TeacherJob(
        modality, where, _config_options(teacher.config), teacher.pretrained, teacher.description, fingerprint
    )


def _bank(teacher: TeacherJob, imbalance: Imbalance, suite: Suite, base: str) -> BankJob:
    # A bank depends on the imbalance only where that changes what the teacher is shown.
    if _CONTENT.get(imbalance.kind) != teacher.modality or not imbalance.active:
        imbalance = Imbalance()
    label = f"{imbalance.kind}-{imbalance.ratio}-seed-{imbalance.seed}" if imbalance.active else "clean"
    stem = f"{label}-{sha256(base, str(imbalance))[:12]}"
    banks = teacher.folder / "banks"
    placebo = any(method.teachers == "placebo" for method in suite.methods.values())
    return BankJob(
        teacher, imbalance, banks / f"{stem}.safetensors", banks / f"{stem}-placebo.safetensors" if placebo else None
    )
