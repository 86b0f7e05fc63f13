"""Text towers: any encoder of transformers."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.transformer import Pooling, TransformersEncoder
from sdr_lightning.paths import PathOrName
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

    Attributes:
        vocabulary_size: number of tokens that it embeds.
        max_positions: number of tokens of its longest caption; None where positions are relative.

    Raises:
        ValueError: neither weights nor config, or weights that cannot be had.
    """

    modality = "text"

    def __init__(
        self,
        weights: PathOrName | None = None,
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
        self.max_positions = _max_positions(self.encoder.model)
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


def check_tokens(tower: Tower, vocabulary_size: int, max_tokens: int) -> None:
    """Check that a text tower can embed what a tokenizer gives; towers that do not state their limits pass.

    Args:
        tower: image or text tower.
        vocabulary_size: of the tokenizer.
        max_tokens: of the tokenizer's longest caption, special tokens included.

    Raises:
        ValueError: more tokens than the tower embeds, or longer captions than it has positions for.
    """
    vocabulary: int | None = getattr(tower, "vocabulary_size", None)
    if vocabulary is not None and vocabulary < vocabulary_size:
        raise ValueError(
            f"the tokenizer has {vocabulary_size} entries and the text tower embeds {vocabulary}: give both the same "
            "weights, or raise text_tower's config.vocab_size"
        )
    positions: int | None = getattr(tower, "max_positions", None)
    if positions is not None and positions < max_tokens:
        raise ValueError(
            f"the text tower has {positions} positions and max_tokens is {max_tokens}: set "
            f"data.init_args.tokenizer.init_args.max_tokens to at most {positions}"
        )


def _max_positions(model: Any) -> int | None:
    """Number of usable rows of the table of absolute positions; None where there is none."""
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe")):
            # RoBERTa and its kin number positions from behind the padding token's.
            before = 0 if table.padding_idx is None else table.padding_idx + 1
            return min(table.num_embeddings, int(model.config.max_position_embeddings)) - before
    return None
