"""Wrapper of transformers encoders for both modalities."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from sdr_lightning.encoders.weights import unreachable
from sdr_lightning.hub import check_available
from sdr_lightning.paths import expand, package_path, read_json
from sdr_lightning.types import Encoded

Pooling = Literal["mean", "cls", "own"]
_PROVENANCE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_POOLERS = {"clip_vision_model": ("post_layernorm",)}
_USUAL_POOLERS = ("pooler", "head")
_PARTS = {"image": ("vision_model", "visual_projection"), "text": ("text_model", "text_projection")}


class Normalisation(NamedTuple):
    """Per-channel mean and standard deviation of pixels in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class TransformersEncoder(nn.Module):
    """A transformers model, or one encoder of a CLIP-style model, with pooling over its last layer.

    Args:
        modality: the encoder to use of a CLIP-style model.
        weights: a folder, a hub name, or ``package:NAME/FOLDER``; None for random weights.
        config: with random weights, ``model_type`` and the arguments of its configuration.
        pooling: ``mean`` over the tokens, the first token (``cls``), or the model's ``own`` pooler.
        projected: apply the CLIP-style model's projection to the pooled features.
        layers: number of first layers to keep; None for all.

    Attributes:
        width: width of the pooled features.
        tokens_width: width of the tokens.

    Raises:
        ValueError: neither or both of weights and config, unavailable weights, too many layers, or a projection or pooler that
            the model does not have.
    """

    def __init__(
        self,
        modality: Literal["image", "text"],
        weights: str | None,
        config: dict[str, Any] | None,
        pooling: Pooling,
        projected: bool = False,
        layers: int | None = None,
    ) -> None:
        super().__init__()
        if pooling not in ("mean", "cls", "own"):
            raise ValueError(f"pooling must be mean, cls or own, got {pooling!r}")
        what = f"{modality} tower"
        self.reference, settings = model_config(what, weights, config)
        part, projection = _PARTS[modality]
        side = getattr(settings, part.replace("_model", "_config"), settings)
        for need in ("hidden_size", *(("vocab_size",) if modality == "text" else ())):
            if not hasattr(side, need):
                raise ValueError(
                    f"a {side.model_type} is no {modality} encoder of tokens: its configuration has no {need}"
                )
        if layers is not None:
            have = side.num_hidden_layers
            if not 1 <= layers <= have:
                raise ValueError(f"layers must be from 1 to the model's {have}, got {layers}")
            side.num_hidden_layers = layers
        model = random_model(settings) if self.reference is None else pretrained_model(what, self.reference, settings)
        self.model: Any = getattr(model.network, part, model.network)
        poolers = _POOLERS.get(side.model_type, _USUAL_POOLERS)
        missing = [name for name in model.missing if pooling == "own" or not any(pooler in name for pooler in poolers)]
        missing = [name for name in missing if part in name or not any(other in name for other, _ in _PARTS.values())]
        if missing:
            raise ValueError(f"{self.reference} lacks {len(missing)} weights of the {what}, first {missing[0]}")
        if pooling != "own":  # an unused pooler would be an unused parameter under DDP
            for name in poolers:
                if isinstance(getattr(self.model, name, None), nn.Module):
                    setattr(self.model, name, nn.Identity())
        self.pooling, self.projected = pooling, projected
        self.width = self.tokens_width = int(side.hidden_size)
        if projected:
            if not hasattr(model.network, projection):
                raise ValueError(f"{side.model_type} has no projection of its own: set projected to false")
            self.projection: nn.Module = getattr(model.network, projection)
            self.width = int(self.projection.out_features)

    def checkpoint_activations(self) -> None:
        """Recompute the activations within each layer in the backward pass.

        Raises:
            ValueError: the model does not support it.
        """
        if hasattr(self.model, "activation_checkpointing_enable"):
            self.model.activation_checkpointing_enable()
        else:  # transformers 5.17 and older
            self.model.gradient_checkpointing_enable({"use_reentrant": False})

    def settings(self) -> str:
        """Return pooling and configuration (without its provenance)."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _PROVENANCE}
        how = f"{self.pooling} projected" if self.projected else self.pooling
        return f"{how} {json.dumps(config, sort_keys=True, default=str)}"

    def encode(self, mask: Tensor | None, **inputs: Tensor) -> Encoded:
        """Run the model.

        Args:
            mask: (B, L) int64, 1 on tokens, 0 on padding; None without padding.
            inputs: keyword arguments of the model.

        Returns:
            (B, D) pooled features, (B, L, W) tokens and the mask.
        """
        output = self.model(**inputs)
        tokens: Tensor = output.last_hidden_state  # (B, L, W)
        pooled = self._pool(tokens, mask, output)
        return Encoded(self.projection(pooled) if self.projected else pooled, tokens, mask)

    def normalisation(self) -> Normalisation:
        """Read the pixel normalisation of a vision model from its image processor configuration.

        Raises:
            ValueError: there is none.
        """
        from transformers.utils import cached_file

        known: dict[str, Any] = {}
        for name in () if self.reference is None else ("preprocessor_config.json", "processor_config.json"):
            try:
                content = read_json(Path(cached_file(self.reference, name)), "configuration of an image processor")
            except OSError:  # the weights lack this file
                continue
            known |= content.get("image_processor", content)
        if not {"image_mean", "image_std"} <= known.keys():
            raise ValueError("the pixel normalisation of the weights is unknown: set mean and std of the image_tower")
        return Normalisation(tuple(known["image_mean"]), tuple(known["image_std"]))

    def _pool(self, tokens: Tensor, mask: Tensor | None, output: Any) -> Tensor:
        if self.pooling == "own":
            if getattr(output, "pooler_output", None) is None:
                raise ValueError(f"{type(self.model).__name__} has no pooler of its own: set pooling to mean or cls")
            pooled: Tensor = output.pooler_output
            return pooled
        if self.pooling == "cls":
            return tokens[:, 0]
        if mask is None:
            return tokens.mean(dim=1)
        weight = mask.unsqueeze(-1).to(tokens.dtype)  # (B, L, 1)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class Model(NamedTuple):
    """A network, and the names of weights that were missing in the files it was loaded from."""

    network: Any
    missing: list[str]


def random_model(config: Any) -> Model:
    """Build a model with random weights.

    Raises:
        ValueError: ``AutoModel`` does not support the configuration.
    """
    from transformers import AutoModel

    try:
        return Model(AutoModel.from_config(config), [])
    except ValueError as error:
        raise ValueError(f"AutoModel of transformers does not support model_type {config.model_type}") from error


def pretrained_model(what: str, reference: str, config: Any) -> Model:
    """Load a model with its weights, in float32.

    Raises:
        ValueError: the weights are unavailable.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()  # no warnings about poolers and layers that are left out on purpose
    logging.disable_progress_bar()
    try:
        network, loaded = AutoModel.from_pretrained(
            reference, config=config, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise unreachable(what, reference, argument_of(what), error) from error
    return Model(network, sorted(loaded["missing_keys"]))


def model_config(what: str, weights: str | None, config: dict[str, Any] | None) -> tuple[str | None, Any]:
    """Resolve weights or config to a model configuration.

    Args:
        what: name of the part, for errors.
        weights: a folder, a hub name, ``package:NAME/FOLDER``, or None.
        config: ``model_type`` and arguments, or None.

    Returns:
        The argument of ``from_pretrained`` (None for random weights), and the configuration.

    Raises:
        ValueError: neither or both of weights and config, unavailable weights, or an invalid config.
    """
    from transformers import AutoConfig

    if (weights is None) == (config is None):
        raise ValueError(f"the {what} needs either weights or config (with its model_type), and not both")
    if weights is not None:
        reference = package_path(expand(weights))
        try:
            check_available(reference)
            return reference, AutoConfig.from_pretrained(reference)
        except (OSError, ValueError) as error:
            raise unreachable(what, reference, argument_of(what), error) from error
    assert config is not None
    try:
        return None, AutoConfig.for_model(**deepcopy(config))  # transformers 4 takes nested entries out
    except (TypeError, ValueError) as error:
        raise ValueError(f"config needs a model_type that transformers knows, got {config}") from error


def argument_of(what: str) -> str:
    """Return the option for the weights of a part."""
    return f"{what.removesuffix(' encoder').replace(' ', '_')}.init_args.weights"
