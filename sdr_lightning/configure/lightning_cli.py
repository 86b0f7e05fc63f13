"""LightningCLI with the defaults of this project: ``sdr fit``, ``sdr validate`` and ``sdr test``."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import lightning.pytorch as pl
import yaml
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.seed import isolate_rng

from sdr_lightning.configure.arguments import imported_class, with_nulls
from sdr_lightning.configure.fit_log import FitLog
from sdr_lightning.configure.metric_tables import print_metrics
from sdr_lightning.configure.parser_errors import one_line_errors
from sdr_lightning.configure.references import resolved
from sdr_lightning.configure.run_folder import RunFolder, dated_folder
from sdr_lightning.configure.run_summary import run_summary
from sdr_lightning.configure.teacher import TeacherFiles
from sdr_lightning.configure.warning_filter import without_foreign_warnings
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.methods.sdr import SDR
from sdr_lightning.metrics.evaluation import undefined
from sdr_lightning.paths import FilePath, claim, expand, read_json
from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.checkpoints.continuation import (
    CheckpointFiles,
    Continuation,
    is_dev_run,
    last_checkpoint,
)
from sdr_lightning.training.checkpoints.interruption import exit_status, exit_when_stopped, stopped_by_signals
from sdr_lightning.training.distributed.collectives import in_first_process
from sdr_lightning.training.distributed.strategies import named_strategy
from sdr_lightning.training.feature_caching import CacheFeatures
from sdr_lightning.training.protocol import ProtocolName, paper_options
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.tracking.metrics_csv import MetricsCSV
from sdr_lightning.training.tracking.wandb_run import WandbRun
from sdr_lightning.training.trainer_options import CheckGalleryAndMonitors, check_trainer
from sdr_lightning.types import Modality

_TRAINER_DEFAULTS = {
    "num_sanity_val_steps": 0,  # recall needs the whole gallery
    "use_distributed_sampler": False,  # the samplers of the data module divide the data
    "log_every_n_steps": 1_000_000,  # metrics are logged once per epoch
    "enable_model_summary": False,
}


class SdrCLI(LightningCLI):
    """LightningCLI for students and teachers.

    Args:
        arguments: a command with its options; options only if ``run`` is False.
        run: run the command; otherwise only build model, data and trainer.
        exports: the model is exported afterwards: refuse what cannot be.
    """

    def __init__(self, arguments: list[str], run: bool = True, exports: bool = False) -> None:
        arguments = with_nulls(arguments)
        self._exports = exports
        self.started, self.arguments, self._runs = time.time(), arguments, run
        with without_foreign_warnings():
            super().__init__(
                pl.LightningModule,
                pl.LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=None,
                trainer_defaults={
                    **_TRAINER_DEFAULTS,
                    "callbacks": [CheckGalleryAndMonitors(), _WriteRecord(self), Continuation()],
                },
                run=run,
                args=arguments,
            )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the supported Lightning commands."""
        commands = LightningCLI.subcommands()
        return {name: commands[name] for name in ("fit", "validate", "test")}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Build a parser that raises instead of exiting, so that errors are shown in one line."""
        return super().init_parser(**{**kwargs, "exit_on_error": False, "allow_abbrev": False})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add options of run folder, protocol, teachers and checkpoints, and link the seed of the data module."""
        parser.add_argument(
            "--run_dir", type=FilePath | None, default=None, help="run folder; named by date if left out"
        )
        parser.add_argument(
            "--protocol",
            type=ProtocolName,
            default="clean",
            help="clean: as configured; paper: override with the settings of the public code, see docs/sdr.md",
        )
        for modality in get_args(Modality):
            parser.add_class_arguments(TeacherFiles, f"{modality}_teacher")
        parser.add_lightning_class_args(BestCheckpoint, "checkpoint")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        if not self._runs:  # options of commands that a run's config.yaml contains
            for name in ("ckpt_path", "weights_only"):
                parser.add_argument(f"--{name}", default=None, help="not used here")

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let hyper-parameters of a checkpoint silently override the options."""

    def _dump_config(self) -> None:
        """Give the model no hyper-parameters: nothing reads them, and writing all options takes as long as parsing them."""
        self.config_dump: dict[str, Any] = {}

    @property
    def settings(self) -> Any:
        """The parsed options of the command."""
        return self.config[self.subcommand] if self.subcommand else self.config

    def before_instantiate_classes(self) -> None:
        """Set the run folder and apply the protocol."""
        settings = self.settings
        self.run_dir = _relative(settings.run_dir) if settings.run_dir else dated_folder(self.subcommand or "run")
        if self.subcommand == "fit" and (self.run_dir / "config.yaml").exists() and not settings.get("ckpt_path"):
            raise ValueError(
                f"{self.run_dir} already holds a run: choose another --run_dir, or continue with --ckpt_path last"
            )
        self._apply_protocol(settings)
        if self._exports:
            _check_export(settings)
        self.folder = RunFolder(self.run_dir, self.protocol)
        self.folder.check()
        settings.trainer.default_root_dir = str(self.run_dir)
        loggers = settings.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if hasattr(logger, "init_args"):
                logger.init_args.save_dir = str(self.run_dir)

    def _apply_protocol(self, settings: Any) -> None:
        """Override options by those of the paper protocol.

        Raises:
            ValueError: the clean protocol with selection on test, or the paper protocol for a model that is no student or has
                no optimisation.
        """
        self.protocol: ProtocolName = settings.protocol
        settings.checkpoint.protocol = self.protocol
        if self.protocol == "clean":
            if settings.data.init_args.get("select_on") == "test":
                raise ValueError(
                    "under protocol clean models are selected on val/rsum, never on test: leave data.init_args.select_on out, "
                    "or use --protocol paper"
                )
            return
        if not issubclass(imported_class(settings.model.class_path), RetrievalModule):
            raise ValueError(f"--protocol paper is for students, and the model is a {settings.model.class_path}")
        if settings.model.init_args.optimisation is None:
            raise ValueError("--protocol paper sets parts of the optimisation: configure model.init_args.optimisation")
        source_name = settings.data.init_args.source.init_args.get("name", "")
        is_sdr = issubclass(imported_class(settings.model.init_args.method.class_path), SDR)
        for option, value in paper_options(source_name, is_sdr).items():
            settings[option] = value

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Build the trainer, with ``metrics.csv`` as an additional logger."""
        configured = self._get(self.config_init, "trainer.logger")
        if configured is not False:
            others = [] if configured in (None, True) else configured if isinstance(configured, list) else [configured]
            kwargs["logger"] = [*others, MetricsCSV(self.run_dir)]
        trainer = super().instantiate_trainer(**kwargs)
        trainer.strategy.checkpoint_io = CheckpointFiles()
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        """Add and check callbacks.

        Raises:
            ValueError: unsupported trainer options.
        """
        if config.get("barebones"):
            raise ValueError(
                "trainer.barebones has neither logs nor checkpoints: sdr bench training measures bare steps"
            )
        if config.get("use_distributed_sampler"):
            raise ValueError("trainer.use_distributed_sampler would divide the data a second time: leave it out")
        if config.get("enable_checkpointing") is False:
            callbacks = [callback for callback in callbacks if not isinstance(callback, BestCheckpoint)]
        if self.subcommand == "fit" and config.get("enable_progress_bar") is not False and not _own_bar(config):
            config["enable_progress_bar"] = False
            callbacks = [*callbacks, FitLog()]
        config["strategy"] = named_strategy(config.get("strategy", "auto"))
        trainer = super()._instantiate_trainer(config, [CacheFeatures(self._teachers()), *callbacks])
        check_trainer(trainer)
        return trainer

    def _teachers(self) -> dict[Modality, Callable[[], Tower]]:
        """Return functions that build the teachers of ``--image_teacher`` and ``--text_teacher``."""
        files = {modality: self._get(self.config_init, f"{modality}_teacher") for modality in get_args(Modality)}
        return {
            modality: partial(found.tower, modality) for modality, found in files.items() if found.config is not None
        }

    def before_fit(self) -> None:
        """Resolve ``--ckpt_path last``; exit if the run is finished."""
        if self.settings.get("ckpt_path") is not None and self.run_dir.is_dir() and self.trainer.is_global_zero:
            claim(self.run_dir)  # lock the folder before reading it
        if self.settings.get("ckpt_path") == "last":
            self._exit_if_finished()
            self.config_init[self.subcommand]["ckpt_path"] = str(last_checkpoint(self.run_dir / "checkpoints"))

    def _exit_if_finished(self) -> None:
        path = self.run_dir / "results.json"
        done = read_json(path, "results of a run").get("training") if path.is_file() else None
        trainer = self.trainer
        if done is not None and (
            done["epochs"] >= (trainer.max_epochs or 0) > 0 or done["steps"] >= trainer.max_steps > 0
        ):
            print(f"{self.run_dir} is finished, {done['epochs']} epochs; raise --trainer.max_epochs to train longer")
            if self._exports:
                raise ValueError(f"nothing was trained, so nothing is exported: use sdr export {self.run_dir}")
            raise SystemExit(0)

    def write_record(self) -> None:
        """Write the resolved configuration and the record into the run folder."""
        settings = resolved(self.settings)
        settings.run_dir = FilePath(self.run_dir.resolve())
        settings.ckpt_path = None  # resuming is requested on the command line only
        text = self._parser(self.subcommand).dump(settings, skip_none=False)
        is_new = self.settings.get("ckpt_path") is None
        record = self.folder.write_record(text, self.arguments, self.datamodule, exclusive=is_new)
        for tracked in self.tracked():
            tracked.begin(yaml.safe_load(text), record)

    def tracked(self) -> list[WandbRun]:
        """Return the W&B runs among the loggers of the trainer."""
        return [logger for logger in self.trainer.loggers if isinstance(logger, WandbRun)]

    @contextlib.contextmanager
    def tracking(self) -> Iterator[None]:
        """If the block fails, end the W&B runs with the exit status of the process."""
        try:
            with one_line_errors():
                yield
        except BaseException as error:
            self.end_tracking(exit_status(error))
            raise

    def end_tracking(self, status: int = 0) -> None:
        """End the W&B runs."""
        for tracked in self.tracked():
            tracked.finish(status)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the command; handle signals and end W&B runs on failure."""
        with stopped_by_signals(), self.tracking():
            super()._run_subcommand(subcommand)

    def before_test(self) -> None:
        """Require a checkpoint."""
        if self.settings.get("ckpt_path") is None:
            raise ValueError("sdr test needs --ckpt_path, the checkpoint to test")
        self.config_init[self.subcommand]["verbose"] = False  # Lightning's table repeats all metrics per loader

    def after_fit(self) -> None:
        """Write the results of the training and print a summary."""
        if not self.trainer.is_global_zero:
            return
        if report := self.trainer.profiler.summary():  # type: ignore[attr-defined]
            print(report)
        seconds = time.time() - self.started
        if is_dev_run(self.trainer):
            print(f"fast_dev_run finished in {seconds:.0f} s; nothing was measured or written")
            return
        checkpoint = self.folder.write_training(self.trainer, seconds)
        print(run_summary(self.trainer, self.model, self.datamodule, self.run_dir, checkpoint, seconds))

    def after_test(self) -> None:
        """Write and print the results of the test."""
        if self.trainer.is_global_zero and isinstance(self.model, RetrievalModule):
            under = self.folder.write_test(self.model, self.datamodule, self.settings.ckpt_path)
            for part in under.get("test", {"imbalances": []})["imbalances"]:
                print(f"the test data is imbalanced: {part['kind']}, {part['affected']} of {part['of']} items")
            print_metrics(self.model.test_metrics)
            for note in undefined(self.model.test_metrics):
                print(f"note: {note}", file=sys.stderr)
            print(f"results in {self.run_dir / 'results.json'}")
            own = shlex.quote(str(self.run_dir / "metrics.json"))
            print(f"compare with another test: sdr report {own} OTHER/metrics.json")


def _check_export(settings: Any) -> None:
    """Raise ValueError for a training whose model cannot be exported."""
    if not issubclass(imported_class(settings.model.class_path), RetrievalModule):
        raise ValueError(f"--export is for students, and the model is a {settings.model.class_path}: leave it out")
    if settings.trainer.fast_dev_run or settings.trainer.enable_checkpointing is False:
        raise ValueError("--export needs a checkpoint: leave out --trainer.fast_dev_run and enable_checkpointing false")


def run(arguments: list[str], exports: bool = False) -> SdrCLI:
    """Run a Lightning command.

    Args:
        arguments: the command and its options.
        exports: the model is exported afterwards: refuse what cannot be.

    Returns:
        The command line interface, with model and trainer after the command.

    Raises:
        ValueError: invalid options or files, in one line.
        SystemExit: with status 143 after SIGTERM, 130 after Ctrl-C.
    """
    with one_line_errors(), exit_when_stopped():
        return SdrCLI(arguments, exports=exports)


def build(arguments: list[str]) -> SdrCLI:
    """Build model, data and trainer from options without running a command.

    Raises:
        ValueError: invalid options or files, in one line.
    """
    with one_line_errors():
        return SdrCLI(arguments, run=False)


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values of all options of a run without building anything. The state of random generators is unchanged.

    Raises:
        ValueError: invalid options or files, in one line.
    """
    with one_line_errors(), isolate_rng():
        found: dict[str, Any] = _Parsed(list(arguments), run=False).config.as_dict()
    return found


class _Parsed(SdrCLI):
    """Stops after the parser."""

    def before_instantiate_classes(self) -> None:
        """Choose no run folder."""

    def instantiate_classes(self) -> None:
        """Build nothing."""


class _WriteRecord(pl.Callback):
    """Writes the record of a run after data and model were checked, so that rejected runs leave no files."""

    def __init__(self, cli: SdrCLI) -> None:
        self.cli = cli

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not is_dev_run(trainer):
            in_first_process(trainer, self.cli.write_record)


def _own_bar(config: dict[str, Any]) -> bool:
    """Whether the configuration has a progress bar among its callbacks."""
    callbacks = config.get("callbacks") or []
    return any(isinstance(one, ProgressBar) for one in (callbacks if isinstance(callbacks, list) else [callbacks]))


def _relative(folder: str) -> Path:
    """Expand variables, and make paths below the current folder relative."""
    path = Path(expand(folder))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
