"""Load a trained model from a run, a checkpoint, an exported folder or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from safetensors.torch import load_file
from torch import Tensor

from sdr_lightning.configure.parser_errors import one_line_errors
from sdr_lightning.configure.references import path_parser
from sdr_lightning.data.tokenizer import Tokenizer
from sdr_lightning.data.wording import Wording
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.methods.base import Method
from sdr_lightning.paths import read_json, read_yaml
from sdr_lightning.results.fields import Fields
from sdr_lightning.retrieval.exported import CONFIGURATION, FORMAT, TOKENIZER, WEIGHTS, downloaded, is_exported
from sdr_lightning.retrieval.preprocessing import Preprocessing
from sdr_lightning.retrieval.retriever import Precision, Retriever
from sdr_lightning.training.checkpoints.student import restore_frozen_weights

_CHECKPOINTS = ("best.ckpt", "final.ckpt", "last.ckpt")
_PREPROCESSING = ("image_size", "cached_size", "strip_punctuation", "evaluation_words")


def load(source: str | Path, device: str | torch.device | None = None, precision: Precision = "32") -> Retriever:
    """Load a trained model for use.

    Only tensors are read from checkpoints, never pickled objects. The training data is not needed, and the pretrained weights of
    the towers only where a run left them out of its checkpoints because they are frozen.

    Args:
        source: the folder of a run of ``sdr fit`` (its best epoch), one of its checkpoints, a folder of ``sdr export``, or the
            name USER/NAME of such a folder on the hub.
        device: device to compute on; a GPU if there is one.
        precision: ``32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: nothing to load at ``source``, or files that do not fit.

    Example::

        model = load("runs/mine")
        model.encode_texts(["a dog runs on the beach"])  # (1, d)
    """
    path = Path(source)
    if is_exported(path):
        return _exported(path, device, precision)
    if path.is_dir() or path.suffix == ".ckpt":
        return _run(*run_files(path), device, precision)
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise ValueError(
            f"no model at {source}: expected a run folder of sdr fit, a .ckpt in one, a folder of sdr export, or USER/NAME on "
            "the hub"
        )
    return _exported(downloaded(str(source)), device, precision)


def run_files(path: Path) -> tuple[Path, Path]:
    """Find the configuration and the checkpoint of a run.

    Args:
        path: the run folder, for its best epoch, or one of its checkpoints.

    Raises:
        ValueError: no run, or no checkpoint in it.
    """
    folder = path.parent.parent if path.suffix == ".ckpt" else path
    if not (folder / "config.yaml").is_file():
        raise ValueError(
            f"{folder} is no run of sdr fit: there is no config.yaml (nor {CONFIGURATION}, as in a folder of sdr export)"
        )
    if path.suffix == ".ckpt":
        candidates = [path]
    else:
        kept = _kept(folder)
        candidates = [folder / "checkpoints" / name for name in (*([kept] if kept else []), *_CHECKPOINTS)]
    found = next((file for file in candidates if file.is_file()), None)
    if found is None:
        raise ValueError(f"no checkpoint at {candidates[0]}: has the run finished an epoch?")
    return folder / "config.yaml", found


def _kept(folder: Path) -> str | None:
    """File name of the checkpoint that a run selected."""
    file = folder / "results.json"
    training = read_json(file, "results of a run").get("training", {}) if file.is_file() else {}
    return Path(training["checkpoint"]).name if training.get("checkpoint") else None


def _run(configuration: Path, checkpoint: Path, device: str | torch.device | None, precision: Precision) -> Retriever:
    parts = run_parts(configuration)
    encoder, method, preprocessing = built(parts, str(configuration))
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        state: dict[str, Tensor] = content["state_dict"]
    except Exception as error:  # torch raises many types
        raise ValueError(f"{checkpoint} is no checkpoint of sdr fit ({type(error).__name__})") from error
    restore_frozen_weights(content, encoder)
    _load(state, encoder, method, str(checkpoint))
    return Retriever(encoder, preprocessing, method, device, precision, parts)


def _exported(folder: Path, device: str | torch.device | None, precision: Precision) -> Retriever:
    path = folder / CONFIGURATION
    configuration = Fields(read_json(path, "configuration of sdr export"), str(path))
    if configuration.text("format") != FORMAT:
        raise ValueError(f"{path} has the format {configuration.text('format')}, expected {FORMAT}")
    parts: dict[str, Any] = {name: configuration.values.get(name) for name in ("encoder", "method", "preprocessing")}
    parts["tokenizer"] = {
        "class_path": "sdr_lightning.data.PretrainedTokenizer",
        "init_args": {"weights": str(folder / TOKENIZER), "max_tokens": configuration.integer("max_tokens")},
    }
    encoder, method, preprocessing = built(parts, str(path))
    try:
        state = load_file(folder / WEIGHTS)
    except Exception as error:  # safetensors raises its own type and OSError
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({type(error).__name__}: {error})") from error
    _load(state, encoder, method, str(folder / WEIGHTS))
    return Retriever(encoder, preprocessing, method, device, precision, parts)


def run_parts(configuration: Path) -> dict[str, Any]:
    """Read the parts of a student's configuration that decide its embeddings.

    Returns:
        ``encoder``, ``method`` and ``tokenizer`` as class_path and init_args, and ``preprocessing``.

    Raises:
        ValueError: a configuration of another model than a student.
    """
    document = read_yaml(configuration, "configuration of a run")
    try:
        model, data = document["model"], document["data"]["init_args"]
        parts = {"encoder": model["init_args"]["encoder"], "method": model["init_args"]["method"]}
        parts |= {"tokenizer": data["tokenizer"], "preprocessing": {name: data.get(name) for name in _PREPROCESSING}}
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{configuration} is not the configuration of a student: it lacks {error}; teachers are read by sdr extract"
        ) from error
    return parts


def built(parts: Mapping[str, Any], where: str) -> tuple[DualEncoder, Method | None, Preprocessing]:
    """Build encoder, method and preprocessing. The state of random generators is unchanged.

    Args:
        parts: as :func:`run_parts` returns them; the method may be None.
        where: the file that they are from, for errors.

    Raises:
        ValueError: invalid classes or arguments, or missing weights of a pretrained tower.
    """
    parser = path_parser()
    types = {"encoder": DualEncoder, "method": Method, "tokenizer": Tokenizer}
    given = {name: parts[name] for name in types if parts.get(name) is not None}
    for name in given:
        parser.add_subclass_arguments(types[name], name, required=True)
    try:
        with one_line_errors(), isolate_rng():
            made = parser.instantiate(parser.parse_object(given))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    settings = parts["preprocessing"]
    wording = Wording(bool(settings.get("strip_punctuation")), settings.get("evaluation_words"))
    preprocessing = Preprocessing(made.tokenizer, settings["image_size"], settings.get("cached_size"), wording)
    return made.encoder, made.get("method"), preprocessing


def _load(state: Mapping[str, Tensor], encoder: DualEncoder, method: Method | None, where: str) -> None:
    """Load the weights of the encoder, and those of a method that scores by a similarity of its own."""
    parts: list[tuple[str, torch.nn.Module]] = [("encoder.", encoder)]
    if method is not None and not method.ranks_by_cosine:
        parts.append(("method.", method))
    for prefix, module in parts:
        own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if prefix == "method.":  # the per-pair state of training is left out
            own = {name: value for name, value in own.items() if name in module.state_dict()}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(f"{where} does not fit the configuration: {' '.join(str(error).split())[:300]}") from error
