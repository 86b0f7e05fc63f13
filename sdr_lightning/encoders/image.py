"""Image towers: timm models, and vision encoders of transformers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.transformer import Pooling, TransformersEncoder
from sdr_lightning.encoders.weights import MatchBy, load_state, near_names
from sdr_lightning.hub import check_available
from sdr_lightning.paths import PathOrName, expand, package_path
from sdr_lightning.types import Encoded


class TimmImageTower(Tower):
    """A timm model without its classifier. Normalises pixels itself.

    Args:
        name: timm architecture, such as ``swin_base_patch4_window12_384`` or ``mobilenetv2_100``.
        weights: None for random weights; ``hub`` to download timm's weights; else the path of a state dict
            (``.safetensors``, or a torch file, loaded with ``weights_only``), or ``package:NAME/FILE`` in an installed
            package. ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        model_args: further arguments of ``timm.create_model``, such as ``img_size``.
        mean: per-channel mean of pixels in [0, 1]; timm's default for the architecture if None.
        std: per-channel standard deviation; timm's default if None.
        channels_last: use the channels-last memory format, which is faster for convolutions.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.
        match_weights_by: ``name`` of each tensor, or ``order`` for a state dict with other names whose tensors are in the
            order of the model's and have the same shapes.
        input_size: S, resize images to S x S pixels first, by bicubic interpolation with antialiasing; None to take them as the
            data module returns them. Teachers and students may thus see the same images in different sizes.

    Raises:
        ValueError: an unknown architecture, or weights that do not fit or are unavailable.
    """

    modality = "image"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        weights: PathOrName | None = None,
        model_args: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        channels_last: bool = True,
        frozen: bool = False,
        match_weights_by: MatchBy = "name",
        input_size: int | None = None,
    ) -> None:
        import timm

        super().__init__(frozen)
        if name.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no model {name!r}{near_names(name, timm.list_models())}")
        weights = None if weights is None else package_path(expand(weights))
        if match_weights_by == "order" and weights in (None, "hub"):
            raise ValueError(f"match_weights_by order needs the path of a state dict as weights, got {weights}")
        if input_size is not None and input_size < 1:
            raise ValueError(f"input_size must be at least 1 pixel, got {input_size}")
        arguments = {"num_classes": 0, **(model_args or {})}
        if arguments["num_classes"] != 0 or arguments.get("global_pool") == "":
            raise ValueError(
                f"a tower returns one pooled feature vector per image: remove num_classes and global_pool from {model_args}"
            )
        self.architecture = f"{name.split('.')[0]} {sorted(arguments.items())}"
        try:
            if weights == "hub":
                check_available(f"timm/{name}")
            self.model = timm.create_model(name, pretrained=weights == "hub", **arguments)
        except (OSError, RuntimeError) as error:
            if "pretrained tag" in str(error):
                raise ValueError(f"timm has no weights {name!r}: {error}") from error
            if weights != "hub":
                raise
            raise ValueError(
                f"timm's weights for {name!r} cannot be downloaded ({type(error).__name__}): "
                "set image_tower.init_args.weights to the path of a state dict"
            ) from error
        if weights not in (None, "hub"):
            load_state(self.model, Path(weights), ("classifier.", "head.", "fc."), _timm_layout, match_weights_by)
        self.pretrained = weights is not None
        self.tokens_width = int(self.model.num_features)
        self.width = int(getattr(self.model, "head_hidden_size", self.tokens_width))
        self.input_size = input_size
        config = self.model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(mean or config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or config["std"]).view(1, 3, 1, 1), persistent=False)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self._layout)
        self.apply_frozen()

    def checkpoint_activations(self) -> None:
        """Enable timm's activation checkpointing.

        Raises:
            ValueError: the architecture does not support it.
        """
        try:
            self.model.set_grad_checkpointing(True)
        except (AssertionError, AttributeError, NotImplementedError) as error:
            raise ValueError(f"{self.architecture.split()[0]} of timm has no activation checkpointing") from error

    def settings(self) -> str:
        """Return the architecture with its arguments, the normalisation, and the input size if it is set."""
        size = "" if self.input_size is None else f" input_size={self.input_size}"
        return f"{self.architecture} mean={self.mean.flatten().tolist()} std={self.std.flatten().tolist()}{size}"

    def encode_inputs(self, inputs: Tensor) -> Encoded:
        """Encode images.

        Args:
            inputs: (B, 3, H, W), uint8 in [0, 255] or floats in [0, 1].

        Returns:
            (B, D) pooled features, and (B, 1 + N, D) tokens: the pooled features, then the N grid features row by row, as in
            the public code. The pooled features are left out where their width differs from that of the grid. Multi-scale
            networks have no tokens.
        """
        pixels = _normalised(_resized(inputs, self.input_size), self.mean, self.std).contiguous(
            memory_format=self._layout
        )
        features: Any = self.model.forward_features(pixels)
        pooled: Tensor = self.model.forward_head(features, pre_logits=True)
        if not isinstance(features, Tensor):  # multi-scale networks
            return Encoded(pooled)
        grid = _grid(features, self.model)
        if self.width == self.tokens_width:
            grid = torch.cat([pooled.unsqueeze(1), grid], dim=1)
        return Encoded(pooled, grid)


class TransformersImageTower(Tower):
    """A vision encoder of transformers, standalone or part of a CLIP-style model.

    Args:
        weights: a folder, a hub name, or ``package:NAME/FOLDER`` in an installed package; None for random weights.
            ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        config: with random weights, ``model_type`` and the arguments of its configuration.
        pooling: the model's ``own`` pooler, the first token (``cls``), or the ``mean`` over tokens.
        projected: apply the CLIP-style model's projection to the pooled features.
        mean: per-channel mean of pixels in [0, 1]; that of the model's ``preprocessor_config.json`` if None.
        std: per-channel standard deviation; that of ``preprocessor_config.json`` if None.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: neither weights nor config, unavailable weights, or an unknown normalisation.
    """

    modality = "image"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        weights: PathOrName | None = None,
        config: dict[str, Any] | None = None,
        pooling: Pooling = "own",
        projected: bool = False,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(frozen)
        self.encoder = TransformersEncoder("image", weights, config, pooling, projected)
        self.width, self.tokens_width = self.encoder.width, self.encoder.tokens_width
        self.pretrained = weights is not None
        if mean is None or std is None:
            own = self.encoder.normalisation()
            mean, std = mean or own.mean, std or own.std
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.apply_frozen()

    def checkpoint_activations(self) -> None:
        """Enable the activation checkpointing of transformers."""
        self.encoder.checkpoint_activations()

    def settings(self) -> str:
        """Return pooling, configuration (without its provenance) and normalisation."""
        return f"{self.encoder.settings()} mean={self.mean.flatten().tolist()} std={self.std.flatten().tolist()}"

    def encode_inputs(self, inputs: Tensor) -> Encoded:
        """Encode images.

        Args:
            inputs: (B, 3, H, W), uint8 in [0, 255] or floats in [0, 1], in the input size of the model.

        Returns:
            (B, D) pooled features and (B, N, W) tokens of the last layer.
        """
        return self.encoder.encode(None, pixel_values=_normalised(inputs, self.mean, self.std))


def _resized(inputs: Tensor, size: int | None) -> Tensor:
    if size is None or inputs.shape[-2:] == (size, size):
        return inputs
    pixels = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
    return F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)


def _normalised(inputs: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    pixels = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
    return (pixels - mean) / std


def _grid(features: Tensor, model: torch.nn.Module) -> Tensor:
    """Convert timm's ``forward_features``, (B, prefix + N, W), (B, H, H', W) or (B, W, H, H'), to a (B, N, W) grid."""
    if features.ndim == 3:
        has_class_token = getattr(model, "cls_token", None) is not None
        return features[:, getattr(model, "num_prefix_tokens", int(has_class_token)) :]
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _timm_layout(state: dict[str, Tensor], model: torch.nn.Module) -> dict[str, Tensor]:
    """Convert the state dict of an original release (such as Swin's) to timm's layout, by timm's own filter."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or state.keys() >= model.state_dict().keys():
        return state
    try:
        converted: dict[str, Tensor] = convert(state, model)
    except (AttributeError, KeyError, IndexError, RuntimeError):  # another architecture: loading reports its keys
        return state
    return converted
