"""Image towers: any model of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.weights import load_state, near_names
from sdr_lightning.paths import expand


class TimmImageTower(Tower):
    """A timm model without its classifier; pixels are normalised inside, so data need not know of it.

    Args:
        name: a timm architecture, such as ``swin_base_patch4_window12_384`` or ``mobilenetv2_100``.
        weights: None for random weights; ``hub`` for timm's own, downloaded; else a state dict on disk
            (``.safetensors``, or a torch file, read without unpickling objects). ``$NAME`` and ``${NAME:-default}``
            are filled in from the environment.
        model_args: further arguments of ``timm.create_model``, such as ``img_size``.
        mean: per-channel mean of the inputs in [0, 1]; timm's own for this architecture when None.
        std: per-channel standard deviation; timm's own when None.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: an unknown architecture, weights that do not fit or cannot be had.
    """

    modality = "image"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        model_args: dict[str, Any] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        frozen: bool = False,
    ) -> None:
        import timm

        super().__init__(frozen)
        if name.split(".")[0] not in timm.list_models():
            raise ValueError(f"timm has no model {name!r}{near_names(name, timm.list_models())}")
        weights = None if weights is None else expand(weights)
        arguments = {"num_classes": 0, **(model_args or {})}
        if arguments["num_classes"] != 0 or arguments.get("global_pool") == "":
            raise ValueError(
                f"a tower gives one feature vector an image: drop num_classes and global_pool from {model_args}"
            )
        self.architecture = f"{name.split('.')[0]} {sorted(arguments.items())}"
        try:
            self.model = timm.create_model(name, pretrained=weights == "hub", **arguments)
        except (OSError, RuntimeError) as error:
            if "pretrained tag" in str(error):
                raise ValueError(f"timm has no weights {name!r}: {error}") from error
            if weights != "hub":
                raise
            raise ValueError(
                f"timm's weights for {name!r} cannot be downloaded ({type(error).__name__}): "
                "pass image_tower.init_args.weights the path of a state dict"
            ) from error
        if weights not in (None, "hub"):
            load_state(self.model, Path(weights), ignore=("classifier.", "head.", "fc."))
        self.width = int(self.model.num_features)
        if hasattr(self.model, "head_hidden_size"):
            self.width = int(self.model.head_hidden_size)
        config = self.model.pretrained_cfg
        self.register_buffer("mean", torch.tensor(mean or config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std or config["std"]).view(1, 3, 1, 1), persistent=False)
        self.model.to(memory_format=torch.channels_last)  # what convolutions are fastest with, on CPUs and on GPUs
        self.freeze_if_asked()

    def settings(self) -> str:
        """The architecture with its arguments, and the normalisation."""
        return f"{self.architecture} mean={self.mean.flatten().tolist()} std={self.std.flatten().tolist()}"

    def features(self, inputs: Tensor) -> Tensor:
        """Encode images.

        Args:
            inputs: (B, 3, H, W), uint8 in [0, 255] or floats in [0, 1].

        Returns:
            (B, D) pooled features.
        """
        pixels = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs
        pixels = ((pixels - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        pooled: Tensor = self.model(pixels)
        return pooled
