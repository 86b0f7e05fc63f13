"""Contents of student checkpoints, and loading them for training, evaluation and later stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.types import Modality

if TYPE_CHECKING:
    from sdr_lightning.training.retrieval_module import RetrievalModule

_FROZEN, _TEACHERS, _PROTOCOL, _BEST = "frozen_towers", "teachers", "protocol", "best_rsum"


def save_student(checkpoint: dict[str, Any], module: RetrievalModule) -> None:
    """Add protocol, best rsum and teacher fingerprints; replace the weights of frozen towers by fingerprints."""
    train = module.data.splits.get("train")
    checkpoint[_PROTOCOL], checkpoint[_BEST] = module.protocol, module.best_rsum
    checkpoint[_TEACHERS] = {} if train is None else dict(train.teacher_sources)
    remove_frozen_weights(checkpoint, module.encoder)


def load_student(checkpoint: dict[str, Any], module: RetrievalModule) -> None:
    """Check that a checkpoint fits, and add the weights of frozen towers.

    To resume training, everything must fit. For evaluation, the method may differ: only parameters of the same name and shape
    are loaded.

    Raises:
        ValueError: the protocol, a frozen tower or a teacher differs, or parameters of the method's own similarity are
            missing.
    """
    trained = checkpoint.get(_PROTOCOL, "clean")
    if trained != module.protocol:
        raise ValueError(f"the checkpoint was trained under protocol {trained}: use --protocol {trained}")
    if module.trainer.state.fn == TrainerFn.FITTING:
        _check_teachers(checkpoint.get(_TEACHERS, {}), module)
        module.best_rsum = checkpoint.get(_BEST, 0.0)
    else:
        checkpoint["state_dict"] = _for_evaluation(checkpoint["state_dict"], module)
    if load_frozen_towers(checkpoint, module.encoder):
        module.cache_features()
    restore_frozen_weights(checkpoint, module.encoder)


def _for_evaluation(state: dict[str, Tensor], module: RetrievalModule) -> dict[str, Tensor]:
    own = {key: value for key, value in module.state_dict().items() if key.startswith("method.")}
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    missing = sorted(own.keys() - fitting.keys())
    if missing and not module.method.ranks_by_cosine:
        raise ValueError(
            f"the checkpoint lacks {missing[0]}, which {type(module.method).__name__} scores with: configure the method that it "
            "was trained with"
        )
    return {key: value for key, value in state.items() if not key.startswith("method.")} | own | fitting


def _check_teachers(saved: dict[Modality, str], module: RetrievalModule) -> None:
    for modality, source in module.data.split("train").teacher_sources.items():
        if saved.get(modality, source) != source:
            raise ValueError(
                f"the {modality} teacher is another than the one this training began with: continue with that one, or "
                "start again"
            )


def remove_frozen_weights(checkpoint: dict[str, Any], encoder: DualEncoder) -> None:
    """Replace the weights of frozen towers by their fingerprints, except those that an earlier stage trained."""
    towers = {name: tower for name, tower in encoder.frozen_towers().items() if name not in encoder.restored_towers}
    checkpoint[_FROZEN] = {name: tower.fingerprint() for name, tower in towers.items()}
    for name in towers:
        for key in [key for key in checkpoint["state_dict"] if key.startswith(f"encoder.{name}.")]:
            del checkpoint["state_dict"][key]


def restore_frozen_weights(checkpoint: dict[str, Any], encoder: DualEncoder, is_earlier_stage: bool = False) -> None:
    """Add the weights of the encoder's frozen towers to a checkpoint.

    Args:
        checkpoint: modified in place.
        encoder: the encoder.
        is_earlier_stage: a tower that was frozen in training may be trained now.

    Raises:
        ValueError: a frozen tower differs from the one that was frozen in training.
    """
    towers = encoder.towers if is_earlier_stage else encoder.frozen_towers()
    for name, fingerprint in checkpoint.get(_FROZEN, {}).items():
        if name not in towers or towers[name].fingerprint() != fingerprint:
            raise ValueError(
                f"the checkpoint was trained on another frozen {name}: configure the weights it was trained with"
            )
        prefix = f"encoder.{name}."
        checkpoint["state_dict"] |= {prefix + key: value for key, value in towers[name].state_dict().items()}


def start_from(path: Path, module: RetrievalModule) -> None:
    """Load the encoder of an earlier stage, and those parameters of its method that this method has too.

    Args:
        path: a checkpoint of ``sdr fit``.
        module: the student of this stage; modified in place.

    Raises:
        ValueError: there is no such checkpoint, or it does not fit the encoder or the method.
    """
    checkpoint = read_student(path)
    state: dict[str, Tensor] = checkpoint["state_dict"]
    restore_frozen_weights(checkpoint, module.encoder, is_earlier_stage=True)
    own, learned = module.state_dict(), {f"method.{name}" for name, _ in module.method.named_parameters()}
    theirs = {key: value for key, value in state.items() if key.startswith("encoder.") or key in learned}
    try:
        module.load_state_dict({key: value for key, value in own.items() if not key.startswith("encoder.")} | theirs)
    except RuntimeError as error:
        what = "is of another encoder" if "encoder." in str(error) else "does not fit the method"
        raise ValueError(f"{path} {what}: {' '.join(str(error).split())[:300]}") from error
    module.encoder.restored_towers = module.encoder.frozen_towers().keys() - checkpoint.get(_FROZEN, {}).keys()


def load_frozen_towers(checkpoint: dict[str, Any], encoder: DualEncoder) -> bool:
    """Load the frozen towers whose weights a checkpoint holds because an earlier stage trained them.

    Everything else is loaded later, by :func:`start_from` or by Lightning; but features of these towers may be computed first.

    Args:
        checkpoint: of the earlier stage or of this one.
        encoder: modified in place.

    Returns:
        Whether weights have changed.

    Raises:
        ValueError: the checkpoint is of another encoder.
    """
    changed = False
    for name, tower in encoder.frozen_towers().items():
        prefix = f"encoder.{name}."
        held = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
        if not held:
            continue
        before = tower.fingerprint()
        try:
            tower.load_state_dict({key.removeprefix(prefix): value for key, value in held.items()})
        except RuntimeError as error:
            raise ValueError(f"the checkpoint is of another encoder: {' '.join(str(error).split())[:300]}") from error
        changed |= tower.fingerprint() != before
    return changed


def read_student(path: Path) -> dict[str, Any]:
    """Read the checkpoint of an earlier stage.

    Raises:
        ValueError: there is no such checkpoint, or ``sdr fit`` did not write it.
    """
    if not path.is_file():
        raise ValueError(f"no checkpoint to start from at {path}: run the earlier stage first")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        checkpoint["state_dict"].items()
    except Exception as error:  # torch raises many types
        raise ValueError(f"{path} is no checkpoint of sdr fit ({type(error).__name__})") from error
    return checkpoint
