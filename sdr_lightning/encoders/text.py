"""Text towers: encoders of transformers, and a bag of words."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.transformer import Pooling, TransformersEncoder
from sdr_lightning.paths import PathOrName
from sdr_lightning.types import Encoded, Tokens


class TransformersTextTower(Tower):
    """A text encoder of transformers, standalone or part of a CLIP-style model.

    Args:
        weights: a folder, a hub name, or ``package:NAME/FOLDER`` in an installed package; None for random weights.
            ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        config: with random weights, ``model_type`` and the arguments of its configuration.
        pooling: ``mean`` over the tokens, the first token (``cls``), or the model's ``own`` pooler (the last token in CLIP).
        projected: apply the CLIP-style model's projection to the pooled features.
        layers: number of first layers to keep (in the paper 6 of BERT's 12; the others are the fusion encoder); None for all.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Attributes:
        vocabulary_size: size of the token embedding table.
        max_positions: maximum number of tokens; None for relative positions.

    Raises:
        ValueError: neither weights nor config, or unavailable weights.
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
        self.apply_frozen()

    def checkpoint_activations(self) -> None:
        """Enable the activation checkpointing of transformers."""
        self.encoder.checkpoint_activations()

    def settings(self) -> str:
        """Return pooling and configuration (without its provenance)."""
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
        # SigLIP expects captions padded to the full length and no mask, and pools the last token.
        length = ids.shape[1]
        ids = ids.masked_fill(mask == 0, config.pad_token_id)
        ids = F.pad(ids, (0, config.max_position_embeddings - length), value=config.pad_token_id)
        encoded = self.encoder.encode(F.pad(mask, (0, config.max_position_embeddings - length)), input_ids=ids)
        assert encoded.tokens is not None
        return encoded._replace(tokens=encoded.tokens[:, :length], mask=mask)


_WORD_STD = 0.02  # as in BERT; a learning rate of 1e-3 would hardly move vectors of standard deviation 1


class BagOfWordsTextTower(Tower):
    """The mean of one learned vector per token: a weak text encoder, trained from random weights.

    The order of words has no effect. Special tokens are embedded like words.

    Args:
        vocabulary_size: V, size of the embedding table; at least that of the tokenizer.
        width: D, width of the vectors.
        dropout: probability of dropping a whole word in training, in [0, 1); the mean is over the remaining ones.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: a size below 1, or a dropout out of range.
    """

    modality = "text"

    def __init__(
        self, vocabulary_size: int = 30_522, width: int = 256, dropout: float = 0.0, frozen: bool = False
    ) -> None:
        super().__init__(frozen)
        if min(vocabulary_size, width) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                "vocabulary_size and width must be positive and dropout in [0, 1), got "
                f"{vocabulary_size}, {width} and {dropout}"
            )
        self.vocabulary_size, self.width, self.tokens_width, self.dropout = vocabulary_size, width, width, dropout
        self.words = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.words.weight, std=_WORD_STD)
        self.apply_frozen()

    def settings(self) -> str:
        """Return an empty text: nothing besides the weights decides the features."""
        return ""

    def encode_inputs(self, inputs: Tokens) -> Encoded:
        """Encode captions.

        Args:
            inputs: tokens of B captions.

        Returns:
            (B, D) means of the vectors, and the (B, L, D) vectors with their mask.
        """
        words, mask = self.words(inputs.input_ids), inputs.attention_mask
        kept = F.dropout(mask.to(words.dtype), self.dropout, self.training).unsqueeze(-1)  # (B, L, 1)
        return Encoded((words * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1), words, mask)


def check_tokens(tower: Tower, vocabulary_size: int, max_tokens: int) -> None:
    """Check that a tokenizer fits a text tower. Towers without ``vocabulary_size`` and ``max_positions`` pass.

    Args:
        tower: image or text tower.
        vocabulary_size: vocabulary size of the tokenizer.
        max_tokens: maximum number of tokens per caption, special tokens included.

    Raises:
        ValueError: the vocabulary is larger than the tower's, or captions are longer than its positions.
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
    """Return the number of usable absolute positions; None without a position table."""
    for name, table in model.named_modules():
        if isinstance(table, nn.Embedding) and ("position" in name.rpartition(".")[2] or name.endswith("wpe")):
            # RoBERTa-like models number positions from padding_idx + 1.
            before = 0 if table.padding_idx is None else table.padding_idx + 1
            return min(table.num_embeddings, int(model.config.max_position_embeddings)) - before
    return None
