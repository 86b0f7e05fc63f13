"""Image tower over precomputed region features."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded


class PrecomputedImageTower(Tower):
    """An MLP with a linear shortcut over each region (R = 1 for one vector per image), then pooling over regions.

    After the image encoder of Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding" (VSE-infinity),
    CVPR 2021, with mean or max pooling.

    Args:
        features_width: D, the width of the features.
        width: width of the output; None to pool the features unchanged, for detectors used as teachers.
        hidden_width: hidden width of the MLP; half the output width if None.
        pooling: ``mean`` or ``max`` over regions.
        dropout: dropout of the hidden units, in [0, 1).
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: a width below 1.
    """

    modality = "image"

    def __init__(
        self,
        features_width: int,
        width: int | None = 1024,
        hidden_width: int | None = None,
        pooling: Literal["mean", "max"] = "mean",
        dropout: float = 0.0,
        frozen: bool = False,
    ) -> None:
        super().__init__(frozen)
        self.width = self.tokens_width = features_width if width is None else width
        hidden = max(1, self.width // 2) if hidden_width is None else hidden_width
        if min(features_width, self.width, hidden) < 1:
            raise ValueError(f"widths must be positive, got {features_width}, {width}, {hidden_width}")
        self.features_width, self.pooling = features_width, pooling
        self.shortcut: nn.Module = nn.Identity()
        self.mlp: nn.Module | None = None
        if width is not None:
            self.shortcut = nn.Linear(features_width, self.width)
            self.mlp = nn.Sequential(
                nn.Linear(features_width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, self.width)
            )
        self.apply_frozen()

    def settings(self) -> str:
        """Return widths and pooling."""
        return f"{self.features_width} {self.width} {self.pooling}"

    def encode_inputs(self, inputs: Tensor) -> Encoded:
        """Encode region features.

        Args:
            inputs: (B, R, D).

        Returns:
            (B, width) pooled features, and the regions as (B, R, width) tokens.

        Raises:
            ValueError: features of another shape.
        """
        if inputs.ndim != 3 or inputs.shape[2] != self.features_width:
            raise ValueError(
                f"the image tower expects features (B, R, {self.features_width}), got {tuple(inputs.shape)}: set its "
                "features_width to that of the data"
            )
        regions = self.shortcut(inputs) if self.mlp is None else self.shortcut(inputs) + self.mlp(inputs)
        return Encoded(regions.mean(dim=1) if self.pooling == "mean" else regions.amax(dim=1), regions)
