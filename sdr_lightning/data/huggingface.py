"""Collections read with Hugging Face ``datasets``: parquet files and webdataset tars, from the hub or from disk."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.images import DECODER_VERSION, ImageFiles, Images, Pixels, reason, to_rgb
from sdr_lightning.data.karpathy import read_karpathy
from sdr_lightning.data.records import Record, Records, captions_in, grouped
from sdr_lightning.data.source import RecordSource
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.hub import check_available
from sdr_lightning.identity import stable_hash
from sdr_lightning.paths import FilePath, PathOrName, expand
from sdr_lightning.strings import Strings


class HuggingFaceSource(RecordSource):
    """Rows of :func:`datasets.load_dataset` with a mapping of columns.

    Rows with the same id are the same image, so both a row per image and a row per caption are supported; rows with the same
    id and different images are an error. Webdataset keys that occur in several shards are prefixed with the shard's name.
    Caption ids are image id and number. Columns may be nested, e.g. ``json.captions``.

    Args:
        path: a hub name, or a folder of ``.parquet`` or ``.tar`` files named after their splits. ``$NAME`` and
            ``${NAME:-default}`` are expanded from the environment.
        name: name of the collection; part of every fingerprint.
        revision: commit of the hub repository; set it, so that the data cannot change.
        id_column: column that identifies an image, e.g. a file name or a COCO id; not a position.
        image_column: column of the images; None for annotations only, with ``image_folder`` and ``image_path``.
        caption_column: column of the captions, lists or single captions; None to read captions and splits from ``karpathy``.
        splits: names of the parts of each split in the data set.
        streaming: read rows in sequence instead of converting the files to Arrow, which doubles the disk space. Images are
            then only available through the pixel cache: set the data module's ``cached_size``.
        image_folder: image folder of an annotation-only collection.
        image_path: path of an image below that folder, a format string of columns: ``{filepath}/{filename}``.
        karpathy: a Karpathy JSON file to join by file name (``id_column``), for collections without splits.
        skip_missing: skip images that are missing in the folder or in the rows, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.

    Raises:
        ValueError: the options are incompatible, or ``splits`` has an unknown split.
    """

    def __init__(
        self,
        path: PathOrName,
        name: str,
        revision: str | None = None,
        id_column: str = "filename",
        image_column: str | None = "image",
        caption_column: str | None = "caption",
        splits: dict[str, list[str]] | None = None,
        streaming: bool = False,
        image_folder: FilePath | None = None,
        image_path: str = "{filename}",
        karpathy: FilePath | None = None,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
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
        self._repeats: dict[Split, dict[int, int]] = {}  # from each repeated row of an image to its first row

    def read(self) -> Records:
        """Read the records of all splits in the mapping."""
        if self.karpathy is not None:
            return self._joined(read_karpathy(Path(expand(self.karpathy))))
        samples = {split: self._samples(split) for split in SPLITS if split in self.names}
        shards: dict[str, set[str]] = {}
        for sample in (sample for some in samples.values() for sample in some):
            shards.setdefault(sample.key, set()).add(sample.shard)
        records: dict[Split, list[Record]] = {}
        for split, some in samples.items():
            names = [f"{s.shard}/{s.key}" if len(shards[s.key]) > 1 else s.key for s in some]
            self._check_repeats(split, names)
            captions = zip(names, some, strict=True)
            records[split] = grouped([(name, s.reference, text) for name, s in captions for text in s.captions])
        return records

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Return missing files of the folder, or images of the joined file without a row."""
        if self.folder is None:
            return {reference: reference for reference in references if reference.startswith(_NO_ROW)}
        root = Path(expand(self.folder))
        return {name: str(root / name) for name in references if not (root / name).is_file()}

    def images_of(self, split: Split, references: Strings) -> Images:
        """Return the images of the rows, or the files of the folder."""
        if self.folder is not None:
            return ImageFiles(Path(expand(self.folder)), references)
        assert self.image_column is not None
        rows = self._rows("train" if self.karpathy is not None else split)
        numbers = np.fromiter((int(reference) for reference in references), dtype=np.int64, count=len(references))
        where = stable_hash(_identity(expand(self.path), self.revision), self.names.get(split), self.image_column)
        if self.streaming:
            return StreamedImages(rows, self.image_column, numbers, where, self._repeats.get(split, {}))
        return RowImages(rows, self.image_column, numbers, where)

    def _samples(self, split: Split) -> list[_Sample]:
        assert self.caption_column is not None
        found, samples = self._without_images(split), []
        with _reading(f"the {split} rows of {expand(self.path)}"):
            for number, row in enumerate(found):
                reference = str(number) if self.folder is None else self._path(row)
                shard = Path(str(row.get("__url__"))).stem if self.id_column == "__key__" else ""
                captions = captions_in(_cell(row, self.caption_column), f"row {number}", self.caption_column)
                samples.append(_Sample(self._name(number, row), shard, reference, captions or [None]))
        return samples

    def _check_repeats(self, split: Split, names: Sequence[str]) -> None:
        """Find repeated rows of an image and compare their images; those of streamed rows are compared while streaming.

        Raises:
            ValueError: rows with the same id have different images.
        """
        first: dict[str, int] = {}
        repeats = {n: first[name] for n, name in enumerate(names) if first.setdefault(name, n) != n}
        self._repeats[split] = repeats
        if repeats and self.image_column is not None and not self.streaming:
            same = _SameImages(repeats)
            for number, cell in enumerate(self._cells(split)):
                same.check(number, cell)

    def _cells(self, split: Split) -> Iterator[Any]:
        """Yield the image of each row as an Arrow scalar, without reading its content."""
        assert self.image_column is not None
        rows = self._rows(split)
        top = _top_column(rows.column_names, self.image_column)
        inner = self.image_column.removeprefix(top).removeprefix(".")
        for chunk in rows.data.column(top).chunks:
            for scalar in chunk:
                yield scalar[inner] if inner else scalar

    def _joined(self, annotations: Records) -> Records:
        found = self._without_images("train")
        with _reading(f"the rows of {expand(self.path)}"):
            names = [self._name(number, row) for number, row in enumerate(found)]
        self._check_repeats("train", names)
        numbers = {name: str(number) for number, name in enumerate(names)}
        return {
            split: [r._replace(reference=numbers.get(r.image_id, _NO_ROW + r.image_id)) for r in records]
            for split, records in annotations.items()
        }

    def _name(self, number: int, row: dict[str, Any]) -> str:
        name = _cell(row, self.id_column)
        if name is None:
            raise ValueError(f"row {number} has nothing under {self.id_column!r}: expected the image's id")
        return str(name)

    def _path(self, row: dict[str, Any]) -> str:
        try:
            return self.image_path.format(**row)
        except KeyError as error:
            raise ValueError(f"image_path names {error}, which is no column; there is {', '.join(row)}") from error

    def _without_images(self, split: Split) -> Any:
        rows = self._rows(split)
        for option in ("id_column", "caption_column", "image_column"):
            column = getattr(self, option)
            if column is not None and not _top_column(rows.column_names, column):
                raise ValueError(
                    f"{expand(self.path)} has no column {column!r}; it has {', '.join(rows.column_names)}: set "
                    f"data.init_args.source.init_args.{option}"
                )
        if self.image_column is None:
            return rows
        undecoded = rows.decode(False) if self.streaming else rows  # otherwise a stream decodes a column to remove it
        return undecoded.remove_columns([_top_column(rows.column_names, self.image_column)])

    def _rows(self, split: Split) -> Any:
        if split not in self._rows_read:
            names = self.names.get(split) or [split]
            self._rows_read[split] = _load(expand(self.path), self.revision, names, self.streaming)
        return self._rows_read[split]


class RowImages(Images):
    """Images in the rows of a data set, decoded on access.

    Args:
        rows: a :class:`datasets.Dataset`.
        column: column of the images.
        numbers: (N,) int64 row numbers.
        collection: hash of the data set: the files and their state, or the hub revision; and the split.
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
        """Return a hash of the data set and the row."""
        return stable_hash(self.collection, self.numbers[row])


class StreamedImages(RowImages):
    """Images of streamed rows, which are read in sequence to fill the pixel cache.

    Args:
        rows: a :class:`datasets.IterableDataset`.
        column: column of the images.
        numbers: (N,) int64 row numbers.
        collection: as in :class:`RowImages`.
        repeats: mapping from each repeated row of an image to its first row; their images must be equal.
    """

    one_after_another = True

    def __init__(
        self, rows: Any, column: str, numbers: NDArray[np.int64], collection: int, repeats: Mapping[int, int]
    ) -> None:
        super().__init__(rows, column, numbers, collection)
        self.repeats = repeats

    def __getitem__(self, row: int) -> Pixels:
        raise ValueError(
            "images of a streamed collection are only available through the pixel cache: set data.init_args.cached_size"
        )

    def stream(self) -> Iterator[tuple[int, Pixels]]:
        """Yield all images in the order of the rows.

        Raises:
            ValueError: an image cannot be read, or rows with the same id have different images.
        """
        place = {number: row for row, number in enumerate(self.numbers.tolist())}
        undecoded = self.rows.decode(False)  # otherwise a broken image ends the stream without its row number
        same = _SameImages(self.repeats)
        for number, row in enumerate(undecoded):
            same.check(number, _cell(row, self.column))
            if number in place:
                with _decoding(number, self.column):
                    pixels = _pixels(row, self.column)
                yield place[number], pixels


_NO_ROW = "no row for "
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.\w+$")
_COMPARED = 4096  # bytes compared at both ends of an encoded image


class _Sample(NamedTuple):
    key: str
    shard: str  # set for a webdataset whose keys are the ids
    reference: str
    captions: Sequence[str | None]


class _SameImages:
    """Checks that rows with the same id have the same image.

    Args:
        repeats: mapping from each repeated row of an image to its first row.
    """

    def __init__(self, repeats: Mapping[int, int]) -> None:
        self.repeats, self.firsts = repeats, set(repeats.values())
        self.seen: dict[int, tuple[Any, ...]] = {}

    def check(self, number: int, cell: Any) -> None:
        """Check the encoded image of the next row.

        Raises:
            ValueError: it differs from the image of the first row with the same id; with both row numbers.
        """
        if number in self.firsts:
            self.seen[number] = _signature(cell)
        elif number in self.repeats and _signature(cell) not in ((), self.seen[self.repeats[number]]):
            raise ValueError(
                f"rows {self.repeats[number]} and {number} have the same id and different images: name an id_column that "
                "tells images apart"
            )


def _signature(cell: Any) -> tuple[Any, ...]:
    """Return the length and both ends of an encoded image, or its path if it is stored elsewhere.

    Args:
        cell: Arrow scalar or its value: bytes, or a struct of bytes and path.
    """
    import pyarrow as pa

    if cell is None or not getattr(cell, "is_valid", True):
        return ()
    content = cell["bytes"] if isinstance(cell, dict) or hasattr(cell, "keys") else cell
    if hasattr(content, "as_buffer"):  # Arrow scalar: avoids a copy
        content = content.as_buffer()
    if content is None:
        return (str(cell["path"]),)
    if not isinstance(content, bytes | pa.Buffer):  # not an image: reported when it is decoded
        return (str(content),)
    view = memoryview(content)
    return len(view), bytes(view[:_COMPARED]), bytes(view[-_COMPARED:])


def _top_column(names: Sequence[str], column: str) -> str:
    """Return the longest column name that a dotted name begins with (column names may contain dots); empty if none."""
    return max((name for name in names if column == name or column.startswith(f"{name}.")), key=len, default="")


def _cell(row: Mapping[str, Any], column: str) -> Any:
    value, rest = row, column
    while rest:
        top = _top_column(list(value), rest) if isinstance(value, dict) else ""
        if not top:
            raise ValueError(f"there is no column {column!r}; there is {', '.join(row)}")
        value, rest = value[top], rest.removeprefix(top).removeprefix(".")
    return value


def _pixels(row: dict[str, Any], column: str) -> Pixels:
    from datasets import Image
    from PIL import Image as PillowImage

    image = _cell(row, column)
    if image is None:
        raise ValueError("it is null")
    if isinstance(image, bytes):
        image = PillowImage.open(io.BytesIO(image))
    elif isinstance(image, dict):
        image = Image().decode_example(image)
    elif not isinstance(image, PillowImage.Image):
        raise ValueError(
            f"it holds {type(image).__name__}, expected an image, its bytes, or a struct of bytes and path"
        )
    return to_rgb(image)


@contextmanager
def _decoding(number: int, column: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # decoders raise different exceptions for broken images
        raise ValueError(
            f"row {number} of the column {column!r} holds no readable image: {reason(error)}; name its image in leave_out"
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
    """Return a hash of a hub name and revision, or of a folder and its files' names, sizes and modification times."""
    files = [file for file in sorted(Path(path).rglob("*")) if file.suffix in (".parquet", ".tar")]
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return stable_hash(DECODER_VERSION, Path(path).resolve() if states else path, revision, states)


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
            check_available(path, "dataset")
            parts = [load_dataset(path, revision=revision, split=name, streaming=streaming) for name in names]
    except (DatasetNotFoundError, ConnectionError) as error:
        raise ValueError(
            f"the data set {path!r} is neither a local folder nor available from the hub ({type(error).__name__}): "
            "download it on a machine with network access and pass its folder as data.init_args.source.init_args.path"
        ) from error
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _files(folder: Path, name: str) -> tuple[str, list[str]]:
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        shard = re.compile(
            rf"{re.escape(name)}([-_.]?\d.*)?{re.escape(suffix)}"
        )  # train, train-00000-of-00002, train_3
        files = sorted(str(file) for file in folder.rglob(f"{name}*{suffix}") if shard.fullmatch(file.name))
        if files:
            _check_shards(folder, files)
            for file in files if kind == "webdataset" else []:
                _check_tar(file)
            return kind, files
    raise ValueError(f"no files for the split {name!r} in {folder}: expected {name}.parquet, {name}-*.parquet or .tar")


def _check_shards(folder: Path, files: Sequence[str]) -> None:
    """Raise a ValueError for an incomplete download: names such as ``train-00001-of-00002.parquet`` give the total."""
    for total in {int(found[2]) for file in files if (found := _SHARD.search(file))}:
        there = {int(found[1]) for file in files if (found := _SHARD.search(file)) and int(found[2]) == total}
        missing = [number for number in range(total) if number not in there]
        if missing and max(there) < total:
            raise ValueError(
                f"{folder} has {len(there)} of {total} shards, the first missing is number {missing[0]}: complete the download"
            )


def _check_member(member: tarfile.TarInfo) -> None:
    """Raise an error for members that ``datasets`` would silently skip."""
    name = member.name.rpartition("/")[2]
    if member.islnk() or member.issym():
        raise tarfile.ReadError(
            f"its member {member.name} is a link (tar --hard-dereference --dereference writes files)"
        )
    if name.startswith("__"):
        raise tarfile.ReadError(f"its member {member.name} begins with __, and would be skipped: rename it")


def _check_tar(file: str) -> None:
    """Check that a tar can be read completely: tarfile silently skips everything behind a damaged header.

    Raises:
        ValueError: the file is damaged, truncated, or followed by other data; with its name.
    """
    try:
        with Path(file).open("rb") as stream, tarfile.open(fileobj=stream, mode="r:*") as tar:
            for member in tar:
                _check_member(member)
            if tar.fileobj is stream:  # not compressed
                stream.seek(tar.offset)
                if len(first := stream.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
                    raise tarfile.ReadError("it has no end mark, so it is truncated")
                for block in chain([first], iter(lambda: stream.read(2**20), b"")):
                    if block.strip(b"\0"):
                        raise tarfile.ReadError(f"the data after byte {tar.offset} is no member of the archive")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; copy or write it again") from error
