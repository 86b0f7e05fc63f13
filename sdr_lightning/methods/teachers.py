"""What methods read of the unimodal teachers."""

from __future__ import annotations

from torch import Tensor

from sdr_lightning.methods.base import at_least_float32
from sdr_lightning.types import Modality, Pairs, TrainingPairs


def teacher_features(pairs: Pairs | TrainingPairs, modality: Modality, width: int | None = None) -> Tensor:
    """Return the features of a teacher.

    Args:
        pairs: B pairs, or all training pairs, whose features are those of the (B) images or captions.
        modality: whose teacher.
        width: expected width of the features; any when None.

    Returns:
        (B, D) in float32 at least, without gradient.

    Raises:
        ValueError: the features are absent, or of another width than expected.
    """
    features: Tensor | None = getattr(pairs, f"{modality}_teacher")
    if features is None:
        raise ValueError(
            f"the method needs {modality}-teacher features and the batch has none: "
            f"extract a bank and name it under data.init_args.{modality}_bank"
        )
    if width is not None and features.shape[1] != width:
        raise ValueError(
            f"the {modality} bank is {features.shape[1]} wide and the method expects {width}: "
            f"set method.init_args.{modality}_teacher_width to {features.shape[1]}"
        )
    return at_least_float32(features.detach())
