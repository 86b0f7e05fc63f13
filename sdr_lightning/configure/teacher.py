"""Teachers that a student's run brings along: their towers, built from the files that trained them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.seed import isolate_rng

from sdr_lightning.configure.arguments import with_nulls
from sdr_lightning.configure.parser_errors import one_line_errors
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
"""The sections and options of ``sdr fit`` besides the model and the seed."""


@dataclass(frozen=True)
class TeacherFiles:
    """A teacher that is run over the student's data, as far as the method distils it; goes before a bank of its features.

    ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.

    Args:
        config: the configuration that ``sdr fit`` trained the teacher with, or would; None for no teacher.
        ckpt_path: its checkpoint; None for a tower that is used as it is configured.

    Raises:
        ValueError: a checkpoint without a configuration.
    """

    config: FilePath | None = None
    ckpt_path: FilePath | None = None

    def __post_init__(self) -> None:
        if self.config is None and self.ckpt_path is not None:
            raise ValueError(f"a teacher's ckpt_path, {self.ckpt_path}, needs its config beside it")

    def tower(self, modality: Modality) -> Tower:
        """The teacher's tower, frozen.

        Args:
            modality: which one it should be of.

        Raises:
            ValueError: no such files, not a teacher, or one of the other modality.
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
    """The tower of the teacher that options describe, with the weights of its checkpoint if there is one.

    The random generators are left as they are.

    Raises:
        ValueError: the configuration is not a teacher's, or the checkpoint is not of this teacher.
    """
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
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
        raise ValueError(f"the teacher's configuration makes a {type(module).__name__}, expected a TeacherModule")
    if checkpoint is not None:
        if not Path(checkpoint).is_file():
            raise ValueError(f"no checkpoint at {checkpoint}: train the teacher with sdr fit")
        try:
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
            module.load_state_dict(state)
        except Exception as error:  # torch raises whatever it stumbles over
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"{checkpoint} is not a checkpoint of this teacher: {why}") from error
    return module.tower
