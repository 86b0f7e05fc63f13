"""An index: embeddings of images and captions on disk, with the model that they are of, to search in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from sdr_lightning import __version__
from sdr_lightning.data.images import Pixels, decode
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.functional.search import chunks
from sdr_lightning.metrics.cross_modal import centred
from sdr_lightning.metrics.files import load_array
from sdr_lightning.paths import check_folder, claim, locked, read_json, write_json
from sdr_lightning.progress import progress
from sdr_lightning.retrieval.approximate import build_graph, library, nearest_by_graph, read_graph, recall_at_10
from sdr_lightning.retrieval.collection import (
    COPIES,
    CaptionItem,
    Collection,
    ImageItem,
    LeftOut,
    data_split,
    picture_files,
)
from sdr_lightning.retrieval.embedding import Batch, Embedded, embed, finished_rows
from sdr_lightning.retrieval.export import export
from sdr_lightning.retrieval.index_files import (
    FORMAT,
    MODEL,
    JsonLines,
    publish,
    read_record,
    store,
    store_items,
    store_rows,
    stored,
)
from sdr_lightning.retrieval.loading import load
from sdr_lightning.retrieval.nearest import nearest
from sdr_lightning.retrieval.preprocessing import ImageLike
from sdr_lightning.retrieval.retriever import Embeddings, Hits, Retriever
from sdr_lightning.training.checkpoints.interruption import Interruption, Stopped

Kind = Literal["images", "captions"]
Within = Literal["images", "captions", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TEXTS_AT_ONCE = 4  # batches of texts are this many times as large as those of images


class Hit(NamedTuple):
    """An item that was found.

    Attributes:
        rank: from 1.
        score: cosine of query and item; after centring if the search was in both.
        match: logit of the matching head, if the item was re-ranked.
        kind: ``image`` or ``caption``.
        id: id of the item among the images or the captions.
        image: id of the image, or of the image of the caption.
        path: its file; None if it has none.
        captions: the captions of the image, or the caption alone.
    """

    rank: int
    score: float
    match: float | None
    kind: Literal["image", "caption"]
    id: str
    image: str
    path: str | None
    captions: list[str]


@dataclass(frozen=True)
class Gallery:
    """The embeddings of one modality, with what they are of.

    Attributes:
        embeddings: (n, d) float32, memory-mapped.
        items: of each row, a :class:`~sdr_lightning.retrieval.collection.ImageItem` or ``CaptionItem`` as a dictionary.
        mean: (d,) float64.
        graph_file: the graph for approximate search, if there is one.
    """

    embeddings: Embeddings
    items: JsonLines
    mean: NDArray[np.float64]
    graph_file: Path | None = None

    def __len__(self) -> int:
        return len(self.embeddings)

    @cached_property
    def centred(self) -> Embeddings:
        """(n, d) embeddings minus their mean, L2-normalised; in memory."""
        result: Embeddings = centred(torch.from_numpy(self.embeddings)).numpy()
        return result

    @cached_property
    def graph(self) -> Any:
        """The graph for approximate search.

        Raises:
            ValueError: there is none.
        """
        if self.graph_file is None:
            raise ValueError("this index has no graph: build it with --approximate, or search exactly")
        return read_graph(self.graph_file)

    def centre(self, queries: Embeddings) -> Embeddings:
        """Subtract the mean of this modality from queries (Q, d) of it, and L2-normalise them."""
        shifted = queries.astype(np.float64) - self.mean
        norms = np.linalg.norm(shifted, axis=1, keepdims=True)
        result: Embeddings = (shifted / np.maximum(norms, 1e-12)).astype(np.float32)
        return result


class Index:
    """An index on disk. :meth:`build` makes one, :meth:`open` reads it.

    Attributes:
        folder: the index.
        record: the content of its ``index.json``.
        galleries: ``images`` and ``captions``.
        left_out: pictures that could not be read.

    Example::

        index = Index.build("runs/mine", "my.index", images="photos")
        index.search("a dog runs on the beach", k=3)[0].path  # '/data/photos/beach.jpg'
    """

    def __init__(self, folder: Path, record: dict[str, Any], galleries: Mapping[Kind, Gallery]) -> None:
        self.folder, self.record, self.galleries = folder, record, dict(galleries)
        self.left_out = [LeftOut(*pair) for pair in record["left_out"]]
        self._model: Retriever | None = None

    @classmethod
    def open(cls, path: str | Path, model: Retriever | None = None, verify: bool = True) -> Self:
        """Open an index.

        Args:
            path: the folder.
            model: the model to encode queries with; by default the copy in the index, loaded at the first query.
            verify: whether to compare all files with their checksums, which reads them once.

        Raises:
            ValueError: no index, a damaged one, or one of another model.
        """
        folder = Path(path)
        record = read_record(folder)
        try:
            index = cls._opened(folder, record, verify)
        except ValueError:
            if read_record(folder) == record:
                raise
            index = cls._opened(folder, read_record(folder), verify)  # it was updated at this moment
        if model is not None:
            index._use(model, "the model given")
        return index

    @classmethod
    def _opened(cls, folder: Path, record: dict[str, Any], verify: bool) -> Self:
        means = load_array(stored(folder, record, "means", verify=verify), "means", 2)
        galleries: dict[Kind, Gallery] = {}
        for kind, mean in zip(KINDS, means, strict=True):
            files = {name: stored(folder, record, kind, name, verify=verify) for name in ("embeddings", "items")}
            graph = stored(folder, record, kind, "graph", verify=verify) if "graph" in record[kind] else None
            embeddings = load_array(files["embeddings"], "embeddings", 2)
            gallery = Gallery(embeddings, JsonLines(files["items"]), mean, graph)
            if not len(embeddings) == len(gallery.items) == record[kind]["number"]:
                raise ValueError(
                    f"{folder} is damaged: {len(embeddings)} embeddings of {len(gallery.items)} {kind}, expected "
                    f"{record[kind]['number']}; build it again"
                )
            galleries[kind] = gallery
        return cls(folder, record, galleries)

    @property
    def model(self) -> Retriever:
        """The model of the embeddings.

        Raises:
            ValueError: the copy in the index is damaged or of another model.
        """
        if self._model is None:
            self._use(load(self.folder / MODEL), f"the model in {self.folder / MODEL}")
        assert self._model is not None
        return self._model

    def _use(self, model: Retriever, what: str) -> None:
        expected, found = self.record["model"]["fingerprint"], model.fingerprint()
        if found != expected:
            raise ValueError(
                f"{self.folder} is an index of another model: its embeddings are of {expected[:12]}, {what} is {found[:12]}; "
                "build the index with this model, or search with its own"
            )
        self._model = model

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageLike | None = None,
        like: str | None = None,
        k: int = 10,
        within: Within = "images",
        rerank: int = 0,
        approximate: bool = False,
    ) -> list[Hit]:
        """Search by words, by a picture, or by an image of the index.

        In ``both``, the mean of each modality is subtracted from its embeddings and from the query, as GR-CLIP does (see
        :func:`~sdr_lightning.metrics.cross_modal.centred`): otherwise items of the query's own modality come first.

        Args:
            text: words in any language that the model knows.
            image: a picture.
            like: id of an image of the index, which itself is left out of the result.
            k: number of items; all if the index has fewer.
            within: what to search in.
            rerank: number of first items that the matching head of the model puts in order again; 0 for none.
            approximate: search by the graph instead of exactly.

        Returns:
            Items by descending score; ties in the order of the index, images before captions. Items that were re-ranked come
            first, by descending ``match``.

        Raises:
            ValueError: an empty query, a picture that cannot be read, or what the index or the model does not have.
        """
        if sum(given is not None for given in (text, image, like)) != 1:
            raise ValueError("a query is either words, or a picture, or an image of the index: give one of them")
        if text is not None and not text.strip():
            raise ValueError("the query is empty: give some words")
        if k < 1 or rerank < 0:
            raise ValueError(f"expected k of at least 1 and rerank of at least 0, got {k} and {rerank}")
        kinds = self._kinds(within)
        if rerank:
            self._check_rerank(text is not None, within)
        own: Kind = "images" if text is None else "captions"
        query = self._embedded(text, image, like)
        wanted = max(k, rerank) + (like is not None)
        found: list[tuple[float, Kind, int]] = []
        for kind in kinds:
            hits = self._found(query, own, kind, wanted, centre=within == "both", approximate=approximate)
            found += [(float(score), kind, int(row)) for score, row in zip(hits.scores[0], hits.rows[0], strict=True)]
        if like is not None:
            itself = self.galleries["images"].items.rows[like]
            found = [hit for hit in found if hit[1:] != ("images", itself)]
        found.sort(key=lambda hit: -hit[0])
        matches = self._matches(text, image, like, found[:rerank]) if rerank else []
        order = [int(place) for place in np.argsort(-np.array(matches), kind="stable")]
        ranked = [*(found[place] for place in order), *found[len(matches) :]]
        logits = [*(matches[place] for place in order), *[None] * (len(found) - len(matches))]
        return [self._hit(rank + 1, *ranked[rank], logits[rank]) for rank in range(min(k, len(ranked)))]

    def image_row(self, name: str) -> int:
        """Return the row of an image by its id.

        Raises:
            ValueError: there is none.
        """
        row = self.galleries["images"].items.rows.get(name)
        if row is None:
            raise ValueError(f"no image {name[:80]!r} in this index")
        return row

    def path(self, item: Mapping[str, Any]) -> str | None:
        """Return the path of the file of an image item, or of its copy in the index; None if there is none."""
        return None if item["path"] is None else str(self.folder / item["path"])

    def _pixels(self, item: Mapping[str, Any]) -> Pixels:
        path = self.path(item)
        if path is None:
            raise ValueError(
                f"re-ranking reads the pictures, and {item['id']!r} is no file: build the index with --copy-pictures"
            )
        try:
            return decode(Path(path))
        except ValueError as error:
            raise ValueError(
                f"re-ranking reads the pictures, and that of {item['id']!r} cannot be read: remove it from the index"
            ) from error

    def _kinds(self, within: Within) -> tuple[Kind, ...]:
        if within not in get_args(Within):
            raise ValueError(f"search is in {', '.join(get_args(Within))}, not in {within!r}")
        kinds: tuple[Kind, ...] = KINDS if within == "both" else (within,)
        empty = [kind for kind in kinds if not len(self.galleries[kind])]
        if empty:
            others = [kind for kind in KINDS if len(self.galleries[kind])]
            remedy = "build it with --data" if "captions" in empty else "add some"
            raise ValueError(f"this index has no {empty[0]}: search in {' or '.join(others)}, or {remedy}")
        return kinds

    def _check_rerank(self, by_text: bool, within: Within) -> None:
        if within != ("images" if by_text else "captions"):
            raise ValueError(
                "re-ranking scores a caption with an image: search in images by words, or in captions by a picture"
            )
        if not self.model.has_matching_head:
            raise ValueError("this model has no fusion encoder, so nothing to re-rank with: search without re-ranking")

    def _embedded(self, text: str | None, image: ImageLike | None, like: str | None) -> Embeddings:
        if text is not None:
            return self.model.encode_texts(text)
        if image is not None:
            return self.model.encode_images([image])
        assert like is not None
        row = self.image_row(like)
        return np.array(self.galleries["images"].embeddings[row : row + 1])

    def _found(self, query: Embeddings, own: Kind, kind: Kind, k: int, *, centre: bool, approximate: bool) -> Hits:
        gallery = self.galleries[kind]
        if centre:
            if approximate:
                raise ValueError("search in both is exact: search in images or captions, or without --approximate")
            return nearest(self.galleries[own].centre(query), gallery.centred, k)
        if approximate:
            return nearest_by_graph(gallery.graph, query, gallery.embeddings, k)
        return nearest(query, gallery.embeddings, k)

    def _matches(
        self, text: str | None, image: ImageLike | None, like: str | None, found: Sequence[tuple[float, Kind, int]]
    ) -> list[float]:
        items = [self.galleries[kind].items[row] for _, kind, row in found]
        if text is not None:
            pictures = [self._pixels(item) for item in items]
            return [float(score) for score in self.model.score(pictures, text, by="matching")[:, 0]]
        if image is None:
            assert like is not None
            image = self._pixels(self.galleries["images"].items[self.image_row(like)])
        return [float(score) for score in self.model.match(image, [item["caption"] for item in items])]

    def _hit(self, rank: int, score: float, kind: Kind, row: int, match: float | None) -> Hit:
        item = self.galleries[kind].items[row]
        if kind == "images":
            return Hit(rank, score, match, "image", item["id"], item["id"], self.path(item), item["captions"])
        images = self.galleries["images"].items
        owner = images.rows.get(item["image"])
        path = None if owner is None else self.path(images[owner])
        return Hit(rank, score, match, "caption", item["id"], item["image"], path, [item["caption"]])

    @classmethod
    def build(
        cls,
        model: Retriever | str | Path,
        output: str | Path,
        *,
        images: str | Path | None = None,
        data: RetrievalDataModule | None = None,
        split: Split = "test",
        batch_size: int = 64,
        resume: bool = False,
        approximate: bool = False,
        copy_pictures: bool = False,
    ) -> Self:
        """Build an index of a folder of pictures, or of the images and captions of a split.

        It is built in ``OUTPUT.part``, which becomes ``output`` at the end. Pictures that cannot be read are left out and listed.

        Args:
            model: the model, or where :func:`~sdr_lightning.load` finds it.
            output: a new folder.
            images: folder of pictures.
            data: the data, instead of ``images``.
            split: split of the data.
            batch_size: images encoded at a time.
            resume: continue a build that was interrupted. The result has the same bytes as without interruption.
            approximate: also build graphs for approximate search, see :mod:`sdr_lightning.retrieval.approximate`.
            copy_pictures: keep a copy of each picture in the index, a JPEG of at most 640 pixels in width and height: for
                pictures that are no files, or an index that stands alone. Copies are shown and re-ranked; embeddings are of the
                originals.

        Raises:
            ValueError: nothing to index, an output that exists, or an unfinished build of other settings.
            Stopped: by a signal; finished batches are kept.
        """
        output = Path(output)
        if output.exists():
            raise ValueError(f"{output} exists already: choose a new folder, or add to that index with --add")
        if approximate:
            library()
        if (images is None) == (data is None):
            raise ValueError("an index is of a folder of pictures or of data: give one of --images and --data")
        loaded = model if isinstance(model, Retriever) else load(model)
        collection = data_split(data, split) if data is not None else picture_files(Path(images or ""))
        _check_model(loaded, collection)
        if copy_pictures:
            if loaded.preprocessing.image_size is None:
                raise ValueError("this data has features, not pictures, so nothing to copy: leave --copy-pictures out")
            collection = collection.with_copies()
        part = _part(output)
        check_folder(part.parent)
        _begin(part, loaded, collection, batch_size, resume)
        pictures = _embed_images(part, loaded, collection, batch_size, copy_pictures)
        captions = _embed_captions(part, loaded, collection, batch_size)
        shutil.rmtree(part / MODEL, ignore_errors=True)
        export(loaded, part / MODEL)
        record: dict[str, Any] = {"model": {"fingerprint": loaded.fingerprint(), "width": loaded.width}}
        record["copies"] = copy_pictures
        contents: dict[Kind, list[_Rows]] = {
            "images": [_new(pictures, collection.images)],
            "captions": [_new(captions, collection.captions)],
        }
        left_out = [*collection.left_out, *_failed(pictures, collection)]
        record |= _written(part, contents, approximate)
        publish(part, {"format": FORMAT, "version": __version__, **record, "left_out": left_out})
        for file in part.iterdir():
            if file.suffix in (".f32", ".journal") or file.name in (_SETTINGS, ".lock"):
                file.unlink()
        part.rename(output)
        return cls.open(output, loaded, verify=False)

    def add(self, images: str | Path, batch_size: int = 64, resume: bool = False) -> Self:
        """Add the pictures of a folder; those that are in the index already are skipped.

        Returns:
            The updated index. Indexes that are open elsewhere keep their content.

        Raises:
            ValueError: no new pictures, or another file has an id of the index.
        """
        with self._updating():
            self._add(picture_files(Path(images)), batch_size, resume)
        return type(self).open(self.folder, self._model, verify=False)

    def remove(self, ids: Sequence[str]) -> Self:
        """Remove images, with their captions, or single captions.

        Args:
            ids: ids of images or of captions.

        Returns:
            The updated index. Indexes that are open elsewhere keep their content.

        Raises:
            ValueError: an id that is not in the index, or nothing would be left.
        """
        with self._updating():
            self._remove(set(ids))
        return type(self).open(self.folder, self._model, verify=False)

    @contextmanager
    def _updating(self) -> Iterator[None]:
        """Lock the index for an update, after an update of another process has ended."""
        with locked(self.folder / ".lock", f"waiting for another process that updates {self.folder}"):
            if read_record(self.folder) != self.record:
                raise ValueError(f"{self.folder} was updated since it was opened: open it again")
            yield

    def _add(self, collection: Collection, batch_size: int, resume: bool) -> None:
        _check_model(self.model, collection)
        known = self.galleries["images"].items
        for item in collection.images:
            row = known.rows.get(item.id)
            if row is not None and not self.record["copies"] and known[row]["path"] != item.path:
                raise ValueError(
                    f"the index has an image {item.id!r} already, of the file {known[row]['path']}: rename the file, or "
                    "name a folder above it"
                )
        new = np.array([row for row, item in enumerate(collection.images) if item.id not in known.rows], np.int64)
        if not len(new):
            raise ValueError(f"all {len(collection.images)} pictures are in the index already")
        collection = collection.only(new.tolist())
        if self.record["copies"]:
            collection = collection.with_copies()
        part = _part(self.folder)
        _begin(part, self.model, collection, batch_size, resume)
        pictures = _embed_images(part, self.model, collection, batch_size, self.record["copies"])
        for copy in part.glob(f"{COPIES}/*"):
            copy.replace(self.folder / COPIES / copy.name)
        added = _new(pictures, collection.images)
        left_out = [*collection.left_out, *_failed(pictures, collection)]
        names = {item.name for item in left_out} | {item.id for item in collection.images}
        left_out = [*(item for item in self.left_out if item.name not in names), *left_out]
        self._publish({"images": [self._rows("images"), added], "captions": [self._rows("captions")]}, left_out)
        shutil.rmtree(part)

    def _remove(self, wanted: set[str]) -> None:
        images, captions = (self.galleries[kind].items for kind in KINDS)
        unknown = sorted(wanted - images.rows.keys() - captions.rows.keys())
        if unknown:
            raise ValueError(f"{len(unknown)} ids are not in {self.folder}, first {unknown[0]!r}: nothing was removed")
        left = {
            "images": [row for row, item in enumerate(images) if item["id"] not in wanted],
            "captions": [
                row
                for row, item in enumerate(captions)
                if item["id"] not in wanted and not (item["image"] in wanted and item["image"] in images.rows)
            ],
        }
        if not left["images"] and not left["captions"]:
            raise ValueError(f"nothing would be left in {self.folder}: delete the folder instead")
        gone = {captions[row]["id"] for row in set(range(len(captions))) - set(left["captions"])}
        shown = _without_captions(self._rows("images", left["images"]), captions, gone)
        self._publish({"images": [shown], "captions": [self._rows("captions", left["captions"])]}, self.left_out)
        if self.record["copies"]:
            for name in wanted & images.rows.keys():
                (self.folder / images[images.rows[name]]["path"]).unlink(missing_ok=True)

    def _rows(self, kind: Kind, rows: Sequence[int] | None = None) -> _Rows:
        gallery = self.galleries[kind]
        chosen = np.arange(len(gallery)) if rows is None else np.array(rows, dtype=np.int64)
        return _Rows(gallery.embeddings, chosen, gallery.items)

    def _publish(self, contents: Mapping[Kind, list[_Rows]], left_out: Sequence[LeftOut]) -> None:
        approximate = any("graph" in self.record[kind] for kind in KINDS)
        publish(self.folder, self.record | _written(self.folder, contents, approximate) | {"left_out": left_out})


class _Rows(NamedTuple):
    """Rows of embeddings to write, with the items of all rows."""

    embeddings: Embeddings
    rows: NDArray[np.int64]
    items: Sequence[dict[str, Any]]


def _new(embedded: Embedded, items: Sequence[ImageItem] | Sequence[CaptionItem]) -> _Rows:
    """Return all embeddings, and the items that they are of."""
    return _Rows(
        embedded.embeddings, np.arange(len(embedded.rows)), [items[row]._asdict() for row in embedded.rows.tolist()]
    )


_SETTINGS = "build.json"


def _part(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def _check_model(model: Retriever, collection: Collection) -> None:
    if model.method is not None:
        raise ValueError("this model scores by a similarity of its own, and an index by cosine: it cannot be indexed")
    if model.preprocessing.image_size is None and collection.in_parallel:
        raise ValueError("this model encodes precomputed features, not pictures: build the index with --data")


def _begin(part: Path, model: Retriever, collection: Collection, batch_size: int, resume: bool) -> None:
    """Claim the folder of a build, new or to be continued."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    settings = {
        "model": model.fingerprint(),
        "precision": model.precision,
        "items": collection.state,
        "batch_size": batch_size,
    }
    if part.exists():
        if not resume:
            raise ValueError(f"an unfinished build is in {part}: continue it with --resume, or delete that folder")
        claim(part)
        before = read_json(part / _SETTINGS, "settings of an unfinished build")
        if before != settings:
            other = ", ".join(name for name in settings if before.get(name) != settings[name])
            raise ValueError(f"the unfinished build in {part} is of other settings ({other}): delete that folder")
        return
    claim(part)
    write_json(part / _SETTINGS, settings)


def _embed_images(
    part: Path, model: Retriever, collection: Collection, batch_size: int, copy_pictures: bool
) -> Embedded:
    number = len(collection.images)

    def batches(start: int) -> Iterator[Batch]:
        steps = [slice(start + some.start, start + some.stop) for some in chunks(number - start, batch_size)]
        for batch, inputs in _steadily(part, collection.inputs(model, steps, copies), "images", start, number):
            rows = range(batch.start, batch.stop)
            read = [given for given in inputs if not isinstance(given, str)]
            failures = [(row, given) for row, given in zip(rows, inputs, strict=True) if isinstance(given, str)]
            embeddings = model.encode_inputs(read) if read else np.empty((0, width), dtype=np.float32)
            yield Batch(batch.stop, embeddings, failures)

    width, copies = model.width, part if copy_pictures else None
    embedded = embed(part / "images", width, number, batches)
    if not len(embedded.rows):
        shutil.rmtree(part)
        raise ValueError(
            f"none of the {number} pictures can be read, first {collection.images[0].id!r}: {embedded.failures[0][1]}"
        )
    return embedded


def _embed_captions(part: Path, model: Retriever, collection: Collection, batch_size: int) -> Embedded:
    texts = [item.caption for item in collection.captions]

    def batches(start: int) -> Iterator[Batch]:
        size = batch_size * _TEXTS_AT_ONCE
        steps = [slice(start + some.start, start + some.stop) for some in chunks(len(texts) - start, size)]
        for batch, own in _steadily(part, ((step, texts[step]) for step in steps), "captions", start, len(texts)):
            yield Batch(batch.stop, model.encode_texts(own, size), [])

    return embed(part / "captions", model.width, len(texts), batches)


def _steadily(part: Path, steps: Iterator[tuple[slice, Any]], what: str, start: int, number: int) -> Iterator[Any]:
    """Yield steps and show progress; stop between them on a signal."""
    with progress(f"encoding {what}", number, start) as advance, Interruption() as interruption:
        for batch, given in steps:
            if interruption.received is not None:
                done = finished_rows(part / what)
                raise Stopped(
                    interruption.received, f"{done} of {number} {what} are kept in {part}: continue with --resume"
                )
            yield batch, given
            advance(batch.stop - batch.start)


def _failed(embedded: Embedded, collection: Collection) -> list[LeftOut]:
    return [LeftOut(collection.images[row].id, reason) for row, reason in embedded.failures]


def _written(folder: Path, contents: Mapping[Kind, list[_Rows]], approximate: bool) -> dict[str, Any]:
    """Write embeddings, items, means and graphs; return their part of the record."""
    record: dict[str, Any] = {}
    means = []
    for kind in KINDS:
        parts = contents[kind]
        embeddings = store_rows(folder, kind, [(part.embeddings, part.rows) for part in parts])
        items = store_items(folder, kind, (part.items[row] for part in parts for row in part.rows.tolist()))
        record[kind] = {
            "number": sum(len(part.rows) for part in parts),
            "embeddings": embeddings,
            "items": items,
        }
        means.append(_mean(np.load(folder / embeddings["file"], mmap_mode="r")))

    def write(path: Path) -> None:
        np.save(path, np.stack(means))

    record["means"] = store(folder, "means", ".npy", write)
    if approximate:
        _add_graphs(folder, record)
    return record


def _add_graphs(folder: Path, record: dict[str, Any]) -> None:
    galleries = {
        kind: np.load(folder / record[kind]["embeddings"]["file"], mmap_mode="c")
        for kind in KINDS
        if record[kind]["number"]
    }
    for kind, gallery in galleries.items():

        def write(path: Path, gallery: Embeddings = gallery) -> None:
            build_graph(gallery, path)

        record[kind]["graph"] = store(folder, kind, ".faiss", write)
        queries = next((other for name, other in galleries.items() if name != kind), gallery)
        graph = read_graph(folder / record[kind]["graph"]["file"])
        record[kind]["graph_recall_at_10"] = recall_at_10(graph, gallery, queries)


def _mean(embeddings: Embeddings) -> NDArray[np.float64]:
    """(d,) mean; zero if there are no embeddings."""
    total = np.zeros(embeddings.shape[1])
    for rows in chunks(len(embeddings), 65536):
        total += embeddings[rows].sum(axis=0, dtype=np.float64)
    return total / max(1, len(embeddings))


def _without_captions(images: _Rows, captions: JsonLines, gone: set[str]) -> _Rows:
    """Leave the captions of some ids out of the items of images."""
    if not gone:
        return images
    left: dict[str, list[str]] = {}
    for item in captions:
        if item["id"] not in gone:
            left.setdefault(item["image"], []).append(item["caption"])
    items = [{**item, "captions": left.get(item["id"], [])} for item in images.items]
    return images._replace(items=items)
