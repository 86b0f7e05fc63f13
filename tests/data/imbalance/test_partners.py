"""Hard mismatches, against definitions written out pair by pair."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from sdr_lightning.data.imbalance import PARTNERS, Imbalance, Level, NoiseTable
from sdr_lightning.data.imbalance.partners import NEAREST, nearest, sharing_a_word, topic_words
from sdr_lightning.data.imbalance.specification import Partner
from sdr_lightning.data.imbalance.texts import FUNCTION_WORDS
from sdr_lightning.data.table import CaptionTable
from tests.data.imbalance import image_of_caption, shuffled

WORDS = [f"{first}{second}{first}" for first in "bcdfg" for second in "aeiou"]
LEVELS: tuple[Level, ...] = get_args(Level)


def similar_captions(images: int, each: int = 3, words: int = 4) -> CaptionTable:
    """Captions of a few of 25 words, so that many share some."""
    draw = random.Random(0)
    captions = [f"a {' '.join(draw.sample(WORDS, words))}." for _ in range(images * each)]
    ids = [f"c{k}" for k in range(len(captions))]
    return CaptionTable(
        "similar", "train", [f"i{i}" for i in range(images)], captions, ids, np.repeat(range(images), each)
    )


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("partner", [name for name in PARTNERS if name != "random"])
def test_hard_partners_are_a_derangement_of_the_same_items_in_any_reading_order(partner: Partner, level: Level) -> None:
    table = similar_captions(40)
    random_partner = Imbalance("mismatch", 0.5, level=level)
    imbalance = replace(random_partner, partner=partner)
    noise = NoiseTable.draw(table, imbalance)
    changed = noise.caption_image != table.caption_image
    np.testing.assert_array_equal(noise.rows, NoiseTable.draw(table, random_partner).rows)
    chosen = np.isin(table.caption_image if level == "image" else np.arange(len(changed)), noise.rows)
    np.testing.assert_array_equal(changed, chosen)
    before, after = Counter(table.caption_image[changed].tolist()), Counter(noise.caption_image[changed].tolist())
    assert before == after
    other_order = NoiseTable.draw(shuffled(table), imbalance)
    assert other_order.partners_as_asked == noise.partners_as_asked
    tables = [replace(t, caption_image=n.caption_image) for t, n in ((table, noise), (shuffled(table), other_order))]
    assert image_of_caption(tables[0]) == image_of_caption(tables[1])


def tfidf(text: str, everything: list[str]) -> dict[str, float]:
    counts = Counter(word for word in text.replace(".", "").split() if word not in FUNCTION_WORDS)
    frequency = {word: sum(word in other.replace(".", "").split() for other in everything) for word in counts}
    vector = {w: n * (math.log((1 + len(everything)) / (1 + frequency[w])) + 1) for w, n in counts.items()}
    length = math.sqrt(sum(value**2 for value in vector.values()))
    return {word: value / length for word, value in vector.items()}


def slow_nearest(texts: list[str], images: list[int], everything: list[str]) -> tuple[list[int], float]:
    """Successor, -1 where none was found, and the share of items with one of their nearest."""
    count, vectors = len(texts), [tfidf(text, everything) for text in texts]
    successor, first = [-1] * count, None
    for _ in range(8):
        receivers = [b for b in range(count) if b not in successor]
        edges = []
        for a in range(count):
            if successor[a] >= 0:
                continue
            found = []
            for b in receivers:
                cosine = round(sum(value * vectors[b].get(word, 0) for word, value in vectors[a].items()), 6)
                if images[a] != images[b] and 0 < cosine < 1:
                    found.append((-cosine, (b - a - 1) % count, a, b))
            edges += sorted(found)[:NEAREST]
        first = first or {(a, b) for *_, a, b in edges}
        for *_, a, b in sorted(edges):
            if successor[a] < 0 and b not in successor:
                successor[a] = b
    return successor, sum((a, b) in first for a, b in enumerate(successor)) / count


def test_the_nearest_partners_are_those_of_a_slow_greedy_matching() -> None:
    table = similar_captions(40, each=2)
    texts, images = list(table.captions), table.caption_image
    texts[7] = texts[50]  # the same words: never partners
    expected, share = slow_nearest(texts, images.tolist(), texts)
    partners = nearest(texts, images, texts)
    assert sum(place < 0 for place in expected) < 8
    assert [b if a >= 0 else -1 for a, b in zip(expected, partners.successor.tolist(), strict=True)] == expected
    assert sorted(partners.successor.tolist()) == list(range(80))
    assert partners.fit(partners.successor).mean() == pytest.approx(share)
    assert 0.5 < share < 1
    assert expected[7] != 50


def test_items_without_anything_similar_are_mismatched_at_random() -> None:
    texts = ["a dog"] * 3 + ["", "the", "one cat", "one tree"]
    partners = nearest(texts, np.arange(len(texts)), texts)
    assert partners.successor.tolist() == [1, 2, 3, 4, 0, 6, 5]
    assert partners.fit(partners.successor).tolist() == [False] * 5 + [True] * 2


def test_words_are_shared_wherever_the_chosen_items_allow_it() -> None:
    # Two images with a dog, three captions of one image with a tree, one caption with a tree and a cat, and one on its own.
    texts = ["a dog", "the dog", "tree one", "tree", "a tree", "tree cat", "running"]
    images = np.array([0, 1, 2, 2, 2, 3, 4])
    partners = sharing_a_word(texts, [f"c{k}" for k in range(7)], images, seed=0)
    assert sorted(partners.successor.tolist()) == list(range(7))
    assert partners.successor.tolist()[:2] == [1, 0]
    assert not partners.fit(partners.successor)[6]


def test_the_share_of_partners_with_a_shared_word_is_that_of_a_pairwise_check() -> None:
    table = similar_captions(30, each=1, words=2)
    for ratio in (0.4, 1.0):
        noise = NoiseTable.draw(table, Imbalance("mismatch", ratio, partner="shared_word", seed=1))
        share = [
            bool(set(topic_words(table.captions[k])) & set(topic_words(table.captions[noise.caption_image[k]])))
            for k in noise.rows.tolist()
        ]
        assert noise.partners_as_asked == np.mean(share) > 0.4
    other = NoiseTable.draw(table, Imbalance("mismatch", 1.0, partner="random", seed=1))
    assert other.partners_as_asked is None
    assert len({NoiseTable.draw(table, replace(noise.imbalance, partner=p)).sha256 for p in PARTNERS}) == len(PARTNERS)
