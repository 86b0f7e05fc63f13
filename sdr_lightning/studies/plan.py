"""From a study to its jobs: teachers, banks and cells, each with its folder and its options of ``sdr fit``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

from sdr_lightning import __version__
from sdr_lightning.configure import build_method
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.identity import sha256
from sdr_lightning.paths import expand
from sdr_lightning.results.schema import StudyMethod, StudySpec, StudyStage
from sdr_lightning.studies.code import code_fingerprint
from sdr_lightning.studies.documents import documents, strings
from sdr_lightning.studies.spec import imbalance_at
from sdr_lightning.types import Modality

Stack = tuple[Imbalance, ...]


@dataclass(frozen=True)
class TeacherJob:
    """Train one teacher, unless it is pretrained, and measure it.

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
        """The training data, for the report."""
        if self.imbalances is None:
            return "used as it is"
        parts = [f"{part.kind} {part.ratio:g}, seed {part.seed}" for part in self.imbalances]
        return f"trained on {' + '.join(parts)}" if parts else "trained on clean data"

    @property
    def test_bank(self) -> Path:
        """Its features of the test split; the structure of the students is compared with theirs."""
        return self.folder / "test.safetensors"

    @property
    def result(self) -> Path:
        """The file that is written last."""
        return self.folder / "teacher.json"

    @property
    def checkpoint(self) -> Path | None:
        """Its weights; None for a pretrained tower."""
        return None if self.imbalances is None else self.folder / "checkpoints" / "final.ckpt"


@dataclass(frozen=True)
class BankJob:
    """Extract the features of one teacher on the training data under one corruption, and their placebo.

    Attributes:
        teacher: the teacher.
        imbalances: the corruption of the data.
        file: the bank.
        placebo: the bank of random features; None where no method uses it.
    """

    teacher: TeacherJob
    imbalances: Stack
    file: Path
    placebo: Path | None

    @property
    def finished(self) -> bool:
        """Whether the banks exist."""
        return self.file.is_file() and (self.placebo is None or self.placebo.is_file())


@dataclass(frozen=True)
class Cell:
    """One run of the study: a method under a condition with a seed.

    Attributes:
        method: name of the method.
        imbalance: name of the corruption; ``none`` at ratio 0.
        ratio: of the corruption.
        seed: of the run.
        folder: its run folder.
        model: options of ``sdr fit`` that configure student and method of the last stage.
        stages: options of ``sdr fit`` of each stage; the last one fills the folder.
        teachers: whose features of the test split the structure of the student is compared with.
        code: fingerprint of the code that decides its result.
        fingerprint: of everything that decides its result, code included.
        with_examples: whether example retrievals are kept.
        needs_banks: whether the method reads features of teachers.
    """

    method: str
    imbalance: str
    ratio: float
    seed: int
    folder: Path
    model: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    teachers: tuple[TeacherJob, ...]
    code: str
    fingerprint: str
    with_examples: bool
    needs_banks: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of ``sdr fit`` of the last stage."""
        return self.stages[-1]

    @property
    def result(self) -> Path:
        """The file that is written last."""
        return self.folder / "results.json"


@dataclass(frozen=True)
class Plan:
    """All jobs of a study, in the order of their phases.

    Attributes:
        code: fingerprint of the code that decides their results, see :func:`study_code`.
        student: configurations of the student, as options of ``sdr fit``.
        protocol: option of the protocol, if it is not the default.
        methods: by name, each stage with the weights of the method as built.
        teachers: the first phase.
        banks: the second phase.
        cells: the last phase; some need banks.
    """

    code: str
    student: tuple[str, ...]
    protocol: tuple[str, ...]
    methods: Mapping[str, StudyMethod]
    teachers: tuple[TeacherJob, ...]
    banks: tuple[BankJob, ...]
    cells: tuple[Cell, ...]

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the results of the study, code included, except the data."""
        return sha256(*(cell.fingerprint for cell in self.cells))

    def commands(self) -> str:
        """Return the study as commands, one per line."""
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
            lines += [["sdr", "fit", *arguments] for arguments in cell.stages]
            best = ("--ckpt_path", str(cell.folder / "checkpoints" / "best.ckpt"))
            lines.append(["sdr", "test", *cell.model, *self.protocol, "--run_dir", str(cell.folder), *best])
        return "\n".join(shlex.join(line) for line in lines)


def plan(study: StudySpec, folder: Path) -> Plan:
    """Lay out a study. Nothing is written.

    Args:
        study: the study.
        folder: where its results go.

    Returns:
        The jobs. Cells that would be equal (every corruption at ratio 0) occur once. Teachers are trained if the study has
        them, because the structure of every student is compared with theirs; banks of their features of the training
        data are extracted only where a method needs them.

    Raises:
        ValueError: a method that cannot be built, or that needs a teacher that the study does not have; the message names the
            file and the method.
    """
    student = _config_options(study.student)
    protocol = () if study.protocol == "clean" else ("--protocol", study.protocol)
    methods, needs = _built_methods(study, student)
    code = study_code(study)
    base = sha256(__version__, code, *map(_text, study.student), *protocol)
    teachers: dict[Path, TeacherJob] = {}
    banks: dict[Path, BankJob] = {}
    cells = []
    for name, ratio in _conditions(study):
        for seed in study.seeds:
            stack = imbalance_at(study, name, ratio, seed) if ratio else ()
            present = {modality: _teacher(study, modality, folder, stack, code) for modality in study.teachers}
            teachers |= {teacher.folder: teacher for teacher in present.values()}
            mine = sha256(base, *(teacher.fingerprint for teacher in present.values()))
            for method in study.methods.values():
                options = ("--seed_everything", str(seed), *protocol, *imbalance_options(stack))
                for modality in needs[method.name]:
                    bank = _bank(present[modality], stack, study, mine)
                    banks[bank.file] = bank
                    file = bank.placebo if method.teachers == "placebo" else bank.file
                    options += (f"--data.init_args.{modality}_bank", str(file))
                where = folder / "cells" / method.name / f"{name}-{ratio}" / f"seed-{seed}"
                settings = [_settings(stage) for stage in method.stages]
                cells.append(
                    Cell(
                        method=method.name,
                        imbalance=name,
                        ratio=ratio,
                        seed=seed,
                        folder=where,
                        model=(*student, *_model_options(method.stages[-1])),
                        stages=tuple(_stages(method, student, options, where)),
                        teachers=tuple(present.values()),
                        code=code,
                        fingerprint=sha256(mine, method.teachers, *settings, _text_of(stack), str(seed)),
                        with_examples=seed == study.seeds[0] and ratio == max(study.ratios),
                        needs_banks=bool(needs[method.name]),
                    )
                )
    return Plan(code, student, protocol, methods, tuple(teachers.values()), tuple(banks.values()), tuple(cells))


def study_code(study: StudySpec) -> str:
    """Fingerprint of the code that decides the results of a study, see :func:`~sdr_lightning.studies.code.code_fingerprint`."""
    stages = [stage for method in study.methods.values() for stage in method.stages]
    configs = [*study.student, *(path for teacher in study.teachers.values() for path in teacher.config)]
    configs += [path for stage in stages for path in stage.config]
    contents = [document for path in dict.fromkeys(configs) for document in documents(path)]
    classes = {text for document in contents for key, text in strings(document) if key == "class_path"}
    classes |= {text for stage in stages for _, text in strings(dict(stage.options))}  # may name a class
    return code_fingerprint(classes)


def _built_methods(
    study: StudySpec, student: tuple[str, ...]
) -> tuple[dict[str, StudyMethod], dict[str, tuple[Modality, ...]]]:
    """The methods with their weights as built, and the modalities whose teacher each needs."""
    methods: dict[str, StudyMethod] = {}
    needs: dict[str, tuple[Modality, ...]] = {}
    for method in study.methods.values():
        stages, needed = [], frozenset[str]()
        for stage in method.stages:
            try:
                files = tuple(map(_text, (*study.student, *stage.config)))
                weights, stage_needs = _built((*student, *_model_options(stage)), files)
            except ValueError as error:
                raise ValueError(f"{study.file}: method {method.name}: {error}") from error
            stages.append(replace(stage, weights=weights))
            needed |= stage_needs
        needs[method.name] = tuple(modality for modality in get_args(Modality) if f"{modality}_teacher" in needed)
        absent = [modality for modality in needs[method.name] if modality not in study.teachers]
        if absent:
            raise ValueError(
                f"{study.file}: method {method.name} needs the {absent[0]} teacher, which the study does not have: add it under "
                "teachers"
            )
        methods[method.name] = replace(method, stages=tuple(stages))
    return methods, needs


@cache
def _built(arguments: tuple[str, ...], files: tuple[str, ...]) -> tuple[dict[str, float], frozenset[str]]:
    """Weights and needs of the method that options describe; ``files`` is the content of their files."""
    method = build_method(arguments)
    return dict(method.weights), frozenset(method.needs)


def _model_options(stage: StudyStage) -> tuple[str, ...]:
    """Options of ``sdr fit`` that a stage adds to the student."""
    weights = {} if stage.weights is None else {"model.init_args.method.init_args.weights": dict(stage.weights)}
    options = ((f"--{name}", _value(value)) for name, value in {**weights, **stage.options}.items())
    return (*_config_options(stage.config), *(word for option in options for word in option))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _settings(stage: StudyStage) -> str:
    """Everything in a stage that decides its result."""
    weights = None if stage.weights is None else dict(stage.weights)
    return json.dumps([[*map(_text, stage.config)], weights, dict(stage.options), stage.epochs], sort_keys=True)


def _stages(
    method: StudyMethod, student: tuple[str, ...], options: tuple[str, ...], folder: Path
) -> Iterator[tuple[str, ...]]:
    """Options of ``sdr fit`` of each stage. The last one fills the folder of the cell, the others a folder inside it."""
    start: tuple[str, ...] = ()
    for number, stage in enumerate(method.stages, start=1):
        where = folder if number == len(method.stages) else folder / f"stage-{number}"
        epochs = () if stage.epochs is None else ("--trainer.max_epochs", str(stage.epochs))
        # The study's own options come last: no option of a method changes seed, corruption or folder.
        yield (*student, *_model_options(stage), *epochs, *options, *start, "--run_dir", str(where))
        start = ("--model.init_args.start_from", str(where / "checkpoints" / "best.ckpt"))


def imbalance_options(stack: Stack) -> tuple[str, ...]:
    """Return a corruption as an option of the data, with all fields, so that none is inherited."""
    return ("--data.init_args.imbalance", json.dumps([asdict(part) for part in stack]))


def _conditions(study: StudySpec) -> list[tuple[str, float]]:
    """Names and ratios, the greatest first: its corrupted items include those of smaller ratios, so features are reused."""
    ratios = sorted((ratio for ratio in study.ratios if ratio > 0), reverse=True)
    clean = [("none", 0.0)] if 0 in study.ratios else []
    return clean + [(name, ratio) for ratio in ratios for name in study.imbalances]


def _text(config: Path) -> str:
    """Content of a configuration and of the fragments that it refers to; comments do not count."""
    return "\n".join(json.dumps(document, default=str) for document in documents(config))


def _config_options(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(word for path in paths for word in ("--config", str(path)))


def _teacher(study: StudySpec, modality: str, folder: Path, stack: Stack, code: str) -> TeacherJob:
    teacher = study.teachers[modality]
    fingerprint = sha256(__version__, code, *map(_text, teacher.config), str(teacher.pretrained))
    where = folder / "teachers" / modality
    imbalances: Stack | None = None if teacher.pretrained else ()
    if teacher.trained_on == "imbalanced":  # a mismatch also changes which captions are siblings, for text teachers
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
    """Everything that decides a corruption, the content of its files included."""
    files = [Path(expand(part.file)) for part in stack if part.file is not None]
    return " ".join([str(stack), *(sha256(file.read_bytes()) for file in files if file.is_file())])


def _bank(teacher: TeacherJob, stack: Stack, study: StudySpec, base: str) -> BankJob:
    # A bank depends only on the corruption of its modality; the content of a file is known to the data module alone.
    shown = tuple(part for part in stack if part.modality == teacher.modality or part.file is not None)
    stem = f"{_label(shown)}-{sha256(base, _text_of(shown))[:12]}"
    banks = teacher.folder / "banks"
    placebo = any(method.teachers == "placebo" for method in study.methods.values())
    return BankJob(
        teacher, shown, banks / f"{stem}.safetensors", banks / f"{stem}-placebo.safetensors" if placebo else None
    )
