"""Example retrievals: results of every method for the same queries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sdr_lightning.results.fields import Fields
from sdr_lightning.results.schema import Condition, Run, Study

DIRECTIONS = {"t2i": "text to image", "i2t": "image to text"}
SHOWN = 5
"""Number of results shown per query."""


class Query(NamedTuple):
    """A query: a text or the key of an image."""

    direction: str
    text: str | None
    image: str | None


@dataclass(frozen=True)
class Result:
    """A retrieved item: the key of an image or a text, and whether it belongs to the query."""

    image: str | None
    text: str | None
    score: float | None
    correct: bool


@dataclass(frozen=True)
class Example:
    """A query with the top results by method."""

    query: Query
    results: Mapping[str, tuple[Result, ...]]

    def images(self) -> set[str]:
        """Return the keys of all images."""
        shown = [self.query.image, *(result.image for results in self.results.values() for result in results)]
        return {image for image in shown if image is not None}


@dataclass(frozen=True)
class ExampleGroup:
    """Examples of one condition and seed."""

    condition: Condition
    seed: int
    examples: tuple[Example, ...]


def collect_examples(study: Study) -> tuple[ExampleGroup, ...]:
    """Collect examples for each imbalance, at its highest ratio and first seed with examples.

    Text queries come before image queries; among each, first those on which the candidate and the baseline differ.

    Args:
        study: the study; runs hold examples in ``examples.json``.

    Raises:
        ValueError: a file is malformed.
    """
    found: dict[str, ExampleGroup] = {}
    for condition in sorted(study.conditions, key=lambda c: -c.ratio):
        for seed in study.seeds:
            if condition.ratio > 0 and condition.imbalance not in found:
                runs = (study.runs.get((method, condition, seed)) for method in study.methods)
                examples = _align([run for run in runs if run is not None], study)
                if examples:
                    found[condition.imbalance] = ExampleGroup(condition, seed, examples)
    return tuple(found[imbalance] for imbalance in study.imbalances if imbalance in found)


def _align(runs: list[Run], study: Study) -> tuple[Example, ...]:
    answers: dict[Query, dict[str, tuple[Result, ...]]] = {}
    for run in runs:
        for query, results in _read(study.root / run.folder / "examples.json").items():
            answers.setdefault(query, {})[run.method] = results
    examples = [Example(query, results) for query, results in answers.items()]
    directions, pair = list(DIRECTIONS), (study.reference, study.candidate)
    return tuple(sorted(examples, key=lambda each: (directions.index(each.query.direction), _order(each, pair))))


def _order(example: Example, pair: tuple[str, str]) -> int:
    """Examples come first where one of a pair of methods finds a correct result, then where one of all methods does, then
    where all do, and last where none does."""
    hits = {method: any(result.correct for result in results) for method, results in example.results.items()}
    of_pair, of_all = {hits[method] for method in pair if method in hits}, set(hits.values())
    return 0 if len(of_pair) == 2 else 1 if len(of_all) == 2 else 2 if True in of_all else 3


def _read(path: Path) -> dict[Query, tuple[Result, ...]]:
    if not path.is_file():
        return {}
    answers = {}
    for i, item in enumerate(Fields.read(path).items("queries")):
        fields = Fields(item, f"{path}: query {i}")
        query = Query(fields.text("direction"), fields.optional_text("query_text"), fields.optional_text("query_image"))
        if query.direction not in DIRECTIONS:
            raise fields.complaint("direction", f"one of {', '.join(DIRECTIONS)}")
        answers[query] = tuple(_result(result, fields.source) for result in fields.items("results")[:SHOWN])
    return answers


def _result(item: object, source: str) -> Result:
    fields = Fields(item, f"{source}: results")
    return Result(
        image=fields.optional_text("image"),
        text=fields.optional_text("text"),
        score=fields.optional_number("score"),
        correct=fields.flag("correct", default=False),
    )
