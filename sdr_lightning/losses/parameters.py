"""Scalars of the objective that may be learned: temperatures and the teachers' share."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """A temperature tau, fixed or learned, kept in a stated range.

    Args:
        initial: tau at the start.
        learnable: whether tau receives a gradient.
        minimum: lower end of the range.
        maximum: upper end of the range.

    Raises:
        ValueError: the range or the initial value is not positive, or the value lies outside the range.
    """

    value: Tensor

    def __init__(
        self, initial: float = 0.07, learnable: bool = True, minimum: float = 0.01, maximum: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < minimum <= initial <= maximum:
            raise ValueError(
                f"temperature must satisfy 0 < minimum <= initial <= maximum, got {minimum}, {initial}, {maximum}"
            )
        self.minimum, self.maximum = minimum, maximum
        tau = torch.tensor(float(initial))
        if learnable:
            self.value = nn.Parameter(tau)
        else:
            self.register_buffer("value", tau)

    def forward(self) -> Tensor:
        """Return tau, a scalar; gradient flows to it where it is learned."""
        return self.value

    @torch.no_grad()
    def clamp(self) -> None:
        """Put tau back into its range; called after each optimiser step."""
        self.value.clamp_(self.minimum, self.maximum)


class TextShare(nn.Module):
    """lambda, the share of the text teacher in the fused relation: fixed, or a free parameter as published.

    Args:
        initial: lambda at the start.
        learnable: whether lambda receives a gradient. A learned lambda is unconstrained, as in the public code.
    """

    value: Tensor

    def __init__(self, initial: float = 0.5, learnable: bool = True) -> None:
        super().__init__()
        share = torch.tensor(float(initial))
        if learnable:
            self.value = nn.Parameter(share)
        else:
            self.register_buffer("value", share)

    def forward(self) -> Tensor:
        """Return lambda, a scalar; gradient flows to it where it is learned."""
        return self.value
