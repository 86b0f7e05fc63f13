"""Parts of a configuration, built alone."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import ArgumentParser

from sdr_lightning.configure.complaints import told_in_one_line
from sdr_lightning.configure.lightning_cli import build
from sdr_lightning.data.module import RetrievalDataModule


def student_data(arguments: list[str]) -> RetrievalDataModule:
    """The data module that a student's options describe.

    Raises:
        ValueError: the options do not fit.
    """
    data = build(arguments).datamodule
    assert isinstance(data, RetrievalDataModule)
    return data


def build_data(arguments: Sequence[str]) -> RetrievalDataModule:
    """The data module of a configuration of data alone.

    Args:
        arguments: ``--data FILE`` and options such as ``--data.init_args.source.init_args.skip_missing true``.

    Raises:
        ValueError: the options do not fit, in one line.
    """
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(RetrievalDataModule, "data", required=True)
    with told_in_one_line():
        data = parser.instantiate(parser.parse_args(list(arguments))).data
    assert isinstance(data, RetrievalDataModule)
    return data
