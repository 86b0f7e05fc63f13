"""Normalisation of captions before tokenisation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Characters that ALBEF, X-VLM and the public code of the TIP 2024 paper remove, and those they replace by spaces.
_DROPPED = re.compile(r"""[,.'!?"()*#:;~]""")
_SPACED = re.compile(r"[-/]")


@dataclass(frozen=True)
class Wording:
    """Normalisation of captions for the text tower; relevance and records use the original captions.

    Attributes:
        strip_punctuation: convert to lower case, remove punctuation and split at hyphens and slashes, as in the public code.
        max_words: captions are truncated to this many words; no limit when None.

    Raises:
        ValueError: max_words is below 1.
    """

    strip_punctuation: bool = False
    max_words: int | None = None

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"captions need at least 1 word, got a limit of {self.max_words}")

    def __call__(self, captions: Sequence[str]) -> Sequence[str]:
        """Normalise captions; return the same object if nothing is to be done.

        >>> Wording(True, 4)(["A well-known man, in Paris."])
        ['a well known man']
        """
        if not self.strip_punctuation and self.max_words is None:
            return captions
        return [self._one(caption) for caption in captions]

    def _one(self, caption: str) -> str:
        if self.strip_punctuation:
            caption = _SPACED.sub(" ", _DROPPED.sub("", caption.lower())).replace("<person>", "person")
            caption = caption.replace("[mask]", "[MASK]")  # from the corruption mask_words
        return " ".join(caption.split()[: self.max_words])
