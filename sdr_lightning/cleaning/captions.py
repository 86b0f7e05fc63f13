"""Captions that say little or nothing, found by their words alone."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

NO_WORDS = "no words"
FILE_NAME = "file name"
FEW_WORDS = "few words"
REPEATED = "repeated caption"
EMPTY = "empty caption"
FLAWS = {
    EMPTY: "no text",
    NO_WORDS: "punctuation or numbers only",
    FILE_NAME: "the name of a file",
    FEW_WORDS: "fewer than three words",
    REPEATED: "the same caption for many images",
}
"""What can be wrong with a caption, with its description."""

MIN_WORDS = 3
_REPEATED_IMAGES, _REPEATED_SHARE = 5, 0.001  # images with the same caption: at least so many, and this share of all
_SCRIPTS_WITHOUT_SPACES = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SCRIPTS_WITHOUT_SPACES}]|[^\W_{_SCRIPTS_WITHOUT_SPACES}]+")
_FILE = re.compile(
    r"\S+\.(jpe?g|png|gif|bmp|webp|tiff?|avif|heic|jp2|svg)|(img|dsc[fn]?|pict?|image|photo)[ _-]*\d+", re.I
)


def normalised(caption: str) -> str:
    """Return the words of a caption in lower case, for comparison.

    >>> normalised("A dog, running!") == normalised("a dog running")
    True
    """
    return " ".join(_words(caption))


def num_shared(captions: Iterable[str], others: Iterable[str]) -> int:
    """Return how many captions have the words of one of the others.

    >>> num_shared(["A dog.", "a dog", "a cat"], ["a dog!"])
    2
    """
    known = {normalised(other) for other in others}
    return sum(normalised(caption) in known for caption in captions)


def flaws(captions: Sequence[str], caption_image: NDArray[np.int64], image_ids: Sequence[str]) -> list[str]:
    """Find what is wrong with each caption.

    Args:
        captions: C captions.
        caption_image: (C,) row of the image of each.
        image_ids: N ids; a caption that is the name of its own image is a file name.

    Returns:
        C keys of :data:`FLAWS`, or empty strings.
    """
    images = caption_image.tolist()
    texts = [normalised(caption) for caption in captions]
    images_of: dict[str, set[int]] = defaultdict(set)
    for text, image in zip(texts, images, strict=True):
        images_of[text].add(image)
    many = max(_REPEATED_IMAGES, int(_REPEATED_SHARE * len(image_ids)))
    found = []
    for caption, text, image in zip(captions, texts, images, strict=True):
        stem = normalised(PurePosixPath(image_ids[image]).stem)
        if not caption.strip():
            found.append(EMPTY)
        elif not any(character.isalpha() for character in text):
            found.append(NO_WORDS)
        elif _FILE.fullmatch(caption.strip()) or text == stem:
            found.append(FILE_NAME)
        elif len(text.split()) < MIN_WORDS:
            found.append(FEW_WORDS)
        else:
            found.append(REPEATED if len(images_of[text]) >= many else "")
    return found


def _words(caption: str) -> list[str]:
    """Words in lower case; in scripts without spaces, characters."""
    return _WORD.findall(unicodedata.normalize("NFKC", caption).casefold())
