"""Captions to token indices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdr_lightning.data.scenes import vocabulary
from sdr_lightning.encoders.weights import unreachable
from sdr_lightning.paths import expand, package_path
from sdr_lightning.types import Tokens


class Tokenizer:
    """A tokenizer of transformers with a limit on the length.

    Args:
        tokenizer: a fast tokenizer.
        max_tokens: captions are cut at this many tokens, special ones included.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        if max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3 (a word and two special tokens), got {max_tokens}")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.tokenizer.padding_side = "right"  # what trimming a batch relies on
        self.vocabulary_size = len(tokenizer)

    def __call__(self, captions: Sequence[str]) -> Tokens:
        """Tokenise C captions into (C, L) ids and mask, padded to the longest."""
        encoded = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])


class PretrainedTokenizer(Tokenizer):
    """The tokenizer that a pretrained text tower was trained with.

    Args:
        weights: a folder, a hub name, ``package:NAME/FOLDER``, or a WordPiece ``vocab.txt`` (lower case).
            ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        max_tokens: captions are cut at this many tokens, special ones included.

    Raises:
        ValueError: the tokenizer cannot be had.
    """

    def __init__(self, weights: str, max_tokens: int = 60) -> None:
        from transformers import AutoTokenizer, BertTokenizerFast

        reference = package_path(expand(weights))
        if Path(reference).is_file():
            super().__init__(BertTokenizerFast(vocab=reference), max_tokens)
            return
        try:
            tokenizer = AutoTokenizer.from_pretrained(reference)
        except (OSError, ValueError) as error:
            raise unreachable("tokenizer", reference, "data.init_args.tokenizer.init_args.weights", error) from error
        super().__init__(tokenizer, max_tokens)


class SceneTokenizer(Tokenizer):
    """One token a word, over the words that scene captions are made of.

    Args:
        max_tokens: captions are cut at this many tokens, special ones included.
    """

    def __init__(self, max_tokens: int = 40) -> None:
        from tokenizers import Tokenizer as FastTokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import Whitespace
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary()]
        fast = FastTokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        fast.pre_tokenizer = Whitespace()
        fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        super().__init__(
            PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]"), max_tokens
        )


def trimmed(tokens: Tokens) -> Tokens:
    """Cut the padding that no caption of the batch needs.

    Args:
        tokens: (B, L).

    Returns:
        (B, L') with L' the longest caption of the batch.
    """
    longest = int(tokens.attention_mask.sum(dim=1).max())
    return Tokens(tokens.input_ids[:, :longest], tokens.attention_mask[:, :longest])


def take(tokens: Tokens, rows: torch.Tensor) -> Tokens:
    """The captions of some rows, trimmed."""
    return trimmed(Tokens(tokens.input_ids[rows], tokens.attention_mask[rows]))
