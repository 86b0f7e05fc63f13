"""What is done to captions before they become tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# The characters that ALBEF, X-VLM and the public code of the TIP 2024 paper take out, and those they make spaces of.
_DROPPED = re.compile(r"""[,.'!?"()*#:;~]""")
_SPACED = re.compile(r"[-/]")


@dataclass(frozen=True)
class Wording:
    """Punctuation and length of captions, as the text tower reads them; the words of record stay what they are.

    Attributes:
        strip_punctuation: lower the case, drop punctuation and split at hyphens and slashes, as the public code does.
        max_words: captions are cut after this many words; None to leave them whole.
    """

    strip_punctuation: bool = False
    max_words: int | None = None

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < 1:
            raise ValueError(f"captions need at least 1 word, got a limit of {self.max_words}")

    def __call__(self, captions: Sequence[str]) -> Sequence[str]:
        """Reword captions; the very same sequence where nothing is to be done.

        >>> Wording(True, 4)(["A well-known man, in Paris."])
        ['a well known man']
        """
        if not self.strip_punctuation and self.max_words is None:
            return captions
        return [self._one(caption) for caption in captions]

    def _one(self, caption: str) -> str:
        if self.strip_punctuation:
            caption = _SPACED.sub(" ", _DROPPED.sub("", caption.lower())).replace("<person>", "person")
            caption = caption.replace("[mask]", "[MASK]")  # of an imbalance that masks words
        return " ".join(caption.split()[: self.max_words])
