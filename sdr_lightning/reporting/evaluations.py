"""Evaluations that ``sdr evaluate`` wrote: read, checked, and kept apart where they answer different questions."""

import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.functional.bootstrap import Floats, by_image
from sdr_lightning.paths import read_json
from sdr_lightning.results.fields import Fields
from sdr_lightning.results.schema import RECALLS

_RECALL = re.compile(r"(i2t|t2i)_R@(\d+)")
_NDCG = re.compile(r"(i2t|t2i|i2i|t2t|i2it|t2it)_(NDCG\w*)@(\d+)")
_NAME = re.compile(r"([^=/,]+)=(.+)")
_TOLERANCE = 1e-4  # percent; one query of a million is as much


@dataclass(frozen=True)
class Terms:
    """What was asked: numbers may be set side by side only where all of it agrees.

    Attributes:
        protocol: ``clean`` or ``paper``.
        split: of the data; None where the data have none.
        images: number of images N.
        texts: number of captions C.
        data: fingerprint of the items and of which caption belongs to which image.
        ties: rule for equal scores.
        siblings: ``keep`` or ``exclude``, what happens to the other captions of a query's image.
        folds: number of folds whose recall was averaged; None without.
        relevance: fingerprint of the relevance that NDCG was taken with; None without.
    """

    protocol: str
    split: str | None
    images: int
    texts: int
    data: str
    ties: str
    siblings: str
    folds: int | None
    relevance: str | None


@dataclass(frozen=True)
class Evaluation:
    """One file of metrics, and what its queries add up to image by image.

    Attributes:
        path: the file, as it was given.
        metrics: by name; recall and NDCG in percent.
        terms: what was asked.
        queries: for each metric that is a mean over queries, the sums and numbers (N,) of its values by image.
        relevance_kind: for instance ``rouge-l``; empty without relevance.
        code: version and commit of the program, in words.
        inputs: SHA-256 of the files it was made from, by name.
    """

    path: Path
    metrics: dict[str, float]
    terms: Terms
    queries: dict[str, tuple[Floats, Floats]]
    relevance_kind: str
    code: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class System:
    """A name and the evaluations of one model or, trained with several seeds, of one recipe."""

    name: str
    evaluations: tuple[Evaluation, ...]


def load_systems(arguments: Sequence[str]) -> tuple[System, ...]:
    """Read what is to be set side by side.

    Args:
        arguments: each ``FILE``, or ``NAME=FILE`` or ``NAME=FILE,FILE`` with one file per seed. Without a name
            a system is called as its file is, or as its folder if that is ``metrics.json``, with as many
            folders before it as tell it from the others.

    Raises:
        ValueError: a name or a seed given twice, a malformed file, or evaluations of different terms.
    """
    given = [_split(argument) for argument in arguments]
    systems = tuple(
        System(name, tuple(load_evaluation(path) for path in paths))
        for name, (_, paths) in zip(_names(given), given, strict=True)
    )
    evaluations = list(chain.from_iterable(system.evaluations for system in systems))
    for other in evaluations[1:]:
        _check_comparable(evaluations[0], other)
    return systems


def load_evaluation(path: Path) -> Evaluation:
    """Read ``metrics.json`` and, beside it, ``metrics.queries.npz``.

    Raises:
        ValueError: a file is missing or malformed, or the two are not of the same evaluation.
    """
    values = read_json(path, "what sdr evaluate --output wrote")
    if not isinstance(values, dict) or not isinstance(values.get("meta"), dict):
        raise ValueError(
            f"{path} is not an evaluation (it has no object 'meta'): give what sdr evaluate --output wrote"
        )
    metrics = Fields({key: value for key, value in values.items() if key != "meta"}, str(path)).table()
    meta = Fields(values["meta"], f"{path}: meta")
    relevance = meta.optional_child("relevance")
    terms = Terms(
        protocol=meta.text("protocol"),
        split=meta.optional_text("split"),
        images=meta.integer("images"),
        texts=meta.integer("texts"),
        data=meta.text("data"),
        ties=meta.text("ties"),
        siblings=meta.text("siblings"),
        folds=meta.optional_integer("folds"),
        relevance=relevance.text("fingerprint") if "relevance" in meta else None,
    )
    code = meta.optional_child("code")
    changed = " with changes" if code.flag("dirty", default=False) else ""
    return Evaluation(
        path=path,
        metrics=metrics,
        terms=terms,
        queries=_queries(path, metrics, terms),
        relevance_kind=relevance.text("kind") if "relevance" in meta else "",
        code=f"{code.text('version', '')} {code.text('commit', '')[:10]}{changed}".strip(),
        inputs=meta.optional_child("inputs").words(),
    )


def in_order(metrics: set[str]) -> list[str]:
    """Recall, its sum, NDCG by gain, task and cut-off, then everything else by name."""
    tasks = ("i2t", "t2i", "i2i", "t2t", "i2it", "t2it")

    def position(metric: str) -> tuple[int, str, int, int, str]:
        if match := _RECALL.fullmatch(metric):
            return 0, "", tasks.index(match[1]), int(match[2]), ""
        if match := _NDCG.fullmatch(metric):
            return 2, match[2], tasks.index(match[1]), int(match[3]), ""
        return (1 if metric == "rsum" else 3), "", 0, 0, metric

    return sorted(metrics, key=position)


def _split(argument: str) -> tuple[str | None, list[Path]]:
    """A name, None if there is none, and paths; a file whose own name has = or a comma is taken as it is."""
    name, files = None, argument
    if not Path(argument).is_file() and (match := _NAME.fullmatch(argument)):
        name, files = match[1], match[2]
    paths = [Path(files)] if Path(files).is_file() else [Path(file) for file in files.split(",")]
    for path, times in Counter(paths).items():
        if times > 1:
            raise ValueError(f"{argument}: {path} is given {times} times; give one file per seed")
    return name, paths


def _names(given: Sequence[tuple[str | None, list[Path]]]) -> list[str]:
    chosen = Counter(name for name, _ in given if name is not None)
    for name, times in chosen.items():
        if times > 1:
            raise ValueError(f"the name {name!r} is given {times} times; give NAME=FILE,FILE for several seeds of one")
    parts = [list(paths[0].absolute().with_suffix("").parts[1:]) for _, paths in given]
    parts = [part[:-1] if part[-1] == "metrics" and len(part) > 1 else part for part in parts]
    for depth in range(1, max(map(len, parts)) + 1):
        names = [name or "/".join(part[-depth:]) for (name, _), part in zip(given, parts, strict=True)]
        if len(set(names)) == len(names):
            return names
    # The same file as two systems: only a number can tell them apart.
    names = [name or part[-1] for (name, _), part in zip(given, parts, strict=True)]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]


def _check_comparable(first: Evaluation, other: Evaluation) -> None:
    for field in fields(Terms):
        one, two = getattr(first.terms, field.name), getattr(other.terms, field.name)
        if one != two:
            raise ValueError(
                f"{first.path} and {other.path} answer different questions: {field.name} is {one!r} in the first and "
                f"{two!r} in the second; run sdr evaluate alike on both"
            )


def _queries(path: Path, metrics: dict[str, float], terms: Terms) -> dict[str, tuple[Floats, Floats]]:
    """By metric the sums and numbers (N,) of its queries by image, after a check that they give the metric."""
    source = path.with_suffix(".queries.npz")
    arrays = _arrays(source)

    def array(name: str) -> NDArray[Any]:
        if name not in arrays:
            raise ValueError(f"{source} has no array {name!r}: run sdr evaluate again")
        return arrays[name]

    text_image = array("text_image")
    if (
        text_image.shape != (terms.texts,)
        or text_image.dtype.kind not in "iu"
        or (text_image.size and not 0 <= int(text_image.min()) <= int(text_image.max()) < terms.images)
    ):
        raise ValueError(
            f"{source}: 'text_image' must be {terms.texts} integers in [0, {terms.images}), as {path.name} says, not "
            f"{text_image.shape} {text_image.dtype}: run sdr evaluate again"
        )
    images = np.arange(terms.images)
    queries = {}
    for metric, stated in metrics.items():
        if match := _RECALL.fullmatch(metric):
            name, kinds = f"{match[1]}_rank", "iu"
        elif match := _NDCG.fullmatch(metric):
            name, kinds = metric, "f"
        else:
            continue
        values = array(name)
        # One query per caption; the paper's protocol asks with the first caption of each image alone.
        asked = [images] if match[1].startswith("i") else [text_image.astype(np.int64), images]
        image = next((image for image in asked if values.shape == image.shape), None)
        if image is None or values.dtype.kind not in kinds:
            expected = " or ".join(str(len(image)) for image in asked)
            raise ValueError(
                f"{source}: {name!r} must be {expected} {'integers' if kinds == 'iu' else 'floats'}, one per query, "
                f"not {values.shape} {values.dtype}: run sdr evaluate again"
            )
        percent = 100.0 * (values < int(match[2])) if kinds == "iu" else values
        sums, counts = by_image(percent.astype(np.float64), image, terms.images)
        _check_same(path, source, metric, stated, float(sums.sum() / counts.sum()) if counts.any() else math.nan)
        queries[metric] = sums, counts
    if "rsum" in metrics and all(recall in queries for recall in RECALLS):
        _check_same(path, source, "rsum", metrics["rsum"], math.fsum(metrics[recall] for recall in RECALLS))
    return queries


def _check_same(path: Path, source: Path, metric: str, stated: float, found: float) -> None:
    if not math.isclose(stated, found, rel_tol=0, abs_tol=_TOLERANCE):
        raise ValueError(
            f"{source} is not of the same evaluation as {path}: {metric} is {found:.4f} by its queries, {stated:.4f} in "
            f"{path.name}; run sdr evaluate again"
        )


def _arrays(source: Path) -> dict[str, NDArray[Any]]:
    if not source.is_file():
        raise ValueError(f"no queries at {source}, which an interval is made from: run sdr evaluate again")
    try:
        loaded = np.load(source, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("one array, not an archive of them")
        with loaded:
            return dict(loaded)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source} is not an archive of plain arrays ({error}): run sdr evaluate again") from error
