"""From a study to its jobs: teachers, banks, trials and cells, each with its folder and its options of ``sdr fit``."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sdr_lightning.configure import build_method, parse
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.identity import sha256
from sdr_lightning.paths import expand
from sdr_lightning.results.loading import load_trials
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, StudyMethod, StudySpec, StudyStage, StudyTeacher
from sdr_lightning.studies.code import CodeReader
from sdr_lightning.studies.documents import documents, strings
from sdr_lightning.studies.spec import imbalance_at
from sdr_lightning.studies.tuning import Chosen, PlannedTrial, chosen_options, space_points
from sdr_lightning.types import Modality

_FORMAT = "0.1.0"  # of the fingerprints of jobs: a new one runs every job again, whatever the version of the package
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
    """One run of the study: a method under a condition with a seed; or a trial of its options, which is not tested.

    Attributes:
        method: name of the method.
        imbalance: name of the corruption; ``none`` at ratio 0.
        ratio: of the corruption.
        seed: of the run.
        options: of ``sdr fit``, of the trial or chosen by the trials, over those of the method.
        trial: its number; None for a cell, which is tested.
        folder: its run folder.
        model: options of ``sdr fit`` that configure student and method of the last stage.
        stages: options of ``sdr fit`` of each stage; the last one fills the folder.
        teachers: whose features of the test split the structure of the student is compared with.
        banks: features of teachers that the method reads.
        code: fingerprint of the code that decides its result.
        fingerprint: of everything that decides its result, code included.
        with_examples: whether example retrievals are kept.
    """

    method: str
    imbalance: str
    ratio: float
    seed: int
    options: Mapping[str, Any]
    trial: int | None
    folder: Path
    model: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    teachers: tuple[TeacherJob, ...]
    banks: tuple[BankJob, ...]
    code: str
    fingerprint: str
    with_examples: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """Options of ``sdr fit`` of the last stage."""
        return self.stages[-1]

    @property
    def result(self) -> Path:
        """The file that is written last."""
        return self.folder / ("results.json" if self.trial is None else "trial.json")


@dataclass(frozen=True)
class Plan:
    """All jobs of a study, in the order of their phases.

    Attributes:
        code: fingerprint of the code that decides their results: of the fingerprints of all methods and teachers.
        student: configurations of the student, as options of ``sdr fit``.
        protocol: option of the protocol, if it is not the default.
        methods: by name, with their points and code, and each stage with the weights of the method as built.
        teacher_entries: those of the study by modality, with their code.
        trials: of a tuned study; they choose the options of the cells.
        cells: none in a tuned study whose options are not chosen.
    """

    code: str
    student: tuple[str, ...]
    protocol: tuple[str, ...]
    methods: Mapping[str, StudyMethod]
    teacher_entries: Mapping[str, StudyTeacher]
    trials: tuple[Cell, ...]
    cells: tuple[Cell, ...]

    @property
    def teachers(self) -> tuple[TeacherJob, ...]:
        """The teachers of all trials and cells."""
        return teachers_of((*self.trials, *self.cells))

    @property
    def banks(self) -> tuple[BankJob, ...]:
        """The banks of all trials and cells."""
        return banks_of((*self.trials, *self.cells))

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the results of the study, code included, except the data."""
        return sha256(*(job.fingerprint for job in (*self.trials, *self.cells)))

    def commands(self) -> str:
        """Return the study as commands, one per line.

        A tuned study whose options are not chosen has no commands of cells, and a comment about it.
        """
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
        for job in (*self.trials, *self.cells):
            lines += [["sdr", "fit", *arguments] for arguments in job.stages]
            if job.trial is None:
                best = ("--ckpt_path", str(job.folder / "checkpoints" / "best.ckpt"))
                lines.append(["sdr", "test", *job.model, *self.protocol, "--run_dir", str(job.folder), *best])
        comment = (
            [] if self.cells else ["# The trials choose the options of the cells: print the commands again after them."]
        )
        return "\n".join([*(shlex.join(line) for line in lines), *comment])


def teachers_of(jobs: Iterable[Cell]) -> tuple[TeacherJob, ...]:
    """Return the teachers of trials and cells, each once."""
    return tuple({teacher.folder: teacher for job in jobs for teacher in job.teachers}.values())


def banks_of(jobs: Iterable[Cell]) -> tuple[BankJob, ...]:
    """Return the banks of trials and cells, each once."""
    return tuple({bank.file: bank for job in jobs for bank in job.banks}.values())


def plan(study: StudySpec, folder: Path, chosen: Chosen | None = None) -> Plan:
    """Lay out a study. Nothing is written.

    Args:
        study: the study.
        folder: where its results go.
        chosen: of a tuned study, the options that its trials chose; None as long as they have not.

    Returns:
        The jobs. Cells that would be equal (every corruption at ratio 0) occur once. Teachers are trained if the study has
        them, because the structure of every student is compared with theirs; banks of their features of the training
        data are extracted only where a method needs them.

    Raises:
        ValueError: a method that cannot be built, at any point of its space, or that needs a teacher that the study does not
            have; the message names the file and the method.
    """
    return _Planner(study, folder).plan(chosen)


def plan_with_trials(study: StudySpec, folder: Path, results: Path | None = None) -> Plan:
    """Lay out a study, a tuned one with the options that its finished trials choose.

    Args:
        study: the study.
        folder: where its results go.
        results: the folder with its trials, if it is another one.

    Returns:
        The jobs, see :func:`plan`; without cells while a trial is missing.

    Raises:
        ValueError: as :func:`plan`; or all trials of a method failed under a condition.
    """
    planner = _Planner(study, folder)
    before = planner.plan(None)
    if not before.trials:
        return before
    planned = [PlannedTrial(t.method, Condition.of(t.imbalance, t.ratio), t.fingerprint) for t in before.trials]
    chosen = chosen_options(planned, load_trials(folder if results is None else results))
    return before if chosen is None else replace(before, cells=planner.cells(chosen))


class _Planner:
    """Lays out the jobs of one study."""

    def __init__(self, study: StudySpec, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.student = _config_options(study.student)
        self.protocol = () if study.protocol == "clean" else ("--protocol", study.protocol)
        self.common = (_FORMAT, *map(_text, study.student), *self.protocol)
        self.of_student = _classes(study.student, but="method")  # a study's method replaces that of the student
        self.code = CodeReader()
        self.student_code = self.code.fingerprint(self.of_student)
        self.teachers = {
            modality: replace(teacher, code=self.code.fingerprint({*self.of_student, *_classes(teacher.config)}))
            for modality, teacher in study.teachers.items()
        }
        self.methods = {name: self._built(method) for name, method in study.methods.items()}
        self.has_placebo = any(method.teachers == "placebo" for method in study.methods.values())

    def plan(self, chosen: Chosen | None) -> Plan:
        codes = [method.code for method in self.methods.values()] + [t.code for t in self.teachers.values()]
        return Plan(
            code=sha256(*codes),
            student=self.student,
            protocol=self.protocol,
            methods=self.methods,
            teacher_entries=self.teachers,
            trials=self.trials(),
            cells=self.cells(chosen) if self.study.tuning is None or chosen is not None else (),
        )

    def trials(self) -> tuple[Cell, ...]:
        """All trials; none in a study without tuning."""
        tuning = self.study.tuning
        if tuning is None:
            return ()
        return tuple(
            self._job(method, condition, tuning.seed, options, number)
            for condition in self._conditions()
            for method in self.methods.values()
            for number, options in enumerate(method.points)
        )

    def cells(self, chosen: Chosen | None) -> tuple[Cell, ...]:
        """All cells, with the chosen options, or without tuning those of the methods."""
        return tuple(
            self._job(method, condition, seed, {} if chosen is None else chosen[method.name, condition])
            for condition in self._conditions()
            for seed in self.study.seeds
            for method in self.methods.values()
        )

    def _conditions(self) -> list[Condition]:
        """The greatest ratios first: their corrupted items include those of smaller ones, so features are reused."""
        return sorted(self.study.conditions, key=lambda c: (c.imbalance != NO_IMBALANCE, -c.ratio))

    def _built(self, method: StudyMethod) -> StudyMethod:
        """A method with its weights as built, its points and its code."""
        stages, classes = [], set(self.of_student)
        for stage in method.stages:
            built = self._stage(method, stage)
            stages.append(replace(stage, weights=built.weights))
            classes |= built.classes | _classes(stage.config) | _words(stage.options)
        points: tuple[Mapping[str, Any], ...] = ()
        if self.study.tuning is not None and method.space is not None:
            own = self._own_values(method)
            points = space_points(method.space, own, self.study.tuning.trials, self.study.tuning.seed)
            classes |= _words(method.space)
        classes |= {name for teacher in self.study.teachers.values() for name in _classes(teacher.config)}
        return replace(method, stages=tuple(stages), points=points, code=self.code.fingerprint(classes))

    def _stage(self, method: StudyMethod, stage: StudyStage) -> _Built:
        files = tuple(map(_text, (*self.study.student, *stage.config)))
        try:
            return _built((*self.student, *_model_options(stage)), files)
        except ValueError as error:
            raise ValueError(f"{self.study.file}: method {method.name}: {error}") from error

    def _own_values(self, method: StudyMethod) -> dict[str, Any]:
        """The values that the options of its space have in the configuration of a method; those that are not set are left out."""
        stage = method.stages[-1]
        try:
            values = _parsed_options((*self.student, *_model_options(stage)), tuple(map(_text, stage.config)))
        except ValueError as error:
            raise ValueError(f"{self.study.file}: method {method.name}: {error}") from error
        found = {name: _at(values, name) for name in method.space or ()}
        return {name: value for name, value in found.items() if value is not None}

    def _needs(self, method: StudyMethod) -> tuple[Modality, ...]:
        """The modalities whose teacher a method needs from the study; those in its configuration are its own."""
        needed = {need for stage in method.stages for need in self._stage(method, stage).needs}
        own = {name for stage in method.stages for config in stage.config for name in next(documents(config)) or {}}
        if method.teachers == "placebo" and needed & own:
            raise ValueError(
                f"{self.study.file}: method {method.name} has placebo teachers and an {min(needed & own)} in its configuration: "
                "leave one of the two out"
            )
        needed -= own
        found = tuple(modality for modality in get_args(Modality) if f"{modality}_teacher" in needed)
        absent = [modality for modality in found if modality not in self.teachers]
        if absent:
            raise ValueError(
                f"{self.study.file}: method {method.name} needs the {absent[0]} teacher, which the study does not have: add it "
                f"under teachers, or {absent[0]}_teacher to an overlay of the method"
            )
        return found

    def _job(
        self, method: StudyMethod, condition: Condition, seed: int, options: Mapping[str, Any], trial: int | None = None
    ) -> Cell:
        """A cell, or a trial if it has a number."""
        study, (name, ratio) = self.study, condition
        stack = imbalance_at(study, name, ratio, seed) if ratio else ()
        present = {modality: self._teacher(modality, stack) for modality in self.teachers}
        common = (*self.common, *(teacher.fingerprint for teacher in present.values()))
        # As configured; the method of the record has weights as built.
        tuned = study.methods[method.name].with_options(options)
        banks, more = [], ("--seed_everything", str(seed), *self.protocol, *imbalance_options(stack))
        for modality in self._needs(tuned):
            bank = self._bank(present[modality], stack, sha256(self.student_code, *common))
            banks.append(bank)
            file = bank.placebo if method.teachers == "placebo" else bank.file
            more += (f"--data.init_args.{modality}_bank", str(file))
        kind = ("cells", f"seed-{seed}") if trial is None else ("trials", str(trial))
        where = self.folder / kind[0] / method.name / f"{name}-{ratio}" / kind[1]
        settings = (method.teachers, *map(_settings, tuned.stages), _text_of(stack), str(seed))
        return Cell(
            method=method.name,
            imbalance=name,
            ratio=ratio,
            seed=seed,
            options=options,
            trial=trial,
            folder=where,
            model=(*self.student, *_model_options(tuned.stages[-1])),
            stages=tuple(_stages(tuned, self.student, more, where)),
            teachers=tuple(present.values()),
            banks=tuple(banks),
            code=method.code,
            fingerprint=sha256(method.code, *common, *settings, *(() if trial is None else ("trial",))),
            with_examples=trial is None and seed == study.seeds[0] and condition in study.hardest,
        )

    def _teacher(self, modality: str, stack: Stack) -> TeacherJob:
        teacher = self.teachers[modality]
        fingerprint = sha256(_FORMAT, teacher.code, *map(_text, teacher.config), str(teacher.pretrained))
        where = self.folder / "teachers" / modality
        imbalances: Stack | None = None if teacher.pretrained else ()
        if teacher.trained_on == "imbalanced":  # a mismatch also changes which captions are siblings, for text teachers
            seen = (modality, "pair") if modality == "text" else (modality,)
            imbalances = tuple(part for part in stack if part.modality in seen or part.file is not None)
            where /= f"{_label(imbalances)}-{sha256(_text_of(imbalances))[:8]}" if imbalances else _label(())
            fingerprint = sha256(fingerprint, _text_of(imbalances)) if imbalances else fingerprint
        return TeacherJob(
            modality,
            where,
            _config_options(teacher.config),
            imbalances,
            teacher.description,
            teacher.code,
            fingerprint,
        )

    def _bank(self, teacher: TeacherJob, stack: Stack, base: str) -> BankJob:
        # A bank depends only on the corruption of its modality; the content of a file is known to the data module alone.
        shown = tuple(part for part in stack if part.modality == teacher.modality or part.file is not None)
        stem = f"{_label(shown)}-{sha256(base, _text_of(shown))[:12]}"
        banks = teacher.folder / "banks"
        placebo = banks / f"{stem}-placebo.safetensors" if self.has_placebo else None
        return BankJob(teacher, shown, banks / f"{stem}.safetensors", placebo)


class _Built(NamedTuple):
    """The method that options describe, as built: its weights, needs and classes."""

    weights: dict[str, float]
    needs: frozenset[str]
    classes: frozenset[str]


@cache
def _built(arguments: tuple[str, ...], files: tuple[str, ...]) -> _Built:
    """Build a method; ``files`` is the content of the files of the options."""
    method = build_method(arguments)
    classes = {type(part) for part in method.modules()}
    return _Built(
        dict(method.weights),
        frozenset(method.needs),
        frozenset(f"{kind.__module__}.{kind.__qualname__}" for kind in classes),
    )


@cache
def _parsed_options(arguments: tuple[str, ...], files: tuple[str, ...]) -> dict[str, Any]:
    """The values of all options; ``files`` is the content of their files."""
    return parse(arguments)


def _at(values: Any, name: str) -> Any:
    """The value of an option by its dotted name; None where there is none."""
    for part in name.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


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


def _text(config: Path) -> str:
    """Content of a configuration and of the fragments that it refers to; comments do not count."""
    return "\n".join(json.dumps(document, default=str) for document in documents(config))


def _classes(configs: Iterable[Path], but: str | None = None) -> set[str]:
    """The classes that configurations name, except those of the sections of a name; what is inside these counts."""
    contents = [document for config in configs for document in documents(config)]
    return {
        text
        for document in contents
        for path, text in strings(document)
        if path[-1:] == ("class_path",) and path[-2:-1] != (but,)
    }


def _words(options: Mapping[str, Any]) -> set[str]:
    """All strings in the values of options; each may name a class."""
    return {text for _, text in strings(dict(options))}


def _config_options(paths: Sequence[Path]) -> tuple[str, ...]:
    return tuple(word for path in paths for word in ("--config", str(path)))


def _label(stack: Stack) -> str:
    return "-".join(f"{part.kind}-{part.ratio}-seed-{part.seed}" for part in stack) or "clean"


def _text_of(stack: Stack) -> str:
    """Everything that decides a corruption, the content of its files included."""
    files = [Path(expand(part.file)) for part in stack if part.file is not None]
    return " ".join([str(stack), *(sha256(file.read_bytes()) for file in files if file.is_file())])
