"""An image tower for features that were computed elsewhere."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded


class PrecomputedImageTower(Tower):
    """Regions, or one vector an image, to one feature vector: an MLP with a linear shortcut, then pooling over regions.

    After the image encoder of Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding" (VSE-infinity),
    CVPR 2021, with plain pooling.

    Args:
        features_width: D of the features.
        width: of the tower's output; None to pool the features as they are, which is how a detector serves as a teacher.
        hidden_width: of the MLP; half the output's width when None.
        pooling: ``mean`` or ``max`` over the regions.
        dropout: share of the MLP's hidden units that are dropped in training, in [0, 1).
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.
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
        self.freeze_if_asked()

    def settings(self) -> str:
        """Widths and pooling; those of the layers are in the weights."""
        return f"{self.features_width} {self.width} {self.pooling}"

    def encode_inputs(self, inputs: Tensor) -> Encoded:
        """Encode images.

        Args:
            inputs: (B, R, D) features.

        Returns:
            (B, width) pooled, and the regions as (B, R, width).

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
