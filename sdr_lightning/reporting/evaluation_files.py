"""Read the files that ``sdr evaluate --output`` writes, and check that they are comparable."""

import math
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.functional.bootstrap import Floats, by_image
from sdr_lightning.metrics.graded import TASKS
from sdr_lightning.paths import read_json, read_yaml
from sdr_lightning.results.codec import from_json
from sdr_lightning.results.fields import Fields
from sdr_lightning.results.schema import RECALLS

_RECALL = re.compile(r"(i2t|t2i)_R@(\d+)")
_NDCG = re.compile(rf"({'|'.join(TASKS)})_(NDCG\w*)@(\d+)")
_NAME = re.compile(r"([^=/,]+)=(.+)")
_TOLERANCE = 1e-4  # percent: one query of a million


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings that must be equal for evaluations to be comparable.

    Attributes:
        protocol: ``clean`` or ``paper``.
        split: split of the data; None if unknown.
        images: number of images N.
        texts: number of captions C.
        data: fingerprint of the items and of the image of each caption.
        ties: rule for equal scores.
        siblings: ``keep`` or ``exclude`` other captions of a query's image.
        folds: number of folds over which recall is averaged; None without folds.
        relevance: fingerprint of the relevance for NDCG; None without relevance.
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
class Training:
    """How an evaluated model was trained, as stated with ``sdr evaluate --training``.

    Attributes:
        data: the training data.
        model: the encoders.
        noise: meaning of the corruption of the training data, such as ``mismatch, caption level``; ``none`` for clean data.
        ratio: share of corrupted items, in [0, 1].
        seed: random seed.
        trials: number of settings that were tried, 1 if there was no search.
        command: command that trains the model.

    Raises:
        ValueError: a ratio outside [0, 1], or no trial.
    """

    data: str = ""
    model: str = ""
    noise: str = ""
    ratio: float | None = None
    seed: int | None = None
    trials: int | None = None
    command: str = ""

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must lie in [0, 1], got {self.ratio:g}")
        if self.trials is not None and self.trials < 1:
            raise ValueError(f"trials must be at least 1, got {self.trials}")


def read_training(path: Path) -> Training:
    """Read the description of a training from a YAML file.

    Raises:
        ValueError: not YAML, an unknown key, or a value of another type or out of range; the message starts with the file.
    """
    values = read_yaml(path, "description of a training")
    known = [field.name for field in fields(Training)]
    unknown = sorted(map(str, set(values) - set(known))) if isinstance(values, dict) else []
    if unknown:
        raise ValueError(f"{path} has an unknown key {unknown[0]!r}: expected some of {', '.join(known)}")
    return from_json(Training, values, str(path))


@dataclass(frozen=True)
class EvaluationFile:
    """Metrics of one evaluation, and sums over the queries of each image for the bootstrap.

    Attributes:
        path: the file, as given.
        metrics: value by name; recall and NDCG in percent.
        settings: settings of the evaluation.
        queries: by metric that is a mean over queries: sums and numbers (N,) of query values by image.
        relevance_kind: such as ``rouge-l``; empty without relevance.
        code: version and commit of the program.
        inputs: SHA-256 of the input files by name.
        training: how the model was trained, as far as it is stated.
        corruption: what was corrupted in the test data, in words; empty for clean data.
    """

    path: Path
    metrics: dict[str, float]
    settings: EvaluationSettings
    queries: dict[str, tuple[Floats, Floats]]
    relevance_kind: str
    code: str
    inputs: dict[str, str]
    training: Training = Training()
    corruption: str = ""


@dataclass(frozen=True)
class System:
    """A named system: one evaluation per training seed, in the order of the seeds where all files state theirs."""

    name: str
    evaluations: tuple[EvaluationFile, ...]


def load_systems(arguments: Sequence[str], comparable: bool = True) -> tuple[System, ...]:
    """Read the systems to compare.

    Args:
        arguments: each ``FILE``, ``NAME=FILE`` or ``NAME=FILE,FILE`` with one file per seed. The default name is the
            file name without suffix (for ``metrics.json``, the folder), with as many parent folders as needed to be
            unique.
        comparable: whether all systems must have the same settings, and not only the files of each.

    Raises:
        ValueError: a name, a file or the seed of a system is repeated, a file is malformed, or settings differ.
    """
    given = [_split(argument) for argument in arguments]
    systems = tuple(_system(name, paths) for name, (_, paths) in zip(_names(given), given, strict=True))
    evaluations = [system.evaluations for system in systems]
    for first, *others in [tuple(chain.from_iterable(evaluations))] if comparable else evaluations:
        for other in others:
            _check_comparable(first, other)
    return systems


def _system(name: str, paths: Sequence[Path]) -> System:
    evaluations = [load_evaluation(path) for path in paths]
    seeds = {evaluation.path: evaluation.training.seed for evaluation in evaluations}
    if None not in seeds.values():  # systems are paired by position
        evaluations.sort(key=lambda evaluation: seeds[evaluation.path] or 0)
        for first, second in pairwise(evaluations):
            if seeds[first.path] == seeds[second.path]:
                raise ValueError(
                    f"{first.path} and {second.path} both have seed {seeds[first.path]}; give one file per seed of {name}"
                )
    return System(name, tuple(evaluations))


def load_evaluation(path: Path) -> EvaluationFile:
    """Read ``metrics.json`` and ``metrics.queries.npz`` of the same folder.

    Raises:
        ValueError: a file is missing or malformed, or the two files belong to different evaluations.
    """
    values = read_json(path, "a file of sdr evaluate --output")
    if not isinstance(values, dict) or not isinstance(values.get("meta"), dict):
        beside = path.with_name("metrics.json")
        give = (
            f"give {beside}"
            if beside.is_file()
            else "expected a file of sdr evaluate --output, or metrics.json of sdr test"
        )
        raise ValueError(f"{path} is not an evaluation (it has no object 'meta'): {give}")
    metrics = Fields({key: value for key, value in values.items() if key != "meta"}, str(path)).table()
    meta = Fields(values["meta"], f"{path}: meta")
    relevance = meta.optional_child("relevance")
    settings = EvaluationSettings(
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
    changed = " with uncommitted changes" if code.flag("dirty", default=False) else ""
    return EvaluationFile(
        path=path,
        metrics=metrics,
        settings=settings,
        queries=_queries(path, metrics, settings),
        relevance_kind=relevance.text("kind") if "relevance" in meta else "",
        code=f"{code.text('version', '')} {code.text('commit', '')[:10]}{changed}".strip(),
        inputs=meta.optional_child("inputs").words(),
        training=from_json(Training, values["meta"].get("training") or {}, f"{path}: meta: training"),
        corruption=_corruption(meta),
    )


def _corruption(meta: Fields) -> str:
    """The corruption of the test split in words, from the record of ``sdr test``."""
    under = meta.optional_child("evaluated_under").optional_child("test")
    parts = [Fields(part, f"{under.source}: imbalances") for part in under.items("imbalances")]
    return "; ".join(f"{part.text('kind')}, {part.integer('affected')} of {part.integer('of')} items" for part in parts)


def sort_metrics(metrics: set[str]) -> list[str]:
    """Sort metrics: recall, rsum, NDCG by gain, task and cut-off, then others by name."""

    def position(metric: str) -> tuple[int, str, int, int, str]:
        if match := _RECALL.fullmatch(metric):
            return 0, "", TASKS.index(match[1]), int(match[2]), ""
        if match := _NDCG.fullmatch(metric):
            return 2, match[2], TASKS.index(match[1]), int(match[3]), ""
        return (1 if metric == "rsum" else 3), "", 0, 0, metric

    return sorted(metrics, key=position)


def _split(argument: str) -> tuple[str | None, list[Path]]:
    """Split an argument into name (or None) and paths; an existing file may contain ``=`` or a comma in its name."""
    name, files = None, argument
    if not Path(argument).is_file() and (match := _NAME.fullmatch(argument)):
        name, files = match[1], match[2]
    paths = [Path(files)] if Path(files).is_file() else [Path(file) for file in files.split(",")]
    times = Counter(path.resolve() for path in paths)
    for path in paths:
        if times[path.resolve()] > 1:
            raise ValueError(f"{argument}: {path} is given {times[path.resolve()]} times; give one file per seed")
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
    # The same file is given twice: number the names.
    names = [name or part[-1] for (name, _), part in zip(given, parts, strict=True)]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]


def _check_comparable(first: EvaluationFile, other: EvaluationFile) -> None:
    for field in fields(EvaluationSettings):
        one, two = getattr(first.settings, field.name), getattr(other.settings, field.name)
        if one != two:
            raise ValueError(
                f"{first.path} and {other.path} are not comparable: {field.name} is {one!r} in the first and {two!r} in "
                "the second; run sdr evaluate with the same settings on both"
            )


def _queries(path: Path, metrics: dict[str, float], settings: EvaluationSettings) -> dict[str, tuple[Floats, Floats]]:
    """Sum the query values of each metric by image, and check that they reproduce the metric."""
    source = path.with_suffix(".queries.npz")
    arrays = _arrays(source)

    def array(name: str) -> NDArray[Any]:
        if name not in arrays:
            raise ValueError(f"{source} has no array {name!r}: run sdr evaluate again")
        return arrays[name]

    text_image = array("text_image")
    if (
        text_image.shape != (settings.texts,)
        or text_image.dtype.kind not in "iu"
        or (text_image.size and not 0 <= int(text_image.min()) <= int(text_image.max()) < settings.images)
    ):
        raise ValueError(
            f"{source}: 'text_image' must be {settings.texts} integers in [0, {settings.images}), as in {path.name}, "
            f"got {text_image.shape} {text_image.dtype}: run sdr evaluate again"
        )
    images = np.arange(settings.images)
    queries = {}
    for metric, stated in metrics.items():
        if match := _RECALL.fullmatch(metric):
            name, kinds = f"{match[1]}_rank", "iu"
        elif match := _NDCG.fullmatch(metric):
            name, kinds = metric, "f"
        else:
            continue
        values = array(name)
        # Text queries: one per caption, or one per image under the protocol paper.
        candidates = (
            [images] if match[1].removeprefix("centred_").startswith("i") else [text_image.astype(np.int64), images]
        )
        image = next((image for image in candidates if values.shape == image.shape), None)
        if image is None or values.dtype.kind not in kinds:
            expected = " or ".join(str(len(image)) for image in candidates)
            raise ValueError(
                f"{source}: {name!r} must be {expected} {'integers' if kinds == 'iu' else 'floats'}, one per query, "
                f"got {values.shape} {values.dtype}: run sdr evaluate again"
            )
        percent = 100.0 * (values < int(match[2])) if kinds == "iu" else values
        sums, counts = by_image(percent.astype(np.float64), image, settings.images)
        _check_same(path, source, metric, stated, float(sums.sum() / counts.sum()) if counts.any() else math.nan)
        queries[metric] = sums, counts
    if "rsum" in metrics and all(recall in queries for recall in RECALLS):
        _check_same(path, source, "rsum", metrics["rsum"], math.fsum(metrics[recall] for recall in RECALLS))
    return queries


def _check_same(path: Path, source: Path, metric: str, stated: float, found: float) -> None:
    if not math.isclose(stated, found, rel_tol=0, abs_tol=_TOLERANCE):
        raise ValueError(
            f"{source} and {path} are from different evaluations: {metric} is {found:.4f} from the queries and "
            f"{stated:.4f} in {path.name}; run sdr evaluate again"
        )


def _arrays(source: Path) -> dict[str, NDArray[Any]]:
    if not source.is_file():
        raise ValueError(f"no file {source}, which intervals are computed from: run sdr evaluate again")
    try:
        loaded = np.load(source, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        with loaded:
            return dict(loaded)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{source} is not an archive of plain arrays ({error}): run sdr evaluate again") from error
