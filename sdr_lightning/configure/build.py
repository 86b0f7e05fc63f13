"""Parts of a configuration, built alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser

from sdr_lightning.configure.complaints import told_in_one_line
from sdr_lightning.configure.lightning_cli import build
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.training.teacher_module import TeacherModule


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


def teacher_tower(arguments: Sequence[str], checkpoint: str | None) -> Tower:
    """The tower of the teacher that options describe, with the weights of its checkpoint if there is one.

    Raises:
        ValueError: the configuration is not a teacher's, or the checkpoint is not of this teacher.
    """
    module = build(list(arguments)).model
    if not isinstance(module, TeacherModule):
        raise ValueError(f"the teacher's configuration makes a {type(module).__name__}, expected a TeacherModule")
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(f"no checkpoint at {checkpoint}: train the teacher with sdr fit")
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(
                f"{checkpoint} is not a checkpoint of this teacher: {str(error).splitlines()[0]}"
            ) from error
    return module.tower
