import hashlib
import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.data import scenes
from sdr_lightning.data.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    SIZES,
    SceneObject,
    SceneSource,
    draw_scene,
    fact_counts,
    graph_split,
    vocabulary,
)
from sdr_lightning.data.table import SPLITS
from sdr_lightning.metrics.relevance import FactRelevance

RED_CIRCLE = SceneObject("circle", "red", "small", "top")
BLUE_SQUARE = SceneObject("square", "blue", "small", "bottom")
ROOT = Path(__file__).parents[2]

# Small enough to be quick, large enough that graphs of two objects come up twice.
MANY = SceneSource(seed=3, num_train=1200, num_val=150, num_test=150, size=16, max_objects=2)
FEW = SceneSource(seed=1, num_train=120, num_val=30, num_test=30)


def digest() -> str:
    """Of everything that twenty scenes are, and the splits of their graphs."""
    found = hashlib.sha256()
    for seed, index in product((0, 7), range(10)):
        scene = draw_scene(seed, index)
        found.update(repr((scene.objects, scene.captions, scene.told, graph_split(scene.objects))).encode())
        found.update(scene.pixels.tobytes())
    return found.hexdigest()


@pytest.mark.slow
def test_the_same_in_every_process() -> None:
    program = "from tests.data.test_scenes import digest; print(digest())"
    environment = {**os.environ, "PYTHONHASHSEED": "4242"}
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == digest()


def test_seed_and_index_both_matter() -> None:
    keys = {(seed, index): draw_scene(seed, index).pixels.tobytes() for seed in (0, 1) for index in range(5)}
    assert len(set(keys.values())) == 10


def test_size_changes_the_drawing_only() -> None:
    small, large = draw_scene(0, 5, size=16), draw_scene(0, 5, size=64)
    assert (small.objects, small.captions, small.told) == (large.objects, large.captions, large.told)
    assert small.pixels.shape == (16, 16, 3)
    assert large.pixels.shape == (64, 64, 3)
    assert large.pixels.dtype == np.uint8


def test_no_graph_occurs_twice() -> None:
    taken = [scene for split in SPLITS for scene in MANY.scenes(split)]
    assert [len(MANY.scenes(split)) for split in SPLITS] == [1200, 150, 150]
    assert len({scene.objects for scene in taken}) == len(taken)
    # Without the rule some would: the test is not empty.
    last = max(scene.index for scene in taken)
    indices = {scene.index for scene in taken}
    assert len(indices) == len(taken)
    passed_over = [draw_scene(3, i, 16, 2).objects for i in range(last) if i not in indices]
    repeated = {scene.objects for scene in taken} & set(passed_over)
    assert repeated


def test_the_graph_decides_the_split() -> None:
    for split in SPLITS:
        for scene in FEW.scenes(split):
            assert graph_split(scene.objects) == split
            assert draw_scene(1, scene.index).objects == scene.objects
    shares = [graph_split(draw_scene(0, i, 16).objects) for i in range(600)]
    assert 0.74 < shares.count("train") / 600 < 0.86
    assert 0.05 < shares.count("val") / 600 < 0.15
    assert 0.05 < shares.count("test") / 600 < 0.15


def test_more_scenes_extend_the_same_collection() -> None:
    for split in SPLITS:
        more = SceneSource(seed=1, num_train=240, num_val=45, num_test=60)
        few, many = FEW.table(split), more.table(split)
        n, c = len(few.image_ids), len(few.captions)
        assert many.image_ids[:n] == few.image_ids
        assert many.captions[:c] == few.captions
        assert many.caption_ids[:c] == few.caption_ids
        for a, b in zip(FEW.images(split), more.images(split), strict=False):
            np.testing.assert_array_equal(a, b)
        assert FEW.name == more.name  # banks are shared between them


def test_scenes_have_two_to_max_objects_ordered_by_place() -> None:
    counts = set()
    for index in range(60):
        objects = draw_scene(0, index, 16, max_objects=4).objects
        places = [PLACES.index(thing.place or "") for thing in objects]
        assert places == sorted(set(places))
        counts.add(len(objects))
    assert counts == {2, 3, 4}


def test_ids_and_pairing() -> None:
    table, taken = FEW.table("val"), FEW.scenes("val")
    assert table.image_ids == [str(scene.index) for scene in taken]
    assert table.caption_ids[5:7] == [f"{taken[1].index}.0", f"{taken[1].index}.1"]
    assert table.captions[5:10] == list(taken[1].captions)
    np.testing.assert_array_equal(table.caption_image, np.repeat(np.arange(30), 5))


def test_captions_use_the_vocabulary_and_only_it() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    used = {word for caption in MANY.table("train").captions for word in caption.split()}
    assert used == set(words)


def test_captions_mention_exactly_the_told_facts() -> None:
    """Reads captions back with a parser of its own."""

    def spoken(caption: str, synonyms: dict[str, tuple[str, ...]]) -> list[str]:
        meaning = {word: name for name, words in synonyms.items() for word in words}
        return [meaning[word] for word in caption.split() if word in meaning]

    for scene in FEW.scenes("train"):
        for caption, told in zip(scene.captions, scene.told, strict=True):
            assert spoken(caption, SHAPES) == [thing.shape for thing in told if thing.shape]
            assert spoken(caption, COLOURS) == [thing.colour for thing in told if thing.colour]
            assert spoken(caption, SIZES) == [thing.size for thing in told if thing.size]
            places = re.findall(
                r"(?:at|in|on) the ((?:(?:top|bottom) (?:left|right))|top|left|centre|right|bottom)", caption
            )
            assert places == [thing.place for thing in told if thing.place]


def test_mentioned_facts_are_facts_of_the_scene() -> None:
    parts = 0
    for scene in FEW.scenes("train"):
        whole = fact_counts([scene.objects])
        told = fact_counts(scene.told)
        assert len(scene.captions) == len(scene.told) == 5
        assert (told <= whole).all()
        assert (told.sum(axis=1) > 0).all()
        parts += int((told.sum(axis=1) < whole.sum()).sum())
    assert parts > 300  # of 600 captions: most tell less than there is to see


def test_fact_counts_of_one_object() -> None:
    counts = fact_counts(
        [(RED_CIRCLE,), (SceneObject("circle", None, None, "top"),), (SceneObject(None, "red", None, None),)]
    )
    # 22 values (5 + 6 + 2 + 9) and every pair of values of two fields.
    assert counts.shape == (3, 22 + 5 * 6 + 5 * 2 + 5 * 9 + 6 * 2 + 6 * 9 + 2 * 9)
    assert counts.max() == 1
    assert counts.sum(axis=1).tolist() == [4 + 6, 2 + 1, 1]
    assert (counts[1:] <= counts[0]).all()


def test_fact_counts_add_over_objects() -> None:
    one, other, both, twice = fact_counts(
        [(RED_CIRCLE,), (BLUE_SQUARE,), (RED_CIRCLE, BLUE_SQUARE), (RED_CIRCLE, RED_CIRCLE)]
    )
    np.testing.assert_array_equal(both, one + other)
    np.testing.assert_array_equal(twice, 2 * one)
    # Both are small: the one fact they share, counted twice.
    assert int(np.minimum(one, other).sum()) == 1
    assert int(both.max()) == 2


def test_facts_bind_values_to_objects() -> None:
    swapped = (RED_CIRCLE._replace(colour="blue"), BLUE_SQUARE._replace(colour="red"))
    facts = fact_counts([(RED_CIRCLE, BLUE_SQUARE), swapped])
    # Of 20 facts each, the 8 values are shared, so are the 6 pairs without colour, and small with red and with blue.
    relevance = FactRelevance(facts[:1], facts[1:]).rows("image", "text", slice(0, 1))
    assert relevance.item() == pytest.approx(16 / 24)


def test_relevance_to_captions_by_hand() -> None:
    told = [
        (BLUE_SQUARE, RED_CIRCLE),  # everything, in another order
        (RED_CIRCLE,),  # half
        (SceneObject("circle", None, None, None), SceneObject("square", None, None, None)),  # 2 of 20 facts
        (SceneObject("cross", "white", "large", "left"),),  # nothing of it
    ]
    relevance = FactRelevance(fact_counts([(RED_CIRCLE, BLUE_SQUARE)]), fact_counts(told))
    assert relevance.rows("image", "text", slice(0, 1))[0].tolist() == pytest.approx([1, 0.5, 0.1, 0])


def test_relevance_of_the_source_is_that_of_scenes_and_told(tmp_path: Path) -> None:
    relevance = FEW.relevance("test", tmp_path)
    taken = FEW.scenes("test")
    assert (relevance.num_images, relevance.num_texts) == (30, 150)
    images = fact_counts([scene.objects for scene in taken])
    told = fact_counts([part for scene in taken for part in scene.told])
    expected = np.array([[np.minimum(i, t).sum() / np.maximum(i, t).sum() for t in told] for i in images])
    np.testing.assert_allclose(relevance.rows("image", "text", slice(0, 30)).numpy(), expected, rtol=1e-6)
    # A caption is more relevant to its own image than to others on average.
    own = expected[np.repeat(np.arange(30), 5), np.arange(150)]
    assert own.mean() > 3 * expected.mean()


def test_every_appearance_looks_different() -> None:
    # The same jitter for all, so that what differs comes from the graph.
    pictures = {}
    for shape, colour, size, place in product(SHAPES, COLOURS, SIZES, PLACES):
        thing = SceneObject(shape, colour, size, place)
        pictures[thing] = scenes._paint((thing,), 32, np.random.default_rng(0)).tobytes()
    assert len(set(pictures.values())) == 5 * 6 * 2 * 9


def test_pictures_of_different_graphs_differ() -> None:
    pictures = [image.tobytes() for split in SPLITS for image in FEW.images(split)]
    assert len(set(pictures)) == len(pictures)


def test_numbers_must_be_positive() -> None:
    for argument in ["num_train", "num_val", "num_test", "size"]:
        with pytest.raises(ValueError, match=r"scenes need positive numbers, got .*0"):
            SceneSource(**{argument: 0})


def test_objects_must_fit() -> None:
    for objects in [1, 10]:
        with pytest.raises(ValueError, match=f"max_objects must lie between 2 and 9, got {objects}"):
            SceneSource(max_objects=objects)


def test_name_holds_what_decides_the_content() -> None:
    sources = [SceneSource(), SceneSource(seed=1), SceneSource(size=64), SceneSource(max_objects=2)]
    assert len({source.name for source in sources}) == 4
