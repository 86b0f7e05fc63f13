"""Collections that Hugging Face ``datasets`` reads: parquet and webdataset tars, from the hub or from disk."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.images import UNREADABLE, ImageFiles, Images, Pixels, to_rgb
from sdr_lightning.data.karpathy import read_karpathy
from sdr_lightning.data.records import Record, Records, grouped
from sdr_lightning.data.source import RecordSource
from sdr_lightning.data.strings import Strings
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.identity import stable_hash
from sdr_lightning.paths import expand


class HuggingFaceSource(RecordSource):
    """Rows of :func:`datasets.load_dataset`, through a mapping of columns.

    Rows with the same id are one image, so a row per image and a row per caption both work. Captions are known by image and
    number. Columns may be nested: ``json.captions``.

    Args:
        path: a hub name, or a folder of ``.parquet`` or ``.tar`` files named after their splits. ``$NAME`` and
            ``${NAME:-default}`` are filled in from the environment.
        name: of the collection; part of every fingerprint.
        revision: commit of the hub's repository; pin it, so that the data cannot change under a study.
        id_column: what tells images apart, such as a file name or a COCO id; never a position.
        image_column: the image; None for annotations alone, with ``image_folder`` and ``image_path``.
        caption_column: the captions, a list or a single one; None to take captions and splits from ``karpathy``.
        splits: the names that make up each split there.
        streaming: read rows as they come instead of converting the files to Arrow first, which takes as much disk again.
            Images are then read through the pixel cache alone: set the data module's ``cached_size``.
        image_folder: the folder of the images of an annotation-only collection.
        image_path: path of an image below that folder, made from columns: ``{filepath}/{filename}``.
        karpathy: a Karpathy JSON file to join by file name (``id_column``), for collections without splits.
        skip_missing: leave out images that the folder, or the joined file's collection, does not hold.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line.
    """

    def __init__(
        self,
        path: str,
        name: str,
        revision: str | None = None,
        id_column: str = "filename",
        image_column: str | None = "image",
        caption_column: str | None = "caption",
        splits: dict[str, list[str]] | None = None,
        streaming: bool = False,
        image_folder: str | None = None,
        image_path: str = "{filename}",
        karpathy: str | None = None,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: str | None = None,
    ) -> None:
        super().__init__(name, skip_missing, skip_empty, leave_out)
        if (image_column is None) != (image_folder is not None):
            raise ValueError("give either image_column, for images in the rows, or image_folder, for a folder of them")
        if (caption_column is None) != (karpathy is not None):
            raise ValueError("give either caption_column, for captions in the rows, or karpathy, for a file of them")
        if image_folder is not None and karpathy is not None:
            raise ValueError("karpathy joins captions to images in rows: for a folder of them use KarpathySource")
        self.path, self.revision, self.streaming = path, revision, streaming
        self.id_column, self.image_column, self.caption_column = id_column, image_column, caption_column
        self.names = splits or {split: [split] for split in SPLITS}
        self.folder, self.image_path, self.karpathy = image_folder, image_path, karpathy
        wrong = sorted(set(self.names) - set(SPLITS))
        if wrong:
            raise ValueError(f"splits maps {wrong[0]!r}, expected some of {', '.join(SPLITS)}")
        self._rows_read: dict[Split, Any] = {}

    def read(self) -> Records:
        """The records of all splits in the mapping."""
        if self.karpathy is not None:
            return self._joined(read_karpathy(Path(expand(self.karpathy))))
        return {split: self._records(split) for split in SPLITS if split in self.names}

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Files that are not in the folder, or images of the joined file that the rows lack."""
        if self.folder is None:
            return {reference: reference for reference in references if reference.startswith(_NO_ROW)}
        root = Path(expand(self.folder))
        return {name: str(root / name) for name in references if not (root / name).is_file()}

    def images_of(self, split: Split, references: Strings) -> Images:
        """The images in the rows, or the files of the folder."""
        if self.folder is not None:
            return ImageFiles(Path(expand(self.folder)), references)
        assert self.image_column is not None
        rows = self._rows("train" if self.karpathy is not None else split)
        numbers = np.fromiter((int(reference) for reference in references), dtype=np.int64, count=len(references))
        kind = StreamedImages if self.streaming else RowImages
        where = _identity(expand(self.path), self.revision)
        return kind(rows, self.image_column, numbers, stable_hash(where, self.names.get(split), self.image_column))

    def _records(self, split: Split) -> list[Record]:
        rows: list[tuple[str, str, str | None]] = []
        assert self.caption_column is not None
        found = self._without_images(split)
        with _reading(f"the {split} rows of {expand(self.path)}"):
            for number, row in enumerate(found):
                name = self._name(number, row)
                reference = str(number) if self.folder is None else self._path(row)
                rows += [(name, reference, caption) for caption in _captions(number, row, self.caption_column)]
        return grouped(rows)

    def _joined(self, annotations: Records) -> Records:
        found = self._without_images("train")
        with _reading(f"the rows of {expand(self.path)}"):
            numbers = {self._name(number, row): str(number) for number, row in enumerate(found)}
        return {
            split: [r._replace(reference=numbers.get(r.image_id, _NO_ROW + r.image_id)) for r in records]
            for split, records in annotations.items()
        }

    def _name(self, number: int, row: dict[str, Any]) -> str:
        name = _cell(row, self.id_column)
        if name is None:
            raise ValueError(f"row {number} has nothing under {self.id_column!r}")
        return str(name)

    def _path(self, row: dict[str, Any]) -> str:
        try:
            return self.image_path.format(**row)
        except KeyError as error:
            raise ValueError(f"image_path names {error}, which is no column; there is {', '.join(row)}") from error

    def _without_images(self, split: Split) -> Any:
        rows = self._rows(split)
        wanted = [self.id_column, self.caption_column, self.image_column]
        for column in wanted:
            if column is not None and column.split(".")[0] not in rows.column_names:
                raise ValueError(f"{expand(self.path)} has no column {column!r}; it has {', '.join(rows.column_names)}")
        if self.image_column is None:
            return rows
        undecoded = rows.decode(False) if self.streaming else rows  # removing a column of a stream decodes it first
        return undecoded.remove_columns([self.image_column.split(".")[0]])

    def _rows(self, split: Split) -> Any:
        if split not in self._rows_read:
            names = self.names.get(split) or [split]
            self._rows_read[split] = _load(expand(self.path), self.revision, names, self.streaming)
        return self._rows_read[split]


class RowImages(Images):
    """Images in the rows of a data set, decoded when they are asked for.

    Args:
        rows: a :class:`datasets.Dataset`.
        column: of the image.
        numbers: N numbers of rows.
        collection: hash of where the rows came from: files and their state, or a hub's revision; and of the split.
    """

    def __init__(self, rows: Any, column: str, numbers: NDArray[np.int64], collection: int) -> None:
        self.rows, self.column, self.numbers, self.collection = rows, column, numbers, collection

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> Pixels:
        number = int(self.numbers[row])
        with _decoding(number, self.column):
            return _pixels(self.rows[number], self.column)

    def identity(self, row: int) -> int:
        """Hash of where the rows came from, and of the row."""
        return stable_hash(self.collection, self.numbers[row])


class StreamedImages(RowImages):
    """Images of rows that come one after another: to be read in their order, into the pixel cache."""

    one_after_another = True

    def __getitem__(self, row: int) -> Pixels:
        raise ValueError(
            "a streamed collection's images are read through the pixel cache alone: set data.init_args.cached_size"
        )

    def stream(self) -> Iterator[tuple[int, Pixels]]:
        """All images, in the order of the rows."""
        place = {number: row for row, number in enumerate(self.numbers.tolist())}
        undecoded = self.rows.decode(False)  # or a broken image would end the stream without saying which
        for number, row in enumerate(undecoded):
            if number in place:
                with _decoding(number, self.column):
                    pixels = _pixels(row, self.column)
                yield place[number], pixels


_NO_ROW = "no row for "


def _cell(row: dict[str, Any], column: str) -> Any:
    value: Any = row
    for part in column.split("."):
        if not isinstance(value, dict) or part not in value:
            raise ValueError(f"there is no column {column!r}; there is {', '.join(row)}")
        value = value[part]
    return value


def _captions(number: int, row: dict[str, Any], column: str) -> list[str | None]:
    captions = _cell(row, column)
    captions = [captions] if isinstance(captions, str) else captions or [None]
    if not isinstance(captions, list) or not (captions == [None] or all(isinstance(text, str) for text in captions)):
        raise ValueError(f"row {number} has {captions!r} under {column!r}, expected text or a list of texts")
    return captions


def _pixels(row: dict[str, Any], column: str) -> Pixels:
    from datasets import Image

    image = _cell(row, column)
    if image is None:
        raise ValueError("it is null")
    return to_rgb(Image().decode_example(image) if isinstance(image, dict) else image)


@contextmanager
def _decoding(number: int, column: str) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, AttributeError) as error:  # a column of another kind has not what an image has
        raise ValueError(
            f"row {number} of the column {column!r} holds no readable image: {error}; name its image in leave_out"
        ) from error


@contextmanager
def _reading(what: str, but: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    from datasets.exceptions import DatasetsError

    try:
        yield
    except but:
        raise
    except (OSError, RuntimeError, ValueError, tarfile.TarError, DatasetsError) as error:
        reason = error.__cause__ if isinstance(error, DatasetsError) and error.__cause__ else error
        raise ValueError(f"{what} cannot be read: {reason}") from error


def _identity(path: str, revision: str | None) -> int:
    """Hash of a hub's name and revision, or of the names, sizes and times of modification of the files in a folder."""
    files = [file for file in sorted(Path(path).rglob("*")) if file.suffix in (".parquet", ".tar")]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return stable_hash(Path(path).name if states else path, revision, states)


def _load(path: str, revision: str | None, names: list[str], streaming: bool) -> Any:
    from datasets import concatenate_datasets, load_dataset
    from datasets.exceptions import DatasetNotFoundError

    if Path(path).is_dir():
        parts = []
        for name in names:
            kind, files = _files(Path(path), name)
            with _reading(f"{', '.join(files[:5])}{' ...' if len(files) > 5 else ''}"):
                parts.append(load_dataset(kind, data_files={"rows": files}, split="rows", streaming=streaming))
        return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    try:
        with _reading(f"the hub's {path}", but=(DatasetNotFoundError, ConnectionError)):
            parts = [load_dataset(path, revision=revision, split=name, streaming=streaming) for name in names]
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"the data set {path!r} is neither a local folder nor to be had from the hub ({type(error).__name__}): "
            "download it where there is a network and pass its folder as data.init_args.source.init_args.path"
        ) from error
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _files(folder: Path, name: str) -> tuple[str, list[str]]:
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        shard = re.compile(
            rf"{re.escape(name)}([-_.]?\d.*)?{re.escape(suffix)}"
        )  # train, train-00000-of-00002, train_3
        files = sorted(str(file) for file in folder.rglob(f"{name}*{suffix}") if shard.fullmatch(file.name))
        if files:
            return kind, files
    raise ValueError(f"no files for the split {name!r} in {folder}: expected {name}.parquet, {name}-*.parquet or .tar")
