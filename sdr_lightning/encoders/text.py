"""Text towers: any encoder of transformers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.transformer import Pooling, TransformersEncoder
from sdr_lightning.types import Encoded, Tokens


class TransformersTextTower(Tower):
    """A transformers encoder, alone or out of a CLIP-style pair of encoders.

    Args:
        weights: a folder, a hub name, or ``package:NAME/FOLDER`` inside an installed package; None for random weights.
            ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        config: with random weights, the architecture: ``model_type`` and the arguments of its configuration.
        pooling: ``mean`` over the tokens of the caption, the first token, ``cls``, or the model's ``own`` (CLIP's last).
        projected: pass the pooled features through the pair's own projection to its common space.
        layers: keep this many of the first layers (the paper: 6 of BERT's 12, the others fuse); None for all.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: neither weights nor config, or weights that cannot be had.
    """

    modality = "text"

    def __init__(
        self,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        pooling: Pooling = "mean",
        projected: bool = False,
        layers: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(frozen)
        self.encoder = TransformersEncoder("text", weights, config, pooling, projected, layers)
        self.width, self.tokens_width = self.encoder.width, self.encoder.tokens_width
        self.pretrained = weights is not None
        self.vocabulary_size = int(self.encoder.model.config.vocab_size)
        self.freeze_if_asked()

    def checkpoint_activations(self) -> None:
        """By transformers."""
        self.encoder.checkpoint_activations()

    def settings(self) -> str:
        """The configuration of the model, without where it came from, and the pooling."""
        return self.encoder.settings()

    def encode_inputs(self, inputs: Tokens) -> Encoded:
        """Encode captions.

        Args:
            inputs: tokens of B captions.

        Returns:
            (B, D) pooled features, and the (B, L, W) tokens of the last layer with their mask.
        """
        ids, mask = inputs.input_ids, inputs.attention_mask
        config = self.encoder.model.config
        if config.model_type != "siglip_text_model":
            return self.encoder.encode(mask, input_ids=ids, attention_mask=mask)
        # SigLIP knows captions padded to their full length alone, and no mask; what it pools is the last token.
        length = ids.shape[1]
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
        ids = F.pad(ids, (0, config.max_position_embeddings - length), value=config.pad_token_id)
        encoded = self.encoder.encode(F.pad(mask, (0, config.max_position_embeddings - length)), input_ids=ids)
        assert encoded.tokens is not None
        return encoded._replace(tokens=encoded.tokens[:, :length], mask=mask)
