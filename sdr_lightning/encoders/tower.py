"""Base class of image and text towers."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sdr_lightning.types import CachedFeatures, Encoded, ImageInputs, TextInputs


class Tower(nn.Module):
    """An encoder of one modality. Subclasses implement :meth:`encode_inputs` and :meth:`settings`.

    Args:
        frozen: weights receive no gradient and the tower stays in evaluation mode. Its features never change, so they may be
            computed once and cached.

    Attributes:
        modality: modality of the inputs.
        width: D, the width of the pooled features.
        tokens_width: W, the width of the tokens (words, patches or regions).
        pretrained: whether the tower starts from pretrained weights.
        frozen: see above.
    """

    modality: Literal["image", "text"]
    width: int
    tokens_width: int
    pretrained: bool = False

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen

    def apply_frozen(self) -> None:
        """Apply ``frozen``; subclasses call this at the end of ``__init__``."""
        self.requires_grad_(not self.frozen)
        self.train()  # transformers returns pretrained models in evaluation mode

    def freeze(self) -> None:
        """Freeze the tower."""
        self.frozen = True
        self.apply_frozen()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def encode_inputs(self, inputs: Any) -> Encoded:
        """Encode a batch of inputs; implemented by subclasses."""
        raise TypeError(f"{type(self).__name__} does not implement encode_inputs, got {type(inputs).__name__}")

    def encode(self, inputs: ImageInputs | TextInputs) -> Encoded:
        """Encode a batch.

        Args:
            inputs: a batch of the tower's modality, or cached features of this tower.

        Returns:
            (B, D) pooled features and (B, L, W) tokens; no tokens for cached features. No gradient flows to a frozen tower.

        Raises:
            ValueError: cached features of another width, or a (B, D) tensor that is not wrapped in ``CachedFeatures``.
        """
        if isinstance(inputs, CachedFeatures):
            if inputs.values.shape[1] != self.width:
                raise ValueError(f"cached features are {inputs.values.shape[1]} wide, this tower's are {self.width}")
            return Encoded(inputs.values)
        if isinstance(inputs, Tensor) and inputs.ndim == 2:
            raise ValueError(
                f"a (B, D) tensor is no input of a tower, got {tuple(inputs.shape)}: wrap features in CachedFeatures"
            )
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode_inputs(inputs)

    def forward(self, inputs: ImageInputs | TextInputs) -> Tensor:
        """Return (B, D) pooled features, see :meth:`encode`."""
        return self.encode(inputs).embedding

    def checkpoint_activations(self) -> None:
        """Recompute the activations within each layer in the backward pass.

        Raises:
            ValueError: the network does not support it.
        """
        raise ValueError(f"{type(self).__name__} has no activation checkpointing: leave activation_checkpointing out")

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile :meth:`encode_inputs` in place by ``torch.compile``; parameters keep their names."""
        self.encode_inputs = torch.compile(self.encode_inputs, **options)  # type: ignore[method-assign]

    def settings(self) -> str:
        """Return everything besides the weights that determines the features; implemented by subclasses."""
        raise TypeError(f"{type(self).__name__} does not implement settings, which its fingerprint needs")

    def fingerprint(self) -> str:
        """Return the SHA-256 of settings and weights. Towers with equal fingerprints compute equal features."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.settings()}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
