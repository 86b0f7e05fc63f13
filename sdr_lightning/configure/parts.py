"""Building single parts of a configuration."""

from __future__ import annotations

from argparse import ArgumentParser as StandardParser
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from sdr_lightning.configure.arguments import split_options, with_nulls
from sdr_lightning.configure.lightning_cli import build
from sdr_lightning.configure.parser_errors import one_line_errors
from sdr_lightning.configure.references import path_parser
from sdr_lightning.configure.teacher import NOT_THE_MODEL
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.methods.base import Method
from sdr_lightning.paths import read_yaml

_ANY_VALUE = dict[str, object] | list[object] | str | int | float | bool | None  # type of ignored sections


def student_data(arguments: list[str]) -> RetrievalDataModule:
    """Build the data module of a student.

    Args:
        arguments: options of ``sdr fit``.

    Raises:
        ValueError: invalid options.
    """
    data = build(arguments).datamodule
    assert isinstance(data, RetrievalDataModule)
    return data


def build_data(arguments: Sequence[str]) -> RetrievalDataModule:
    """Build the data module of a configuration.

    Args:
        arguments: ``--data FILE`` and options such as ``--data.init_args.source.init_args.skip_missing true``. The file is a
            data configuration, or that of a whole run with a data section.

    Raises:
        ValueError: an unreadable file or invalid options, in one line.

    Example:
        >>> data = build_data(["--data", "experiments/data/scenes.yaml", "--data.init_args.batch_size", "16"])
        >>> data.batch_size
        16
    """
    file, options = _file_and_options(arguments)
    parser = path_parser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(RetrievalDataModule, "data", required=True)
    sections = run_sections(file)
    for name in sections - {"data"}:
        parser.add_argument(f"--{name}", type=_ANY_VALUE)
    with one_line_errors():
        parsed = parser.parse_args(["--config" if sections else "--data", str(file), *with_nulls(options)])
        data = parser.instantiate(parsed).data
    assert isinstance(data, RetrievalDataModule)
    return data


def _file_and_options(arguments: Sequence[str]) -> tuple[Path, list[str]]:
    parser = StandardParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--data")
    known, options = parser.parse_known_args(list(arguments))
    if known.data is None:
        raise ValueError(f"expected --data FILE among the arguments, found {list(arguments)}")
    return Path(known.data), options


def run_sections(file: Path) -> set[str]:
    """Return the sections of the configuration of a whole run; empty for a data configuration."""
    document = read_yaml(file, "configuration of data")
    if not isinstance(document, dict) or not {"class_path", "data"} & document.keys():
        raise ValueError(
            f"{file} is no configuration of data: expected class_path and init_args, or a run's data section"
        )
    return set() if "class_path" in document else set(document)


def build_method(arguments: Sequence[str]) -> Method:
    """Build only the method of a configuration. The state of random generators is unchanged.

    Args:
        arguments: options of ``sdr fit``: ``--config FILE``, ``--model.init_args.method.init_args.weights ...``.

    Raises:
        ValueError: invalid options, a model without a method, or values that the method rejects, in one line.
    """
    parser = path_parser()
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(pl.LightningModule, "model", required=True)
    for name in (*NOT_THE_MODEL, "seed_everything"):
        parser.add_argument(f"--{name}", type=_ANY_VALUE)
    options, _ = split_options(arguments, ("--config", "--model"))
    only = path_parser()
    only.add_subclass_arguments(Method, "method", required=True)
    with one_line_errors(), isolate_rng():
        model = parser.parse_args(with_nulls(options)).model
        if "method" not in model.init_args:
            raise ValueError(
                f"{model.class_path} trains without a method: expected a sdr_lightning.training.RetrievalModule"
            )
        method = only.instantiate(only.parse_object({"method": model.init_args.method})).method
    assert isinstance(method, Method)
    return method
