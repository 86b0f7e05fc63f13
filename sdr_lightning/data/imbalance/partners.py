"""The partners of mismatched items: which chosen item receives the captions of which other one.

An item is an image with all its captions, or a caption. Its *place* is its rank in the random order of the choice, so that
nothing here depends on the order in which a collection is read. Partners are a permutation ``successor`` of the places: the item
at place k passes its captions to the image of the item at place ``successor[k]``, and each item receives once.

References:
    [0] Zhang et al., "LEMoN: Label Error Detection using Multimodal Neighbors", ICML 2025; MLforHealth/LEMoN at a3464b66:
        lib/datasets/noise_captioning.py. Its noise ``noun`` replaces a caption by a random one that shares a random noun with
        it. There, a caption may be used several times.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.imbalance.texts import FUNCTION_WORDS
from sdr_lightning.identity import stable_hashes

Rows = NDArray[np.int64]

NEAREST = 10
"""Number of most similar items that count as near."""

_ROUNDS = 8
_TILE = 2**23  # similarities in memory at a time, unless one row has more
_DECIMALS = 6  # of similarities, so that rounding errors do not order equal ones
_WORD = re.compile(r"[^\W\d_]{3,}")
_NUMBERS = frozenset(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
_ENDINGS = ("ing", "ed", "ly")  # of verb forms and adverbs


class Partners(NamedTuple):
    """Partners, and how to tell whether they are as asked.

    Attributes:
        successor: (n,) int64 permutation of places.
        fit: maps any permutation of places to (n,) bool, whether the partner of each item is as asked.
    """

    successor: Rows
    fit: Callable[[Rows], NDArray[np.bool_]]


def at_random(count: int) -> Partners:
    """Pass captions to the next item in the random order of the choice."""
    return Partners(np.roll(np.arange(count), -1), lambda successor: np.ones(len(successor), dtype=np.bool_))


def topic_words(text: str) -> list[str]:
    """List the words of a caption that stand in for its nouns; no part-of-speech tagger is used.

    They have at least three letters, are no function words (:data:`~sdr_lightning.data.imbalance.texts.FUNCTION_WORDS`) and no
    numbers from two to ten, and do not end in -ing, -ed or -ly. Adjectives such as colours remain.

    Returns:
        Different words in lower case, in alphabetical order.

    >>> topic_words("A brown dog is running quickly through two puddles.")
    ['brown', 'dog', 'puddles']
    """
    words = set(_WORD.findall(text.lower())) - FUNCTION_WORDS - _NUMBERS
    return sorted(word for word in words if not word.endswith(_ENDINGS))


def sharing_a_word(texts: Sequence[str], ids: Sequence[str], images: Rows, seed: int) -> Partners:
    """Pass captions among items that share a word.

    Each item draws one of its :func:`topic_words` at random. Items that drew the same word pass their captions around among
    themselves. Where this is impossible, because too few images drew the word, an item joins those of another of its words.
    Items that fit nowhere are in random order.

    Args:
        texts: n texts by place: a caption, or all captions of an image joined.
        ids: n ids by place; they and the seed determine the draw.
        images: (n,) image of each item.
        seed: of the draw.

    Returns:
        The partners. As asked is a partner that shares one of the :func:`topic_words`.
    """
    words = [_shuffled(topic_words(text), item, seed) for text, item in zip(texts, ids, strict=True)]
    drawn: dict[str, list[int]] = {}
    for place, own in enumerate(words):
        if own:
            drawn.setdefault(own[0], []).append(place)
    groups = {word: places for word, places in drawn.items() if _can_be_deranged(images[places])}
    counts = {word: Counter(images[places].tolist()) for word, places in groups.items()}
    grouped = {place for places in groups.values() for place in places}
    rest = []
    for place in sorted(set(range(len(texts))) - grouped):
        image = int(images[place])
        fitting = (w for w in words[place] if w in groups and 2 * (counts[w][image] + 1) <= len(groups[w]) + 1)
        word = next(fitting, None)
        if word is None:
            rest.append(place)
        else:
            groups[word].append(place)
            counts[word][image] += 1
    successor = np.empty(len(texts), dtype=np.int64)
    for places in map(np.array, map(sorted, groups.values())):
        successor[places] = places[deranged(np.roll(np.arange(len(places)), -1), images[places])]
    successor[rest] = np.roll(rest, -1)
    sets = [set(own) for own in words]
    return Partners(successor, lambda to: np.array([bool(sets[a] & sets[b]) for a, b in enumerate(to.tolist())]))


def nearest(texts: Sequence[str], images: Rows, everything: Sequence[str]) -> Partners:
    """Pass captions among items with similar texts.

    The similarity is the cosine of TF-IDF vectors (scikit-learn's ``TfidfVectorizer``, without function words). Matching is
    greedy: over the :data:`NEAREST` most similar others of each item, the most similar pair first, each item passes and
    receives once. Items that are left are matched among themselves in the same way, up to eight rounds in all; the rest is in
    random order. Items of the same image, and items with the same words, are never matched this way: these captions may not
    be wrong.

    Args:
        texts: n texts by place: a caption, or all captions of an image joined.
        images: (n,) image of each item.
        everything: the texts of the whole split, for the document frequencies, so that they do not depend on the ratio.

    Returns:
        The partners. As asked is a partner among the :data:`NEAREST` most similar others.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # slow to import

    vectors = TfidfVectorizer(token_pattern=r"\w+", stop_words=sorted(FUNCTION_WORDS)).fit(everything).transform(texts)
    count = len(texts)
    successor, receives = np.full(count, -1), np.zeros(count, dtype=np.bool_)
    first: Rows | None = None
    for _ in range(_ROUNDS):
        edges = _similar(vectors, images, np.flatnonzero(successor < 0), np.flatnonzero(~receives))
        first = edges if first is None else first
        for giver, receiver in edges.tolist():
            if successor[giver] < 0 and not receives[receiver]:
                successor[giver], receives[receiver] = receiver, True
        if not len(edges):
            break
    assert first is not None
    successor[successor < 0] = np.roll(np.flatnonzero(~receives), -1)
    near = first @ [count, 1]
    return Partners(successor, lambda to: np.isin(np.arange(count) * count + to, near))


def deranged(successor: Rows, images: Rows) -> Rows:
    """Exchange receivers until no item passes its captions to its own image.

    Args:
        successor: (n,) permutation of places.
        images: (n,) image of each item.

    Returns:
        (n,) permutation, different in the places that were wrong at first and in those exchanged with.

    Raises:
        ValueError: more than half of the items are of one image.
    """
    successor = successor.copy()
    for place in np.flatnonzero(images[successor] == images):
        # Exchange with the next place such that neither gets its own image.
        others = np.roll(np.arange(len(images)), -place - 1)
        fits = (images[successor[others]] != images[place]) & (images[others] != images[successor[place]])
        if not fits.any():
            raise ValueError("more than half of the items are of one image")
        other = others[np.argmax(fits)]
        successor[place], successor[other] = successor[other], successor[place]
    return successor


def _can_be_deranged(images: Rows) -> bool:
    return 2 * int(np.unique(images, return_counts=True)[1].max()) <= len(images)


def _shuffled(words: Sequence[str], item: str, seed: int) -> list[str]:
    return [words[n] for n in np.argsort(stable_hashes(("shared_word", seed, item), words), kind="stable")]


def _similar(vectors: object, images: Rows, givers: Rows, receivers: Rows) -> Rows:
    """(E, 2) places of a giver and of one of its most similar receivers, the most similar pairs first.

    Receivers that are equally similar come in the order of their places, beginning behind the giver's own, so that
    givers with the same words do not all prefer the same ones.
    """
    count = len(images)
    columns = vectors[receivers].T.tocsr()  # type: ignore[index]
    step = max(1, _TILE // max(1, len(receivers)))
    keys, pairs = [np.empty(0, dtype=np.int64)], [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(givers), step):
        tile = givers[start : start + step]
        product = (vectors[tile] @ columns).tocsr()  # type: ignore[index]
        for row, giver in enumerate(tile.tolist()):
            inside = slice(product.indptr[row], product.indptr[row + 1])
            similarity = np.rint(product.data[inside] * 10**_DECIMALS).astype(np.int64)
            places = receivers[product.indices[inside]]
            possible = (images[places] != images[giver]) & (similarity > 0) & (similarity < 10**_DECIMALS)
            places, similarity = places[possible], similarity[possible]
            key = similarity * count - (places - giver - 1) % count
            if len(key) > NEAREST:
                best = np.argpartition(key, -NEAREST)[-NEAREST:]
                key, places = key[best], places[best]
            keys.append(key)
            pairs.append(np.stack([np.full(len(places), giver), places], axis=1))
    everything = np.concatenate(pairs)
    return everything[np.lexsort((everything[:, 0], -np.concatenate(keys)))]
