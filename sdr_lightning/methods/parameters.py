"""Scalars of the method that may be learned: temperatures and the teachers' share."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
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
    """lambda, the share of the text teacher in the fused relation.

    Args:
        initial: lambda at the start.
        kind: ``free``, a parameter without bounds, as in the public code; ``bounded``, learned within (0, 1) as the
            softsign of a parameter, which no step takes so far that it cannot return; or ``fixed``.

    Raises:
        ValueError: an unknown kind, or a bounded lambda that does not start inside (0, 1).
    """

    value: Tensor

    def __init__(self, initial: float = 0.5, kind: Literal["free", "bounded", "fixed"] = "free") -> None:
        super().__init__()
        self.kind = kind
        if kind == "fixed":
            self.register_buffer("value", torch.tensor(float(initial)))
        elif kind == "free":
            self.value = nn.Parameter(torch.tensor(float(initial)))
        elif kind == "bounded":
            if not 0 < initial < 1:
                raise ValueError(f"a bounded lambda starts inside (0, 1), got {initial}")
            side = 2 * initial - 1
            self.value = nn.Parameter(torch.tensor(side / (1 - abs(side))))
        else:
            raise ValueError(f"lambda must be free, bounded or fixed, got {kind!r}")

    def forward(self) -> Tensor:
        """Return lambda, a scalar; gradient flows to it where it is learned."""
        return (1 + F.softsign(self.value)) / 2 if self.kind == "bounded" else self.value
