"""The work of ``sdr evaluate``: read embeddings or scores, compute their metrics, print and write them."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor

from sdr_lightning.configure import build_data
from sdr_lightning.configure.metric_tables import print_metrics
from sdr_lightning.data.annotations import read_annotations
from sdr_lightning.functional.search import chunks
from sdr_lightning.metrics.evaluation import (
    Evaluation,
    checked_embeddings,
    cross_modal_folds,
    evaluate_queries,
    num_scores,
    undefined,
)
from sdr_lightning.metrics.extended import extended_positives
from sdr_lightning.metrics.files import (
    file_hash,
    is_evaluation,
    load_array,
    load_relevance,
    pairing_fingerprint,
    queries_path,
    record_path,
    save_evaluation,
)
from sdr_lightning.metrics.judgements import Judgements, agreement, read_judgements
from sdr_lightning.metrics.paper_protocol import evaluate_published, first_five
from sdr_lightning.metrics.relevance import Relevance
from sdr_lightning.metrics.scores import evaluate_scores
from sdr_lightning.metrics.structure import diagnostics, preserved
from sdr_lightning.paths import check_output
from sdr_lightning.progress import progress
from sdr_lightning.reporting.evaluation_files import read_training
from sdr_lightning.results.codec import to_json
from sdr_lightning.retrieval import load
from sdr_lightning.retrieval.collection import data_split, readable
from sdr_lightning.training.tracking.record import git, versions


def evaluate(options: Namespace, data_options: Sequence[str]) -> None:
    """Evaluate, print the metrics, and write them if ``--output`` is given.

    Args:
        options: parsed options of the command.
        data_options: options of the data, ``--data.NAME VALUE``.

    Raises:
        ValueError: a file is missing, malformed or of other items.
    """
    if options.output is not None:
        _check_output(options)
    _check_needs(options)
    training = None if options.training is None else to_json(read_training(options.training))
    notes: list[str] = []
    embeddings: tuple[Tensor, Tensor] | None
    known, model = None, None
    if options.model is not None:
        embeddings, known, model = _embedded(options, data_options)
    else:
        embeddings = _embeddings(options, notes)
    scores = _scores(options)
    if embeddings is None and scores is None:
        raise ValueError(
            "there is nothing to evaluate: give --model and --data, --image-embeddings and --text-embeddings, "
            "or --scores"
        )
    first = embeddings if embeddings is not None else scores
    assert first is not None
    sizes = (len(first[0]), len(first[1]))
    pairing = known or _pairing(options, *sizes, notes)
    if embeddings is not None:
        embeddings = embeddings[0], pairing.by_image(embeddings[1]).to(options.device)
    if scores is not None:
        if scores[0].shape != sizes:
            raise ValueError(f"image-to-text scores are {tuple(scores[0].shape)}, the embeddings are of {sizes}")
        scores = pairing.by_image(scores[0].T).T, pairing.by_image(scores[1])
    teachers = _teachers(options, {"image": sizes[0], "text": sizes[1]}, pairing)
    judgements = None if options.judgements is None else read_judgements(options.judgements)
    relevance = None
    if options.relevance is not None:
        relevance = load_relevance(options.relevance, pairing.text_image, sizes[0], pairing.captions, pairing.images)
    console = Console(stderr=True)
    evaluation = _evaluate(options, embeddings, scores, pairing.text_image, relevance, console)
    if embeddings is not None:
        evaluation.metrics.update(_of_the_space(options, embeddings, pairing, teachers, judgements))
    queries = pairing.text_image
    if options.protocol == "paper":
        queries = queries[first_five(queries, sizes[0])]
    notes += undefined(evaluation.metrics)
    meta = _meta(options, (sizes[0], len(queries)), pairing, relevance, normalised=embeddings is not None, notes=notes)
    if training is not None:
        meta["training"] = training
    meta |= {"model": model} if model is not None else {}
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if options.output is not None:  # before the table, whose reader may stop, as head does
        save_evaluation(options.output, evaluation.metrics, evaluation.queries, queries, meta)
    print_metrics(evaluation.metrics)
    if options.output is not None:
        print(f"{len(evaluation.metrics)} metrics in {options.output}")


class _Pairing(NamedTuple):
    text_image: Tensor  # (C,) row of the image of each caption
    captions: Sequence[str] | None = None
    images: Sequence[str] | None = None
    file_rows: Tensor | None = None  # (C,) row of each caption in the input arrays; None if equal

    def by_image(self, texts: Tensor) -> Tensor:
        """Reorder the rows of an input array to the order of the captions."""
        return texts if self.file_rows is None else texts[self.file_rows]


def _check_output(options: Namespace) -> None:
    """Check the outputs before the computation."""
    if options.output.suffix != ".json":
        raise ValueError(f"--output should end with .json, got {options.output}")
    reads = [*_inputs(options), options.judgements, options.relevance, options.training]
    if options.relevance is not None:
        reads.append(record_path(options.relevance))
    for output in (options.output, queries_path(options.output)):
        check_output(output, reads, is_evaluation)


def _check_needs(options: Namespace) -> None:
    """Check that what is asked for can be measured on what is given."""
    has_embeddings = options.model is not None or options.image_embeddings is not None
    structure = options.diagnostics or options.image_teacher is not None or options.text_teacher is not None
    if structure and not has_embeddings:
        raise ValueError("--diagnostics, --image-teacher and --text-teacher need embeddings, not scores")
    names_items = options.model is not None or options.annotations is not None
    if (options.judgements is not None or options.extended) and not (has_embeddings and names_items):
        raise ValueError("--judgements and --extended need embeddings and --annotations, which name the items")


def _inputs(options: Namespace) -> list[Path]:
    files = [
        options.data,
        options.image_embeddings,
        options.text_embeddings,
        options.annotations,
        options.text_to_image,
    ]
    files += [options.image_teacher, options.text_teacher, *(options.scores or [])]
    return [path for path in files if path is not None]


def _embedded(
    options: Namespace, data_options: Sequence[str]
) -> tuple[tuple[Tensor, Tensor], _Pairing, dict[str, str]]:
    """Embed a split by a trained model; with the pairing, and the model for the record."""
    model = load(options.model, options.device)
    if model.method is not None:
        raise ValueError("this model scores by a similarity of its own: evaluate it with sdr test")
    collection = data_split(build_data(["--data", str(options.data), *data_options]), options.split)
    batches = collection.inputs(model, chunks(len(collection.images), 64))
    parts = [torch.from_numpy(model.encode_inputs(readable(inputs))) for _, inputs in batches]
    texts = torch.from_numpy(model.encode_texts([item.caption for item in collection.captions]))
    caption_ids, image_ids = [item.id for item in collection.captions], [item.id for item in collection.images]
    pairing = _Pairing(collection.text_image, caption_ids, image_ids)
    record = {"source": str(options.model), "fingerprint": model.fingerprint()}
    return (torch.cat(parts).to(options.device), texts), pairing, record


def _embeddings(options: Namespace, notes: list[str]) -> tuple[Tensor, Tensor] | None:
    given = (options.image_embeddings, options.text_embeddings)
    if given == (None, None):
        return None
    if None in given:
        raise ValueError("embeddings of one modality alone: give both --image-embeddings and --text-embeddings")
    images, texts = (torch.from_numpy(load_array(path, "embeddings (items, d)", 2)) for path in given)
    if images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"image embeddings are {tuple(images.shape)} and text embeddings {tuple(texts.shape)}: they must be of one width"
        )
    for name, some in (("image", images), ("text", texts)):
        norms = torch.linalg.vector_norm(some[: 2**12].double(), dim=1)
        if bool(((norms - 1).abs() > 1e-2).any()):
            notes.append(
                f"{name} embeddings have norms from {norms.min():.4g} to {norms.max():.4g}; they are normalised"
            )
    return images.to(options.device), texts


def _scores(options: Namespace) -> tuple[Tensor, Tensor] | None:
    if options.scores is None:
        return None
    if len(options.scores) > 2:
        raise ValueError(f"--scores takes one file or two, image to text and text to image, got {len(options.scores)}")
    i2t, *others = (torch.from_numpy(load_array(path, "scores", 2)) for path in options.scores)
    t2i = others[0] if others else i2t.T
    if t2i.shape != i2t.T.shape:
        raise ValueError(
            f"image-to-text scores are {tuple(i2t.shape)}, so text-to-image scores must be {tuple(i2t.T.shape)}, not "
            f"{tuple(t2i.shape)}"
        )
    return i2t, t2i


def _pairing(options: Namespace, images: int, texts: int, notes: list[str]) -> _Pairing:
    ways = [options.annotations, options.captions_per_image, options.text_to_image]
    if sum(way is not None for way in ways) != 1:
        raise ValueError(
            "which caption is of which image? Give one of --annotations, --captions-per-image and --text-to-image"
        )
    if options.annotations is not None:
        annotations = read_annotations(options.annotations, options.split)
        table = annotations.table
        found = (len(table.image_ids), len(table.captions))
        if found != (images, texts):
            raise ValueError(
                f"the {options.split} split of {options.annotations} has {found[0]} images and {found[1]} captions, the arrays "
                f"have {images} and {texts}: give arrays of all items of the split, in its order"
            )
        file_rows = None
        if options.caption_order == "file":
            file_rows = torch.from_numpy(annotations.file_rows)
        elif options.caption_order is None and not annotations.are_grouped:
            notes.append(
                f"{options.annotations} does not list its captions image by image, but rows of captions are assumed to be: for "
                "rows in the order of the file give --caption-order file, for any other order give --text-to-image"
            )
        index = torch.from_numpy(table.caption_image.copy())
        return _Pairing(index, list(table.caption_ids), list(table.image_ids), file_rows)
    if options.text_to_image is not None:
        index = torch.from_numpy(load_array(options.text_to_image, "the image of each caption", 1))
        if index.is_floating_point() or len(index) != texts:
            raise ValueError(
                f"{options.text_to_image} holds {len(index)} values of {index.dtype}, expected an integer for each of the "
                f"{texts} captions"
            )
        return _Pairing(index.long())
    per_image = options.captions_per_image
    if per_image < 1 or per_image * images != texts:
        raise ValueError(f"{images} images with {per_image} captions each are not the {texts} captions there are")
    return _Pairing(torch.arange(images).repeat_interleave(per_image))


def _evaluate(
    options: Namespace,
    embeddings: tuple[Tensor, Tensor] | None,
    scores: tuple[Tensor, Tensor] | None,
    index: Tensor,
    relevance: Relevance | None,
    console: Console,
) -> Evaluation:
    if options.protocol == "paper":
        assert embeddings is not None
        images, texts = (some.cpu() for some in embeddings)
        return evaluate_published(images, texts, index, relevance, *(scores or ()), ties=options.ties)
    if embeddings is None:
        assert scores is not None
        return evaluate_scores(*scores, index, relevance, options.ties)
    images, texts = embeddings
    with progress("scores", num_scores(len(images), len(texts), relevance is not None), console=console) as advance:
        evaluation = evaluate_queries(
            images,
            texts,
            index,
            relevance,
            ties=options.ties,
            siblings=options.siblings,
            advance=advance,
        )
    metrics = evaluation.metrics
    if options.folds is not None:
        metrics |= cross_modal_folds(images, texts, index.to(images.device), options.folds, ties=options.ties)
    return Evaluation(metrics, evaluation.queries)


def _teachers(options: Namespace, sizes: Mapping[str, int], pairing: _Pairing) -> dict[str, Tensor]:
    """Read the features of the teachers by modality, in the order of the items."""
    found = {}
    for modality, path in (("image", options.image_teacher), ("text", options.text_teacher)):
        if path is None:
            continue
        features = torch.from_numpy(load_array(path, "a teacher's features (items, D)", 2))
        if len(features) != sizes[modality]:
            raise ValueError(
                f"{path} holds features of {len(features)} items, expected {sizes[modality]}, one for each of the {modality}s "
                "in order"
            )
        found[modality] = pairing.by_image(features) if modality == "text" else features
    return found


def _of_the_space(
    options: Namespace,
    embeddings: tuple[Tensor, Tensor],
    pairing: _Pairing,
    teachers: Mapping[str, Tensor],
    judgements: Judgements | None,
) -> dict[str, float]:
    """Diagnostics of the embedding space, its agreement with teachers and with human judgements, and extended positives."""
    images, texts, index = checked_embeddings(*embeddings, pairing.text_image)
    metrics = diagnostics(images, texts, index) if options.diagnostics else {}
    for modality, features in teachers.items():
        own = images if modality == "image" else texts
        found = preserved(own, features.to(own.device))
        metrics |= {f"{modality}_teacher_{name}": value for name, value in found.items()}
    if judgements is not None:
        assert pairing.images is not None
        metrics |= agreement(judgements, images, texts, pairing.images, index)
    if options.extended:
        assert pairing.images is not None
        assert pairing.captions is not None
        metrics |= extended_positives(images, texts, pairing.images, pairing.captions, index)
    return metrics


def _meta(
    options: Namespace,
    sizes: tuple[int, int],
    pairing: _Pairing,
    relevance: Relevance | None,
    normalised: bool,
    notes: Sequence[str],
) -> dict[str, Any]:
    return {
        "protocol": options.protocol,
        "split": options.split if options.annotations is not None or options.model is not None else None,
        "caption_order": (options.caption_order or "image") if options.annotations is not None else None,
        "images": sizes[0],
        "texts": sizes[1],
        "ties": options.ties,
        "siblings": options.siblings,
        "folds": options.folds,
        "normalised": normalised,
        "relevance": None if relevance is None else {"kind": relevance.kind, "fingerprint": relevance.fingerprint},
        "data": pairing_fingerprint(pairing.text_image, pairing.captions, pairing.images),
        "inputs": {str(path): file_hash(path) for path in _inputs(options)},
        "notes": list(notes),
        "code": {"version": versions()["sdr_lightning"], **git()},
    }
