"""Building the towers of teachers from their configurations and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from sdr_lightning.configure.arguments import with_nulls
from sdr_lightning.configure.parser_errors import one_line_errors
from sdr_lightning.configure.references import path_parser
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.types import Modality

NOT_THE_MODEL = (
    "data",
    "trainer",
    "checkpoint",
    "run_dir",
    "protocol",
    "image_teacher",
    "text_teacher",
    "ckpt_path",
    "weights_only",
)
"""Sections and options of ``sdr fit`` besides the model and the seed."""


@dataclass(frozen=True)
class TeacherFiles:
    """Files of a teacher whose features are computed on the student's data. Takes precedence over a feature bank.

    ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.

    Args:
        config: the teacher's configuration for ``sdr fit``; None for no teacher.
        ckpt_path: the teacher's checkpoint; None to use the tower with its initial weights.

    Raises:
        ValueError: a checkpoint without a configuration.
    """

    config: FilePath | None = None
    ckpt_path: FilePath | None = None

    def __post_init__(self) -> None:
        if self.config is None and self.ckpt_path is not None:
            raise ValueError(f"a teacher's ckpt_path, {self.ckpt_path}, needs its config beside it")

    def tower(self, modality: Modality) -> Tower:
        """Build the teacher's frozen tower.

        Args:
            modality: the expected modality.

        Raises:
            ValueError: missing files, a configuration of no teacher, or a teacher of the other modality.
        """
        config = expand(str(self.config))
        if not Path(config).is_file():
            raise ValueError(f"no configuration of the {modality} teacher at {config}")
        found = teacher_tower(["--config", config], self.ckpt_path and expand(self.ckpt_path))
        if found.modality != modality:
            raise ValueError(f"{config} is a teacher of the {found.modality} modality, expected {modality}")
        found.freeze()
        return found


def teacher_tower(arguments: Sequence[str], checkpoint: str | None) -> Tower:
    """Build the tower of a teacher. The state of random generators is unchanged.

    Args:
        arguments: options of ``sdr fit`` for the teacher.
        checkpoint: path of its checkpoint, or None.

    Raises:
        ValueError: the model is not a TeacherModule, or the checkpoint is missing or does not fit.
    """
    parser = path_parser()
    parser.add_argument("--config", action="config")
    parser.add_argument("--seed_everything", type=int, default=0)
    parser.add_subclass_arguments(pl.LightningModule, "model", required=True)
    for name in NOT_THE_MODEL:
        parser.add_argument(f"--{name}", type=dict | str | None)
    with one_line_errors(), isolate_rng():
        options = parser.parse_args(with_nulls(arguments))
        torch.manual_seed(options.seed_everything)
        module = parser.instantiate(options).model
    if not isinstance(module, TeacherModule):
        raise ValueError(
            f"the model of the teacher's configuration is a {type(module).__name__}, expected a TeacherModule"
        )
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(f"no checkpoint at {checkpoint}: train the teacher with sdr fit")
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
            module.load_state_dict(state)
        except Exception as error:  # torch raises many types
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{checkpoint} is not a checkpoint of this teacher: {reason}") from error
    return module.tower
