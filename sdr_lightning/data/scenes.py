"""Scenes: a generated data set of drawn objects with five captions each and scene graphs.

A scene is a pure function of (seed, index). Its graph (shape, colour, size and place of every object) determines the split,
so test graphs never occur in training, and gives true graded relevance between any two items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sdr_lightning.data.images import Images, InMemory, Pixels
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.identity import stable_hash
from sdr_lightning.metrics.relevance import FactRelevance, Relevance

SHAPES = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "cross": ("cross", "plus"),
    "diamond": ("diamond", "rhombus"),
}
COLOURS = {
    "red": ("red", "scarlet"),
    "green": ("green",),
    "blue": ("blue", "azure"),
    "yellow": ("yellow", "golden"),
    "purple": ("purple", "violet"),
    "white": ("white",),
}
SIZES = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
_RGB = {
    "red": (220, 50, 47),
    "green": (60, 180, 75),
    "blue": (65, 105, 235),
    "yellow": (245, 205, 50),
    "purple": (150, 70, 190),
    "white": (240, 240, 240),
}
_GROUND = (40, 40, 44)
_OPENINGS = ("", "there is", "i see", "a picture of", "this shows")
_JOINTS = ("and", "with", "next to", "beside")
_UNNAMED = ("object", "thing", "figure")
_AT = ("at the", "in the", "on the")
_CAPTIONS_PER_SCENE = 5
_TRAIN_SHARE = 80  # of 100 graphs, 10 each for val and test


class SceneObject(NamedTuple):
    """One object of a scene; a value is None if a caption does not mention it, but never in the scene's own graph."""

    shape: str | None
    colour: str | None
    size: str | None
    place: str | None


@dataclass(frozen=True)
class Scene:
    """A drawn scene with its captions.

    Attributes:
        index: index of the scene under its seed.
        objects: the scene graph, ordered by place.
        pixels: (S, S, 3) uint8.
        captions: five captions.
        told: for each caption, the part of the graph that it mentions.
    """

    index: int
    objects: tuple[SceneObject, ...]
    pixels: Pixels
    captions: tuple[str, ...]
    told: tuple[tuple[SceneObject, ...], ...]


def draw_scene(seed: int, index: int, size: int = 32, max_objects: int = 3) -> Scene:
    """Generate one scene.

    Args:
        seed: seed of the collection.
        index: index of the scene.
        size: S, side of the image in pixels.
        max_objects: maximum number of objects; the minimum is 2.

    Returns:
        The scene, the same on every machine.
    """
    generator = np.random.default_rng([seed, index])
    objects = _sample_graph(generator, max_objects)
    pixels = _paint(objects, size, generator)
    told, captions = [], []
    for _ in range(_CAPTIONS_PER_SCENE):
        part = _choose_facts(objects, generator)
        told.append(part)
        captions.append(_say(part, generator))
    return Scene(index, objects, pixels, tuple(captions), tuple(told))


def graph_split(objects: tuple[SceneObject, ...]) -> Split:
    """Return the split of a scene graph; it depends on the graph only."""
    share = stable_hash("scene split", *objects) % 100
    if share < _TRAIN_SHARE:
        return "train"
    return "val" if share < (100 + _TRAIN_SHARE) // 2 else "test"


def vocabulary() -> list[str]:
    """Return all words of captions, sorted."""
    phrases = [*_OPENINGS, *_JOINTS, *_UNNAMED, *_AT, *PLACES, "a"]
    phrases += [word for group in (SHAPES, COLOURS, SIZES) for words in group.values() for word in words]
    return sorted({word for phrase in phrases for word in phrase.split()})


class SceneSource(Source):
    """Generated captioned scenes with true graded relevance.

    Scenes are taken in order of index, skipping repeated graphs. The first n training scenes do not depend on `num_train`, so
    teachers can be trained on more scenes than students.

    Args:
        seed: seed of the collection.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        num_test: number of test scenes.
        size: side of the images in pixels.
        max_objects: maximum number of objects per scene, from 2 to 9; the minimum is 2.

    Raises:
        ValueError: a number is not positive, max_objects is out of range, or there are fewer graphs than scenes.
    """

    relevance_description = (
        "true relevance from the scene graphs: weighted Jaccard similarity of the facts that two items show or tell"
    )

    def __init__(
        self,
        seed: int = 0,
        num_train: int = 1000,
        num_val: int = 300,
        num_test: int = 300,
        size: int = 32,
        max_objects: int = 3,
    ) -> None:
        if min(num_train, num_val, num_test, size) < 1:
            raise ValueError(f"scenes need positive numbers, got {num_train}, {num_val}, {num_test}, size {size}")
        if not 2 <= max_objects <= len(PLACES):
            raise ValueError(f"max_objects must lie between 2 and {len(PLACES)}, got {max_objects}")
        self.name = f"scenes-{seed}-{size}px-{max_objects}"
        self._arguments = (seed, num_train, num_val, num_test, size, max_objects)

    def scenes(self, split: Split) -> list[Scene]:
        """Return the scenes of a split, in order of index."""
        return _collection(*self._arguments)[split]

    def table(self, split: Split) -> CaptionTable:
        """Return images and captions; scene ``i`` has the image id ``i`` and the caption ids ``i.0`` to ``i.4``."""
        scenes = self.scenes(split)
        return CaptionTable(
            self.name,
            split,
            [str(scene.index) for scene in scenes],
            [caption for scene in scenes for caption in scene.captions],
            [f"{scene.index}.{k}" for scene in scenes for k in range(len(scene.captions))],
            np.repeat(np.arange(len(scenes)), _CAPTIONS_PER_SCENE),
        )

    def images(self, split: Split) -> Images:
        """Return the drawn images."""
        return InMemory([scene.pixels for scene in self.scenes(split)])

    def relevance(self, split: Split, cache: Path) -> Relevance:
        """Return the weighted Jaccard similarity of facts; cheap, so not cached."""
        scenes = self.scenes(split)
        return FactRelevance(
            fact_counts([scene.objects for scene in scenes]),
            fact_counts([told for scene in scenes for told in scene.told]),
        )


def fact_counts(graphs: Sequence[tuple[SceneObject, ...]]) -> NDArray[np.int64]:
    """Count each fact in each graph.

    A fact is a value of one object (shape, colour, size or place) or a pair of values of one object. Pairs bind the values: a
    red circle beside a blue square differs from a blue circle beside a red square.

    Args:
        graphs: n graphs or parts of graphs.

    Returns:
        (n, F) int64 counts.
    """
    columns = {fact: column for column, fact in enumerate(_all_facts())}
    counts = np.zeros((len(graphs), len(columns)), dtype=np.int64)
    for row, graph in enumerate(graphs):
        for thing in graph:
            values = [f"{field}={value}" for field, value in thing._asdict().items() if value is not None]
            for fact in (*((value,) for value in values), *combinations(values, 2)):
                counts[row, columns[fact]] += 1
    return counts


def _all_facts() -> list[tuple[str, ...]]:
    fields = [
        [f"{field}={value}" for value in values]
        for field, values in zip(SceneObject._fields, (SHAPES, COLOURS, SIZES, PLACES), strict=True)
    ]
    singles = [(value,) for field in fields for value in field]
    pairs = [(a, b) for first, second in combinations(fields, 2) for a in first for b in second]
    return [*singles, *pairs]


@lru_cache(maxsize=4)
def _collection(
    seed: int, num_train: int, num_val: int, num_test: int, size: int, max_objects: int
) -> dict[Split, list[Scene]]:
    wanted: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test}
    scenes: dict[Split, list[Scene]] = {"train": [], "val": [], "test": []}
    seen: set[tuple[SceneObject, ...]] = set()
    index = 0
    limit = 1000 + 100 * sum(wanted.values())
    while any(len(scenes[split]) < wanted[split] for split in wanted):
        if index == limit:
            found = {split: len(scenes[split]) for split in wanted}
            raise ValueError(f"{limit} scenes hold only {found} different graphs: ask for fewer, or raise max_objects")
        graph = _sample_graph(np.random.default_rng([seed, index]), max_objects)
        split = graph_split(graph)
        if graph not in seen and len(scenes[split]) < wanted[split]:
            scenes[split].append(draw_scene(seed, index, size, max_objects))
        seen.add(graph)
        index += 1
    return scenes


def _sample_graph(generator: np.random.Generator, max_objects: int) -> tuple[SceneObject, ...]:
    count = int(generator.integers(2, max_objects + 1))
    places = np.sort(generator.choice(len(PLACES), size=count, replace=False))
    return tuple(
        SceneObject(_pick(SHAPES, generator), _pick(COLOURS, generator), _pick(SIZES, generator), PLACES[place])
        for place in places
    )


def _pick(values: Sequence[str] | dict[str, tuple[str, ...]], generator: np.random.Generator) -> str:
    return list(values)[int(generator.integers(len(values)))]


def _paint(objects: tuple[SceneObject, ...], size: int, generator: np.random.Generator) -> Pixels:
    # The background is constant, so that scenes can only be distinguished by their graphs.
    image = Image.new("RGB", (size, size), _GROUND)
    canvas = ImageDraw.Draw(image)
    cell = size / 3
    for thing in objects:
        assert thing.shape is not None
        assert thing.colour is not None
        assert thing.place is not None
        row, column = divmod(PLACES.index(thing.place), 3)
        radius = cell * (0.46 if thing.size == "large" else 0.28)
        wiggle = generator.uniform(-0.08, 0.08, size=2) * cell
        x, y = (column + 0.5) * cell + wiggle[0], (row + 0.5) * cell + wiggle[1]
        _paint_shape(canvas, thing.shape, x, y, radius, _RGB[thing.colour])
    return np.asarray(image).copy()


def _paint_shape(
    canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, int, int]
) -> None:
    if shape == "circle":
        canvas.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    elif shape == "square":
        canvas.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=colour)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + 0.8 * r), (x + r, y + 0.8 * r)], fill=colour)
    elif shape == "diamond":
        canvas.polygon([(x, y - r), (x + 0.7 * r, y), (x, y + r), (x - 0.7 * r, y)], fill=colour)
    else:
        canvas.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=colour)
        canvas.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=colour)


def _choose_facts(objects: tuple[SceneObject, ...], generator: np.random.Generator) -> tuple[SceneObject, ...]:
    told = generator.random(len(objects)) < 0.75
    if not told.any():
        told[generator.integers(len(objects))] = True
    parts = []
    for thing, is_told in zip(objects, told, strict=True):
        if is_told:
            keep = generator.random(4) < (0.85, 0.8, 0.5, 0.6)  # shape, colour, size, place
            if not keep.any():
                keep[generator.integers(4)] = True
            parts.append(SceneObject(*(value if kept else None for value, kept in zip(thing, keep, strict=True))))
    order = generator.permutation(len(parts))
    return tuple(parts[i] for i in order)


def _say(told: tuple[SceneObject, ...], generator: np.random.Generator) -> str:
    opening, joint, at = _pick(_OPENINGS, generator), _pick(_JOINTS, generator), _pick(_AT, generator)
    phrases = []
    for thing in told:
        words = ["a"]
        if thing.size:
            words.append(_pick(SIZES[thing.size], generator))
        if thing.colour:
            words.append(_pick(COLOURS[thing.colour], generator))
        words.append(_pick(SHAPES[thing.shape], generator) if thing.shape else _pick(_UNNAMED, generator))
        if thing.place:
            words += [at, thing.place]
        phrases.append(" ".join(words))
    return f"{opening} {f' {joint} '.join(phrases)}".strip()
