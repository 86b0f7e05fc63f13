"""Which weights a student's checkpoint holds, and how a later stage takes them over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.methods.sdr import SDR

_FROZEN = "frozen_towers"


def leave_frozen_out(checkpoint: dict[str, Any], encoder: DualEncoder) -> None:
    """Replace the weights of frozen towers by their fingerprints."""
    towers = encoder.frozen_towers()
    checkpoint[_FROZEN] = {name: tower.fingerprint() for name, tower in towers.items()}
    for name in towers:
        for key in [key for key in checkpoint["state_dict"] if key.startswith(f"encoder.{name}.")]:
            del checkpoint["state_dict"][key]


def put_frozen_back(checkpoint: dict[str, Any], encoder: DualEncoder) -> None:
    """Complete a checkpoint with the weights of the towers that are frozen here.

    Raises:
        ValueError: the tower that is frozen here is not the one that was frozen then.
    """
    towers = encoder.frozen_towers()
    for name, fingerprint in checkpoint.get(_FROZEN, {}).items():
        if name not in towers or towers[name].fingerprint() != fingerprint:
            raise ValueError(
                f"the checkpoint was trained on another frozen {name}: configure the weights it was trained with"
            )
        prefix = f"encoder.{name}."
        checkpoint["state_dict"] |= {prefix + key: value for key, value in towers[name].state_dict().items()}


def start_from(path: Path, student: pl.LightningModule, encoder: DualEncoder, method: SDR) -> None:
    """Take over the encoder of an earlier stage, and what of its method is part of this one.

    Args:
        path: a checkpoint of ``sdr fit``.
        student: the module of this stage, with ``encoder`` and ``method`` under these names.
        encoder: the student's.
        method: the student's.

    Raises:
        ValueError: no such checkpoint, or one of another encoder.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint to start from at {path}: run the earlier stage first")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = checkpoint["state_dict"]
    except Exception as error:  # torch raises whatever it stumbles over
        raise ValueError(f"{path} is no checkpoint of sdr fit ({type(error).__name__})") from error
    put_frozen_back(checkpoint, encoder)
    own, learned = student.state_dict(), {f"method.{name}" for name, _ in method.named_parameters()}
    theirs = {key: value for key, value in state.items() if key.startswith("encoder.") or key in learned}
    try:
        student.load_state_dict({key: value for key, value in own.items() if not key.startswith("encoder.")} | theirs)
    except RuntimeError as error:
        what = "is of another encoder" if "encoder." in str(error) else "does not fit the method"
        raise ValueError(f"{path} {what}: {' '.join(str(error).split())[:300]}") from error
