"""The images and captions that an index is built from: a folder of pictures, or a split of a data set."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdr_lightning.data.images import ImageFiles, decode
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.identity import sha256
from sdr_lightning.retrieval.preprocessing import ImageLike
from sdr_lightning.retrieval.retriever import Retriever
from sdr_lightning.retrieval.small_pictures import write_small
from sdr_lightning.strings import Strings
from sdr_lightning.tables import IMAGE_ENDINGS

COPIES = "pictures"
"""Folder of the copies of pictures in an index."""
_SIDE, _QUALITY = 640, 90  # of a copy, a JPEG
_READERS = 8  # threads that decode pictures


class ImageItem(NamedTuple):
    """An image of an index.

    Attributes:
        id: unique among the images.
        path: absolute path of its file, or that of a copy in the index relative to it; None if there is no file.
        captions: its captions.
    """

    id: str
    path: str | None
    captions: list[str]


class CaptionItem(NamedTuple):
    """A caption of an index.

    Attributes:
        id: unique among the captions.
        caption: the text.
        image: id of its image.
    """

    id: str
    caption: str
    image: str


class LeftOut(NamedTuple):
    """A picture that is not in an index.

    Attributes:
        name: its id.
        reason: why it cannot be read, in one line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Collection:
    """Images and captions to index.

    Attributes:
        images: the images.
        captions: the captions; there may be none.
        picture: returns the picture of a row of ``images``; raises ValueError if it cannot be read.
        in_parallel: whether pictures may be read by several threads.
        left_out: files with unusable names.
        state: hash of everything that decides the embeddings, but the model.
    """

    images: Sequence[ImageItem]
    captions: Sequence[CaptionItem]
    picture: Callable[[int], ImageLike]
    in_parallel: bool
    left_out: Sequence[LeftOut]
    state: str

    def only(self, rows: Sequence[int]) -> Collection:
        """Return some of the images, without captions."""
        chosen = [self.images[row] for row in rows]
        state = sha256(self.state, *(item.id for item in chosen))
        return Collection(chosen, [], lambda row: self.picture(rows[row]), self.in_parallel, self.left_out, state)

    @property
    def text_image(self) -> Tensor:
        """(C,) int64 row of the image of each caption."""
        rows = {item.id: row for row, item in enumerate(self.images)}
        return torch.tensor([rows[item.image] for item in self.captions], dtype=torch.int64)

    def with_copies(self) -> Collection:
        """Return the collection with the paths of copies in an index, see :meth:`inputs`."""
        paths = [f"{COPIES}/{sha256(item.id)[:24]}.jpg" for item in self.images]
        images = [item._replace(path=path) for item, path in zip(self.images, paths, strict=True)]
        return replace(self, images=images, state=sha256(self.state, COPIES))

    def inputs(
        self, model: Retriever, batches: Iterable[slice], copies: Path | None = None
    ) -> Iterator[tuple[slice, list[Tensor | str]]]:
        """Read and prepare batches of pictures. The next batch is read while the current one is in use.

        Args:
            model: the model whose preprocessing applies.
            batches: slices of rows.
            copies: folder to write copies to, at the paths of :meth:`with_copies`; None for no copies.

        Yields:
            A batch and, for each of its rows, the input of the image tower, or the reason why the picture cannot be read.
        """

        def read(row: int) -> Tensor | str:
            try:
                picture = self.picture(row)
                prepared = model.preprocessing.images([picture])[0]
                if copies is not None:
                    _write_copy(picture, copies / str(self.images[row].path))
                return prepared
            except ValueError as error:
                return " ".join(str(error).split())

        waiting: tuple[slice, list[Future[Tensor | str]]] | None = None
        readers = min(_READERS, os.cpu_count() or 1) if self.in_parallel else 1
        with ThreadPoolExecutor(readers, thread_name_prefix="pictures") as pool:
            for batch in batches:
                submitted = batch, [pool.submit(read, row) for row in range(batch.start, batch.stop)]
                if waiting is not None:
                    yield waiting[0], [future.result() for future in waiting[1]]
                waiting = submitted
            if waiting is not None:
                yield waiting[0], [future.result() for future in waiting[1]]


def readable(inputs: Iterable[Tensor | str]) -> list[Tensor]:
    """Return the inputs of a batch of :meth:`Collection.inputs`.

    Raises:
        ValueError: the first reason why a picture cannot be read.
    """
    found = []
    for given in inputs:
        if isinstance(given, str):
            raise ValueError(given)
        found.append(given)
    return found


def _write_copy(picture: ImageLike, path: Path) -> None:
    copy = Image.fromarray(decode(Path(picture)) if isinstance(picture, str | Path) else np.asarray(picture))
    path.parent.mkdir(exist_ok=True)
    write_small(copy, path, _SIDE, _QUALITY)


def picture_files(folder: Path) -> Collection:
    """Return the picture files in a folder and its sub-folders, in the order of their names.

    The id of a picture is its path relative to the folder. Hidden files and links to folders are skipped.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}: expected a folder of pictures")
    root = folder.resolve()
    names, left_out, states = [], [], []
    for place, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(place, name)
            if name.startswith(".") or path.suffix.lower() not in IMAGE_ENDINGS:
                continue
            shown = path.relative_to(root).as_posix()
            if Strings.holds(str(path)):
                names.append(shown)
            else:
                left_out.append(LeftOut(shown.encode(errors="replace").decode(), "its name is not UTF-8"))
    if not names:
        raise ValueError(f"no pictures in {folder}: expected files that end in {', '.join(sorted(IMAGE_ENDINGS))}")
    names.sort()
    images = [ImageItem(name, str(root / name), []) for name in names]
    for name in names:
        status = os.lstat(root / name)
        states.append(f"{name}\n{status.st_size}\n{status.st_mtime_ns}")
    return Collection(
        images, [], lambda row: str(root / names[row]), True, sorted(left_out), sha256(str(root), *states)
    )


def data_split(data: RetrievalDataModule, split: Split) -> Collection:
    """Return the images and captions of a split, without corruption.

    Raises:
        ValueError: the data has no such split, or it is malformed.
    """
    table, pictures = data.source.table(split), data.source.images(split)
    captions_of: dict[int, list[str]] = defaultdict(list)
    for caption, image in zip(table.captions, table.caption_image.tolist(), strict=True):
        captions_of[image].append(caption)
    files = pictures if isinstance(pictures, ImageFiles) else None
    paths = [None if files is None else str(files.path(row).resolve()) for row in range(len(table.image_ids))]
    images = [ImageItem(name, paths[row], captions_of[row]) for row, name in enumerate(table.image_ids)]
    captions = [
        CaptionItem(name, caption, table.image_ids[image])
        for name, caption, image in zip(table.caption_ids, table.captions, table.caption_image.tolist(), strict=True)
    ]

    def picture(row: int) -> ImageLike:
        if files is not None:
            return files.path(row)
        return data.split(split).original(row) if pictures.one_after_another else pictures[row]

    return Collection(images, captions, picture, files is not None, [], sha256(table.fingerprint, *map(str, paths)))
