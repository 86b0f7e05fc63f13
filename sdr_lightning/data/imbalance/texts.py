"""Caption corruptions: words dropped, masked, truncated or misspelt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

import numpy as np

_SHARE_STEP, _TYPO_STEP = 0.15, 0.03
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

# Function words of English; without them, nouns, verbs, adjectives, adverbs and numbers remain.
_CLOSED_CLASSES = """
    a an the this that these those some any each every either neither no all both
    i me my mine myself we us our ours you your yours he him his himself she her hers herself it its itself they them their
    theirs themselves ones who whom whose which what someone something other others another
    and or but nor so yet as if while when where because than though although until
    of in on at by to from with without into onto out off over under above below up down near beside besides between among
    behind across through along around about against after before during inside outside toward towards upon for next via
    is are was were be been being am do does did doing done have has had having can could will would shall should may might
    must not there here
"""
FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())
"""Articles, pronouns, prepositions, conjunctions and auxiliaries of English, in lower case."""


def dropped(words: Sequence[str], severity: int, generator: np.random.Generator) -> list[str]:
    """Drop words independently, but keep at least one."""
    keep = _kept(len(words), severity, generator)
    return [word for word, kept in zip(words, keep, strict=True) if kept]


def masked(words: Sequence[str], severity: int, generator: np.random.Generator) -> list[str]:
    """Replace words by ``[MASK]`` independently, but keep at least one."""
    keep = _kept(len(words), severity, generator)
    return [word if kept else "[MASK]" for word, kept in zip(words, keep, strict=True)]


def truncated(words: Sequence[str], severity: int, generator: np.random.Generator) -> list[str]:
    """Keep the first words, at least one."""
    return list(words[: max(1, ceil(round(len(words) * (1 - _SHARE_STEP * severity), 6)))])


def content_words(words: Sequence[str], severity: int, generator: np.random.Generator) -> list[str]:
    """Remove function words; a caption of function words only keeps its last word."""
    bare = [word.lower().strip(".,;:!?\"'") for word in words]
    kept = [word for word, letters in zip(words, bare, strict=True) if letters and letters not in FUNCTION_WORDS]
    return kept or list(words[-1:])


def misspelt(words: Sequence[str], severity: int, generator: np.random.Generator) -> list[str]:
    """Drop, double, replace or swap characters independently; spaces are kept and no word becomes empty."""
    hit = generator.random(sum(map(len, words))) < _TYPO_STEP * severity
    ends = np.cumsum([len(word) for word in words])
    spelt = list(words)
    for number in np.unique(np.searchsorted(ends, np.flatnonzero(hit), side="right")).tolist():
        start = int(ends[number]) - len(words[number])
        spelt[number] = _misspell(words[number], np.flatnonzero(hit[start : ends[number]]).tolist(), generator)
    return spelt


TEXT_KINDS: dict[str, Callable[[Sequence[str], int, np.random.Generator], list[str]]] = {
    "drop_words": dropped,
    "mask_words": masked,
    "truncate": truncated,
    "content_words": content_words,
    "typos": misspelt,
    "missing": lambda words, severity, generator: [],
}


def _kept(count: int, severity: int, generator: np.random.Generator) -> np.ndarray:
    keep = generator.random(count) >= _SHARE_STEP * severity
    if count and not keep.any():
        keep[generator.integers(count)] = True
    return keep


def _misspell(word: str, places: Sequence[int], generator: np.random.Generator) -> str:
    letters = list(word)
    for place in places:
        what = int(generator.integers(4))
        if what == 0:
            letters[place] = ""
        elif what == 1:
            letters[place] *= 2
        elif what == 2:
            letters[place] = _LETTERS[int(generator.integers(len(_LETTERS)))]
        elif place + 1 < len(letters):
            letters[place], letters[place + 1] = letters[place + 1], letters[place]
    return "".join(letters) or word
