"""The dual encoder: two towers with projections to a common space, and an optional fusion encoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded, ImageInputs, TextInputs


class DualEncoder(nn.Module):
    """Image and text towers with projections to a common space, compared by cosine similarity.

    Args:
        image_tower: encodes images.
        text_tower: encodes captions.
        embedding_width: d, the width of the common space; None for no projections, if the towers share a space already.
        hidden_width: width of the hidden layer of the projections; None for linear projections, as in the paper.
        dropout: dropout of the projections' inputs and hidden units, in [0, 1).
        normalise_features: apply a LayerNorm before each projection.
        fusion: fusion encoder over the tokens of both towers; None for a dual encoder only.
        compile: compile the towers with ``torch.compile``; the first steps take minutes.
        activation_checkpointing: recompute the activations within each layer of the towers and of the fusion encoder in the
            backward pass, which saves memory and costs time.

    Raises:
        ValueError: towers of different widths without projections, a fusion encoder that does not fit the towers, or a tower
            without activation checkpointing.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        embedding_width: int | None = 256,
        hidden_width: int | None = None,
        dropout: float = 0.0,
        normalise_features: bool = False,
        fusion: FusionEncoder | None = None,
        compile: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.restored_towers: set[str] = set()
        """Names of the frozen towers whose weights come from the checkpoint of an earlier stage, not from the configuration."""
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if embedding_width is not None:
            how = (embedding_width, hidden_width, dropout, normalise_features)
            self.image_projection, self.text_projection = (
                Projection(tower.width, *how) for tower in (image_tower, text_tower)
            )
        elif image_tower.width != text_tower.width:
            raise ValueError(
                f"towers of widths {image_tower.width} and {text_tower.width} share no space: set embedding_width"
            )
        self.fusion = fusion
        if fusion is not None:
            _check_fusion(fusion, image_tower, text_tower)
        for tower in (image_tower, text_tower):
            if activation_checkpointing and not tower.frozen:  # a frozen tower stores no activations
                tower.checkpoint_activations()
            if compile:
                tower.compile()
        if fusion is not None and activation_checkpointing:
            fusion.checkpoint_activations()

    def image(self, images: ImageInputs) -> Encoded:
        """Embed images.

        Args:
            images: (B, 3, H, W) pixels, (B, R, D) region features, or cached features of the image tower.

        Returns:
            (B, d) L2-normalised embeddings, and the tokens of the image tower.
        """
        encoded = self.image_tower.encode(images)
        return encoded._replace(embedding=F.normalize(self.image_projection(encoded.embedding), dim=1))

    def text(self, texts: TextInputs) -> Encoded:
        """Embed captions.

        Args:
            texts: tokens of B captions, or cached features of the text tower.

        Returns:
            (B, d) L2-normalised embeddings, and the tokens of the text tower with their mask.
        """
        encoded = self.text_tower.encode(texts)
        return encoded._replace(embedding=F.normalize(self.text_projection(encoded.embedding), dim=1))

    def encode_image(self, images: ImageInputs) -> Tensor:
        """Return (B, d) L2-normalised image embeddings, see :meth:`image`."""
        return self.image(images).embedding

    def encode_text(self, texts: TextInputs) -> Tensor:
        """Return (B, d) L2-normalised text embeddings, see :meth:`text`."""
        return self.text(texts).embedding

    @property
    def towers(self) -> dict[str, Tower]:
        """Both towers by attribute name."""
        return {"image_tower": self.image_tower, "text_tower": self.text_tower}

    def frozen_towers(self) -> dict[str, Tower]:
        """Return the frozen towers by attribute name."""
        return {name: tower for name, tower in self.towers.items() if tower.frozen}

    def cached_towers(self) -> dict[str, Tower]:
        """Return the frozen towers whose features may be cached: all, or none if a fusion encoder reads tokens."""
        return self.frozen_towers() if self.fusion is None else {}

    def newly_initialized_parameters(self) -> list[str]:
        """Return the names of parameters without pretrained weights."""
        towers = {"image_tower.": self.image_tower, "text_tower.": self.text_tower}
        pretrained = [prefix for prefix, tower in towers.items() if tower.pretrained]
        names = [name for name, _ in self.named_parameters() if not name.startswith((*pretrained, "fusion."))]
        return names + [
            f"fusion.{name}" for name in (self.fusion.newly_initialized_parameters() if self.fusion else [])
        ]


def _check_fusion(fusion: FusionEncoder, image_tower: Tower, text_tower: Tower) -> None:
    if image_tower.tokens_width != fusion.image_width:
        raise ValueError(
            f"the image tower's tokens are {image_tower.tokens_width} wide and the fusion encoder reads "
            f"{fusion.image_width}: set fusion.init_args.image_width to {image_tower.tokens_width}"
        )
    if text_tower.tokens_width != fusion.width:
        raise ValueError(
            f"the text tower's tokens are {text_tower.tokens_width} wide and the fusion encoder's {fusion.width}: give both "
            "the same BERT, or configure the same hidden_size"
        )
