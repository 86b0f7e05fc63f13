"""What every tower has: a width, a fingerprint, and a switch that freezes it."""

from __future__ import annotations

import hashlib
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from sdr_lightning.types import CachedFeatures, Encoded, ImageInputs, TextInputs


class Tower(nn.Module):
    """An encoder of one modality: a batch of inputs in, one feature vector each out.

    Args:
        frozen: the weights receive no gradient and the tower stays in evaluation mode. What a frozen tower says of an
            item never changes, so the data module may compute it once and serve features instead of inputs.

    Attributes:
        modality: what it encodes.
        width: D, the width of the features.
        tokens_width: W, the width of the features of its tokens: words, patches, regions.
        pretrained: whether it starts from weights that were trained before.
        frozen: see above.
    """

    modality: Literal["image", "text"]
    width: int
    tokens_width: int
    pretrained: bool = False

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.frozen = frozen

    def freeze_if_asked(self) -> None:
        """Stop gradients where the tower is frozen; subclasses call this once their weights are in place."""
        self.requires_grad_(not self.frozen)
        self.train()  # transformers hands pretrained models out in evaluation mode

    def freeze(self) -> None:
        """Stop gradients from now on, and stay in evaluation mode."""
        self.frozen = True
        self.freeze_if_asked()

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen tower stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def encode_inputs(self, inputs: Any) -> Encoded:
        """Encode a batch of inputs; subclasses implement it."""
        raise TypeError(f"{type(self).__name__} does not say how it encodes {type(inputs).__name__}")

    def encode(self, inputs: ImageInputs | TextInputs) -> Encoded:
        """Features of a batch and of its tokens.

        Args:
            inputs: a batch of the tower's modality, or features that this tower computed before.

        Returns:
            (B, D) pooled features and (B, L, W) tokens; cached features have no tokens. No gradient flows to a frozen
            tower.

        Raises:
            ValueError: cached features of another width.
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
        """Pooled features of a batch, (B, D), see :meth:`encode`."""
        return self.encode(inputs).embedding

    def checkpoint_activations(self) -> None:
        """Keep activations between layers alone, and compute those within a layer again in the backward pass.

        Raises:
            ValueError: the network cannot.
        """
        raise ValueError(f"{type(self).__name__} has no activation checkpointing: leave activation_checkpointing out")

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile :meth:`encode_inputs` in place by ``torch.compile``; parameters keep their names."""
        self.encode_inputs = torch.compile(self.encode_inputs, **options)  # type: ignore[method-assign]

    def settings(self) -> str:
        """Everything besides the weights that decides the features; subclasses implement it."""
        raise TypeError(f"{type(self).__name__} does not say what its features depend on")

    def fingerprint(self) -> str:
        """SHA-256 of the settings and of every weight: equal fingerprints give equal features."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.settings()}".encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
