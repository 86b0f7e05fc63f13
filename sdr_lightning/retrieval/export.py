"""Export a trained model as a folder that stands alone: weights, configuration and tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save_file
from torch import nn

from sdr_lightning import __version__
from sdr_lightning.configure.arguments import imported_class
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.image import TimmImageTower, TransformersImageTower
from sdr_lightning.encoders.text import TransformersTextTower
from sdr_lightning.encoders.transformer import model_config
from sdr_lightning.paths import write_json, write_text
from sdr_lightning.retrieval.exported import CONFIGURATION, FORMAT, TOKENIZER, WEIGHTS
from sdr_lightning.retrieval.retriever import Retriever

_PRETRAINED = (TransformersTextTower, TransformersImageTower, FusionEncoder)
_PROVENANCE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_TRAINING_ONLY = {"compile": False, "activation_checkpointing": False}


def export(model: Retriever, output: Path, card: str = "", onnx: Callable[[Path], None] | None = None) -> None:
    """Write a model as a folder that :func:`~sdr_lightning.load` reads without anything else.

    The folder appears whole or not at all. All weights are in it, those of frozen towers too.

    Args:
        model: the model, from :func:`~sdr_lightning.load`.
        output: a new folder.
        card: model card, ``README.md``; none if empty.
        onnx: writes further files into the folder that it is given, ``onnx`` in the output.

    Raises:
        ValueError: ``output`` exists, or a model that was not loaded.
    """
    if not model.parts:
        raise ValueError("this model was built by hand: export needs the configuration that load reads")
    if output.exists():
        raise ValueError(f"{output} exists already: choose a new folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        whole = Path(folder) / output.name
        whole.mkdir()
        state = {f"encoder.{name}": value for name, value in model.encoder.state_dict().items()}
        if model.method is not None:  # it scores by a similarity of its own, with these parameters
            state |= {f"method.{name}": value for name, value in model.method.named_parameters()}
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, whole / WEIGHTS)
        model.preprocessing.tokenizer.tokenizer.save_pretrained(whole / TOKENIZER)
        write_json(whole / CONFIGURATION, configuration(model))
        if card:
            write_text(whole / "README.md", card)
        if onnx is not None:
            (whole / "onnx").mkdir()
            onnx(whole / "onnx")
        shutil.move(whole, output)


def configuration(model: Retriever) -> dict[str, Any]:
    """Return the configuration of an exported model, which needs no pretrained weights."""
    preprocessing = model.preprocessing
    return {
        "format": FORMAT,
        "version": __version__,
        "encoder": standalone(model.parts["encoder"], model.encoder),
        "method": None if model.method is None else model.parts["method"],
        "preprocessing": model.parts["preprocessing"],
        "max_tokens": preprocessing.tokenizer.max_tokens,
        "fingerprint": model.fingerprint(),
    }


def standalone(part: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """Rewrite the configuration of a part so that building it reads no weights, only architectures.

    Args:
        part: ``class_path`` and ``init_args``.
        module: the part as built; sub-modules have the names of the arguments that they are built from.
    """
    arguments = {**part.get("init_args", {})}
    arguments |= {name: value for name, value in _TRAINING_ONLY.items() if name in arguments}
    for name, value in arguments.items():
        inner = getattr(module, name, None)
        if isinstance(value, Mapping) and "class_path" in value and isinstance(inner, nn.Module):
            arguments[name] = standalone(value, inner)
    made = imported_class(part["class_path"])
    if issubclass(made, _PRETRAINED) and arguments.get("weights") is not None:
        _, settings = model_config("tower", arguments["weights"], None)
        known = json.loads(settings.to_json_string(use_diff=False))
        arguments |= {"weights": None, "config": {k: v for k, v in known.items() if k not in _PROVENANCE}}
    if isinstance(module, TimmImageTower):
        arguments |= {"weights": None, "match_weights_by": "name"}
    if isinstance(module, TimmImageTower | TransformersImageTower):
        arguments |= {"mean": module.mean.flatten().tolist(), "std": module.std.flatten().tolist()}
    return {"class_path": part["class_path"], "init_args": arguments}
