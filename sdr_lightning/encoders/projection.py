"""Projections into the common space."""

from __future__ import annotations

from torch import nn


class Projection(nn.Sequential):
    """A linear layer or an MLP from the features of a tower to the common space.

    Args:
        input_width: D, the width of the features.
        output_width: d, the width of the common space.
        hidden_width: hidden width of the MLP; None for one linear layer, as in the paper.
        dropout: dropout of inputs and hidden units, in [0, 1).
        normalise_input: apply a LayerNorm first, for features without a common scale.
    """

    def __init__(
        self,
        input_width: int,
        output_width: int,
        hidden_width: int | None = None,
        dropout: float = 0.0,
        normalise_input: bool = False,
    ) -> None:
        layers: list[nn.Module] = [nn.LayerNorm(input_width)] if normalise_input else []
        layers.append(nn.Dropout(dropout))
        if hidden_width is not None:
            layers += [nn.Linear(input_width, hidden_width), nn.GELU(), nn.Dropout(dropout)]
        layers.append(nn.Linear(input_width if hidden_width is None else hidden_width, output_width))
        super().__init__(*layers)
