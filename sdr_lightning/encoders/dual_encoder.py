"""The dual encoder: two towers, two projections, one space."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Tokens


class DualEncoder(nn.Module):
    """Image and text towers with projections to a common space, compared by cosine.

    Args:
        image_tower: encodes images.
        text_tower: encodes captions.
        embedding_width: d, the width of the common space.
        hidden_width: width of the projections' middle layer; None for linear projections, as in the paper.
        dropout: share of the projections' inputs and hidden units dropped in training, in [0, 1).
        normalise_features: put a LayerNorm between tower and projection.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        embedding_width: int = 256,
        hidden_width: int | None = None,
        dropout: float = 0.0,
        normalise_features: bool = False,
    ) -> None:
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.embedding_width = embedding_width
        self.image_projection = Projection(
            image_tower.width, embedding_width, hidden_width, dropout, normalise_features
        )
        self.text_projection = Projection(text_tower.width, embedding_width, hidden_width, dropout, normalise_features)

    def encode_image(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: (B, 3, H, W) pixels, or (B, D) cached features of the image tower.

        Returns:
            (B, d), L2-normalised.
        """
        return F.normalize(self.image_projection(self.image_tower(images)), dim=1)

    def encode_text(self, texts: Tokens | Tensor) -> Tensor:
        """Embed captions.

        Args:
            texts: tokens of B captions, or (B, D) cached features of the text tower.

        Returns:
            (B, d), L2-normalised.
        """
        return F.normalize(self.text_projection(self.text_tower(texts)), dim=1)

    def frozen_towers(self) -> dict[str, Tower]:
        """The towers that are frozen, by the name they have in this module."""
        towers = {"image_tower": self.image_tower, "text_tower": self.text_tower}
        return {name: tower for name, tower in towers.items() if tower.frozen}
