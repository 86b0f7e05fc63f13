"""A trained head on a frozen tower: teachers that learn from one modality at the cost of a linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import CachedFeatures, Encoded, ImageInputs, TextInputs


class HeadTower(Tower):
    """A frozen tower with a trained linear layer over its pooled features.

    The layer starts as the identity, so the features are at first those of the frozen tower. It has no tokens. While the
    layer is trained, features of the frozen tower take the place of the inputs; once it is frozen as well, features of the
    whole do.

    Args:
        backbone: the tower; it is frozen.
        frozen: freeze the layer too, see :class:`~sdr_lightning.encoders.tower.Tower`.
    """

    def __init__(self, backbone: Tower, frozen: bool = False) -> None:
        super().__init__(frozen)
        self.modality, self.width, self.tokens_width = backbone.modality, backbone.width, backbone.width
        for option in ("vocabulary_size", "max_positions"):  # of a text tower, which the tokenizer must fit
            if hasattr(backbone, option):
                setattr(self, option, getattr(backbone, option))
        self.backbone = backbone
        self.head = nn.Linear(self.width, self.width)
        nn.init.eye_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.apply_frozen()

    def apply_frozen(self) -> None:
        """Apply ``frozen`` to the layer, and freeze the backbone."""
        super().apply_frozen()
        self.backbone.freeze()

    def settings(self) -> str:
        """Return class and settings of the backbone."""
        return f"{type(self.backbone).__name__} {self.backbone.settings()}"

    def encode(self, inputs: ImageInputs | TextInputs) -> Encoded:
        """Encode a batch, or cached features: of the backbone while the layer is trained, else of the whole tower."""
        if isinstance(inputs, CachedFeatures) and not self.frozen:
            return self.encode_inputs(inputs)
        return super().encode(inputs)

    def encode_inputs(self, inputs: ImageInputs | TextInputs) -> Encoded:
        """Encode a batch of the backbone's inputs, or of its features.

        Returns:
            (B, D) features of the layer; no tokens.
        """
        return Encoded(self.head(self.backbone(inputs)))

    @torch.no_grad()
    def head_features(self, features: Tensor) -> Tensor:
        """Return (N, D) features of the layer for (N, D) features of the backbone, on their device, without gradient."""
        weights = self.head.weight
        done: Tensor = self.head(features.to(weights.device, weights.dtype))
        return done.float().to(features.device)
