"""Tokenizers: from captions to token ids."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from sdr_lightning.data.scenes import vocabulary
from sdr_lightning.encoders.weights import unreachable
from sdr_lightning.hub import check_available
from sdr_lightning.identity import sha256
from sdr_lightning.paths import PathOrName, expand, package_path, write_atomically
from sdr_lightning.types import Tokens


class Tokenizer(ABC):
    """A ``transformers`` tokenizer with a length limit, created on first use.

    Args:
        max_tokens: captions are truncated to this many tokens, including special tokens.

    Raises:
        ValueError: max_tokens is below 3.
    """

    def __init__(self, max_tokens: int) -> None:
        if max_tokens < 3:
            raise ValueError(f"max_tokens must be at least 3 (a word and two special tokens), got {max_tokens}")
        self.max_tokens = max_tokens

    @abstractmethod
    def make(self) -> Any:
        """Create the fast tokenizer.

        Raises:
            ValueError: it cannot be loaded.
        """

    @cached_property
    def tokenizer(self) -> Any:
        """The fast tokenizer, with padding on the right as required by :func:`trimmed`."""
        made = self.make()
        made.padding_side = "right"
        return made

    @property
    def vocabulary_size(self) -> int:
        """Number of entries that a text tower must embed."""
        return len(self.tokenizer)

    @property
    def padding(self) -> int:
        """Token id of padding."""
        return int(self.tokenizer.pad_token_id)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the tokens."""
        settings = json.loads(self.tokenizer.backend_tokenizer.to_str())
        settings |= {"padding": None, "truncation": None}  # these depend on the last call
        return sha256(json.dumps(settings, sort_keys=True), str(self.max_tokens))

    def __call__(self, captions: Iterable[str]) -> Tokens:
        """Tokenise C captions into (C, L) int64 ids and mask, padded to the longest caption."""
        encoded = self.tokenizer(
            list(captions), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        return Tokens(encoded["input_ids"], encoded["attention_mask"])

    def losses(self, captions: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the rows of captions that are truncated, and of captions with unknown words."""
        marks = {self.tokenizer.cls_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id}
        unknown_id = self.tokenizer.unk_token_id
        cut, unknown = [], []
        for start in range(0, len(captions), 4096):
            part = list(captions[start : start + 4096])
            encoded = self.tokenizer(part, truncation=True, max_length=self.max_tokens)
            for row, encoding in enumerate(encoded.encodings, start=start):
                if encoding.overflowing:
                    cut.append(row)
                if unknown_id not in marks and unknown_id in encoding.ids:
                    unknown.append(row)
        return cut, unknown


class PretrainedTokenizer(Tokenizer):
    """The tokenizer of a pretrained text tower.

    Args:
        weights: a folder, a hub name, ``package:NAME/FOLDER``, or a WordPiece ``vocab.txt`` (lower case).
            ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        max_tokens: captions are truncated to this many tokens, including special tokens.
    """

    def __init__(self, weights: PathOrName, max_tokens: int = 60) -> None:
        super().__init__(max_tokens)
        self.weights = weights

    def make(self) -> Any:
        """Load the tokenizer of the weights."""
        from transformers import AutoTokenizer

        reference = package_path(expand(self.weights))
        if Path(reference).is_file():
            return _word_piece(reference)
        try:
            check_available(reference)
            return AutoTokenizer.from_pretrained(reference)
        except (OSError, ValueError) as error:
            raise unreachable("tokenizer", reference, "data.init_args.tokenizer.init_args.weights", error) from error


class SceneTokenizer(Tokenizer):
    """A word-level tokenizer with the vocabulary of scene captions.

    Args:
        max_tokens: captions are truncated to this many tokens, including special tokens.
    """

    def __init__(self, max_tokens: int = 40) -> None:
        super().__init__(max_tokens)

    def make(self) -> Any:
        """Create the word-level tokenizer."""
        from tokenizers import Tokenizer as FastTokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from tokenizers.processors import TemplateProcessing
        from transformers import PreTrainedTokenizerFast

        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *vocabulary(), "[MASK]"]
        fast = FastTokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        fast.pre_tokenizer = WhitespaceSplit()
        fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
        return PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]")


def _word_piece(vocabulary_file: str) -> Any:
    """Create BERT's lower-case tokenizer from its ``vocab.txt``.

    Built from ``tokenizers``, because the arguments of BertTokenizerFast differ between versions of transformers.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    roles = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
    fast = FastTokenizer(WordPiece.from_file(vocabulary_file, unk_token=roles["unk"]))
    ids = {token: fast.token_to_id(token) for token in roles.values()}
    if absent := [token for token, number in ids.items() if number is None]:
        raise ValueError(
            f"{vocabulary_file} has no {', '.join(absent)}: expected a WordPiece vocab.txt, one entry a line"
        )
    fast.normalizer = BertNormalizer(lowercase=True)
    fast.pre_tokenizer = BertPreTokenizer()
    ends = [(token, ids[token]) for token in ("[CLS]", "[SEP]")]
    fast.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=fast, **{f"{role}_token": token for role, token in roles.items()})


def tokenised(tokenizer: Tokenizer, captions: Sequence[str], cache: Path, write: bool = False) -> Tokens:
    """Tokenise captions, or read their tokens from the cache.

    Args:
        tokenizer: the tokenizer.
        captions: C captions.
        cache: the cache's folder.
        write: whether to write new tokens to the cache.

    Returns:
        (C, L) int64 ids and mask.
    """
    file = cache / "tokens" / f"{sha256(tokenizer.fingerprint, *captions)[:24]}.safetensors"
    if file.is_file():
        kept = load_file(file)
        return Tokens(kept["input_ids"], kept["attention_mask"])
    tokens = tokenizer(captions)
    if write:
        write_atomically(file, lambda part: save_file(tokens._asdict(), part))
    return tokens


def trimmed(tokens: Tokens) -> Tokens:
    """Remove padding beyond the longest caption of a batch.

    Args:
        tokens: (B, L).

    Returns:
        (B, L') with L' the length of the longest caption.
    """
    longest = int(tokens.attention_mask.sum(dim=1).max())
    return Tokens(tokens.input_ids[:, :longest], tokens.attention_mask[:, :longest])


def take(tokens: Tokens, rows: torch.Tensor) -> Tokens:
    """Select the captions of some rows, trimmed."""
    return trimmed(Tokens(tokens.input_ids[rows], tokens.attention_mask[rows]))
