"""Projections into the common space."""

from __future__ import annotations

from torch import nn


class Projection(nn.Sequential):
    """A linear map, or two with a non-linearity between, from a tower's features to the common space.

    Args:
        input_width: D, the width of the features.
        output_width: d, the width of the common space.
        hidden_width: width of the layer between; None for a single linear map, as in the paper.
        dropout: share of the features, and of the layer between, dropped in training, in [0, 1).
        normalise_input: put a LayerNorm first; needed where a tower's features have no common scale.
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
