"""Generalised pooling over tokens: the pooling operator of VSE-infinity.

References:
    [0] Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding" (VSE-infinity), CVPR 2021;
        woodfrog/vse_infty: lib/modules/aggr/gpo.py, lib/encoders.py.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded, ImageInputs, TextInputs


class GeneralisedPooling(nn.Module):
    """Pool tokens by a learned weighted mean of their sorted values ([0]).

    ``out_d = sum_k w_k x_(k)d``, where ``x_(1)d >= x_(2)d >= ...`` are the values of dimension d over the tokens of an item.
    The weights of an item with L tokens are ``w = softmax(f(1..L) / tau)``, where f reads the position codes (sines and cosines)
    of 1..L by a bidirectional GRU, averages its directions and maps them to a number. They depend on L alone. Mean pooling
    (equal w) and max pooling (``w_1 = 1``) are special cases.

    Args:
        position_width: width of the position code; even.
        hidden_width: hidden width of each direction of the GRU.
        temperature: tau of the softmax, positive.

    Raises:
        ValueError: a width below 1, an odd position code, or a temperature that is not positive.
    """

    def __init__(self, position_width: int = 32, hidden_width: int = 32, temperature: float = 0.1) -> None:
        super().__init__()
        if position_width < 2 or position_width % 2 or hidden_width < 1 or not temperature > 0:
            raise ValueError(
                "pooling needs an even position_width, a hidden_width of at least 1 and a positive temperature, got "
                f"{position_width}, {hidden_width} and {temperature}"
            )
        self.position_width, self.temperature = position_width, temperature
        self.gru = nn.GRU(position_width, hidden_width, batch_first=True, bidirectional=True)
        self.score = nn.Linear(hidden_width, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens.

        Args:
            tokens: (B, L, W).
            mask: (B, L), nonzero on tokens and 0 on padding, anywhere; None where every token counts.

        Returns:
            (B, W); gradient flows to the tokens and the weights. An item without tokens is pooled to zero.
        """
        size, length, _ = tokens.shape
        if mask is None:
            mask = torch.ones(1, length, dtype=torch.bool, device=tokens.device).expand(size, length)
        mask = mask.bool()
        lengths, which = torch.unique(mask.sum(dim=1), return_inverse=True)
        weights = self.weights(lengths, length)[which]  # (B, L)
        lowest = torch.finfo(tokens.dtype).min
        ordered = tokens.masked_fill(~mask[:, :, None], lowest).sort(dim=1, descending=True).values
        is_token = torch.arange(length, device=tokens.device) < lengths[which][:, None]  # (B, L), after sorting
        ordered = ordered.masked_fill(~is_token[:, :, None], 0)
        return (ordered * weights[:, :, None].to(ordered.dtype)).sum(dim=1)

    def weights(self, lengths: Tensor, length: int) -> Tensor:
        """Compute the weights of each length.

        Args:
            lengths: (U,) int64, numbers of tokens; 0 counts as 1.
            length: L, at least the greatest.

        Returns:
            (U, L), float32 at least; rows sum to 1, and are 0 beyond the length.
        """
        lengths = lengths.clamp(min=1)
        with torch.autocast(lengths.device.type, enabled=False):
            codes = position_code(length, self.position_width).to(self.score.weight)
            packed = pack_padded_sequence(
                codes.expand(len(lengths), -1, -1), lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            hidden, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=length)  # (U, L, 2h)
            forwards, backwards = hidden.chunk(2, dim=2)
            scores = self.score((forwards + backwards) / 2).squeeze(2) / self.temperature  # (U, L)
            beyond = torch.arange(length, device=lengths.device) >= lengths[:, None]
            weights: Tensor = scores.masked_fill(beyond, float("-inf")).softmax(dim=1)
            return weights


def position_code(length: int, width: int) -> Tensor:
    """Return the (length, width) sines (even columns) and cosines (odd columns) of positions, at wavelengths from 2 pi on.

    >>> position_code(2, 2)
    tensor([[0.0000, 1.0000],
            [0.8415, 0.5403]])
    """
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000) / width))
    angles = torch.arange(length)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)


class GPOTower(Tower):
    """A tower whose tokens are pooled by a :class:`GeneralisedPooling`, in place of the tower's own pooling ([0]).

    For regions and patches of images and for words of captions, special tokens included. Where a tower prepends its pooled
    feature or a class token to the patches, it is pooled like a patch. A pooler with parameters of the tower's own
    (``pooling: own``) would not be trained, which DDP refuses: configure ``mean`` or ``cls``. The tower may be frozen while
    pooling is trained; it then runs at every step, because tokens are not cached.

    With ``width`` on both towers and no projections (``embedding_width: null`` of the dual encoder), tokens are mapped to the
    common space before they are pooled, as in the public code. There, words are also masked, replaced and left out at random
    before the text encoder; here, tokens are left out after it.

    Args:
        tower: the tower; its own ``frozen`` decides whether it is trained.
        width: D, width of a linear layer on the tokens before pooling; None for no layer.
        token_dropout: probability of leaving out a token in training, in [0, 1); an item keeps all of its tokens if none would
            remain. The public code's size augmentation leaves out 0.2 of the regions.
        frozen: freeze pooling and tower, see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: a width below 1 or a dropout out of range; or, in :meth:`encode`, a tower without tokens.
    """

    def __init__(
        self, tower: Tower, width: int | None = None, token_dropout: float = 0.0, frozen: bool = False
    ) -> None:
        super().__init__(frozen)
        self.modality, self.tokens_width, self.pretrained = tower.modality, tower.tokens_width, tower.pretrained
        self.width = tower.tokens_width if width is None else width
        if self.width < 1 or not 0 <= token_dropout < 1:
            raise ValueError(
                f"GPOTower needs a width of at least 1 and a token_dropout in [0, 1), got {width} and {token_dropout}"
            )
        for option in ("vocabulary_size", "max_positions"):  # of a text tower, which the tokenizer must fit
            if hasattr(tower, option):
                setattr(self, option, getattr(tower, option))
        self.tower, self.token_dropout = tower, token_dropout
        self.layer: nn.Module = nn.Identity() if width is None else nn.Linear(tower.tokens_width, width)
        self.pooling = GeneralisedPooling()
        self.apply_frozen()

    def apply_frozen(self) -> None:
        """Apply ``frozen`` to everything, else leave the tower as its own ``frozen`` has it."""
        if self.frozen:
            self.tower.freeze()
        super().apply_frozen()
        self.tower.apply_frozen()

    def checkpoint_activations(self) -> None:
        """Recompute the activations within each layer of the tower in the backward pass."""
        self.tower.checkpoint_activations()

    def compile(self, *_: Any, **options: Any) -> None:
        """Compile the tower in place; pooling is not compiled, because its shapes vary with the lengths."""
        self.tower.compile(**options)

    def settings(self) -> str:
        """Return class and settings of the tower, and the width."""
        return f"{type(self.tower).__name__} {self.tower.settings()} {self.width}"

    def encode_inputs(self, inputs: ImageInputs | TextInputs) -> Encoded:
        """Encode a batch of the tower's inputs.

        Returns:
            (B, D) pooled features, and the tokens and the mask of the tower.

        Raises:
            ValueError: the tower returns no tokens.
        """
        encoded = self.tower.encode(inputs)
        if encoded.tokens is None:
            raise ValueError(
                f"GPOTower pools tokens, and {type(self.tower).__name__} returns none: give it a tower with tokens"
            )
        mask = self._kept(encoded.tokens, encoded.mask)
        return encoded._replace(embedding=self.pooling(self.layer(encoded.tokens), mask))

    def _kept(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """(B, L) which tokens are pooled; None for all."""
        if not self.training or self.token_dropout == 0:
            return mask
        size, length, _ = tokens.shape
        is_token = torch.ones(size, length, dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
        kept = is_token & (torch.rand(size, length, device=tokens.device) >= self.token_dropout)
        return torch.where(kept.any(dim=1, keepdim=True), kept, is_token)
