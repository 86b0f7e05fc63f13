"""Files of an evaluation: arrays without pickle, relevance matrices with a record, and results with their settings."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sdr_lightning.identity import sha256
from sdr_lightning.metrics.relevance import CaptionRelevance
from sdr_lightning.paths import read_json, write_atomically, write_json

_MAGIC = b"\x93NUMPY"


def load_array(path: Path, what: str, dimensions: int) -> npt.NDArray[Any]:
    """Load an ``.npy`` file, memory-mapped copy-on-write; into memory if its byte order is not native.

    Args:
        path: the file.
        what: description of the expected content, for error messages.
        dimensions: required number of dimensions.

    Returns:
        The array, in native byte order.

    Raises:
        ValueError: the file is missing, not an ``.npy`` file, pickled, of another number of dimensions, or of a dtype that
            torch does not support (complex, more than 64 bits).
    """
    try:
        array: npt.NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"no file at {path}: expected {what} as .npy") from error
    except (ValueError, OSError, EOFError) as error:
        why = "it holds pickled objects" if "object" in str(error).lower() else f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not a plain .npy array ({why}): save {what} with numpy.save as numbers") from error
    if not isinstance(array, np.ndarray) or array.ndim != dimensions or array.dtype.kind not in "fiu":
        found = f"{array.shape} {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise ValueError(f"{path} holds {found}, expected {what}: numbers with {dimensions} dimension(s)")
    if array.dtype.itemsize > 8:
        raise ValueError(f"{path} holds {array.dtype}, expected {what} of at most 64 bits: save float64")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def record_path(path: Path) -> Path:
    """Return the path of the record of a relevance file."""
    return path.with_suffix(".json")


def save_relevance(
    path: Path,
    scores: npt.NDArray[np.float32],
    caption_ids: Sequence[str],
    image_ids: Sequence[str],
    kind: str,
    dtype: str = "float32",
) -> None:
    """Write relevance (C, N) as ``.npy``, and beside it a ``.json`` record of hash, kind, row ids and column ids.

    Args:
        path: the file, with the suffix ``.npy``.
        scores: (C, N).
        caption_ids: C ids of the rows.
        image_ids: N ids of the columns.
        kind: name of the measure.
        dtype: ``float32`` or ``float16``.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.save(file, scores.astype(dtype, copy=False), allow_pickle=False)

    write_atomically(path, write)
    record = {
        "kind": kind,
        "shape": list(scores.shape),
        "dtype": dtype,
        "sha256": file_hash(path),
        "captions": list(caption_ids),
        "images": list(image_ids),
    }
    write_json(record_path(path), record)


def load_relevance(
    path: Path,
    text_image_index: Tensor,
    num_images: int,
    caption_ids: Sequence[str] | None = None,
    image_ids: Sequence[str] | None = None,
) -> CaptionRelevance:
    """Read relevance (C, N), memory-mapped: an ``.npy`` file, or TERN's raw float32 without a header.

    Args:
        path: the file; the record beside it is checked if there is one.
        text_image_index: (C,) the image of each caption.
        num_images: N.
        caption_ids: expected ids of the rows; not checked when None.
        image_ids: expected ids of the columns; not checked when None.

    Returns:
        The relevance, with the SHA-256 of the file as its fingerprint.

    Raises:
        ValueError: the file is missing, of another size, of another split or order, changed since its record was written, or
            holds values that are negative or not finite.
    """
    shape = (len(text_image_index), num_images)
    expected = f"relevance of {shape[0]} captions x {shape[1]} images"
    try:
        with path.open("rb") as file:
            is_npy = file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise ValueError(f"no relevance file at {path} ({error.strerror}): write one with sdr relevance") from error
    if is_npy:
        scores = load_array(path, expected, 2)
    elif path.stat().st_size == 4 * shape[0] * shape[1]:
        scores = np.memmap(path, dtype=np.float32, mode="c", shape=shape)
    else:
        raise ValueError(
            f"{path} is no .npy, and its {path.stat().st_size} bytes are not the {4 * shape[0] * shape[1]} of raw float32 "
            f"{expected}: it is of another split, or truncated"
        )
    if scores.shape != shape:
        raise ValueError(f"{path} is {scores.shape}, expected {expected}: it is of another split or transposed")
    digest, kind = file_hash(path), "matrix"
    if record_path(path).is_file():
        record = read_json(record_path(path), "the record of a relevance file")
        _check_record(path, record, digest, {"captions": caption_ids, "images": image_ids})
        kind = str(record["kind"])
    if scores.dtype not in (np.float32, np.float16):
        scores = scores.astype(np.float32)
    return CaptionRelevance(scores, text_image_index, digest, kind)


def _check_record(path: Path, record: Any, digest: str, ids: Mapping[str, Sequence[str] | None]) -> None:
    if not isinstance(record, dict) or not {"kind", "sha256", *ids} <= record.keys():
        raise ValueError(
            f"{record_path(path)} is not the record of a relevance file: move it away, or write both files again"
        )
    if record["sha256"] != digest:
        raise ValueError(
            f"{path} has changed since {record_path(path)} was written: write both again with sdr relevance"
        )
    for what, wanted in ids.items():
        if wanted is None or record[what] == list(wanted):
            continue
        same = sorted(record[what]) == sorted(wanted)
        first = next(
            (row for row, (mine, theirs) in enumerate(zip(record[what], wanted, strict=False)) if mine != theirs), 0
        )
        raise ValueError(
            f"{path} is of {'the same' if same else 'other'} {what}{' in another order' if same else ''}: at position "
            f"{first} it has {record[what][first]!r} where the annotations have {wanted[first]!r}; write it again with sdr "
            "relevance from these annotations"
        )


def is_relevance(path: Path) -> bool:
    """Whether a path is a relevance file or its record, unchanged since :func:`save_relevance` wrote it."""
    array, record = path.with_suffix(".npy"), record_path(path)
    try:
        found = read_json(record, "the record of a relevance file")
    except ValueError:
        return False
    keys = {"kind", "shape", "dtype", "sha256", "captions", "images"}
    if not isinstance(found, dict) or found.keys() != keys:
        return False
    return path == record or found["sha256"] == file_hash(array)


def queries_path(path: Path) -> Path:
    """Return the path of the values per query of an evaluation."""
    return path.with_suffix(".queries.npz")


def save_evaluation(
    path: Path,
    metrics: Mapping[str, float],
    queries: Mapping[str, Tensor],
    text_image_index: Tensor,
    meta: Mapping[str, Any],
) -> None:
    """Write the values per query as ``metrics.queries.npz``, then ``metrics.json``.

    Args:
        path: the JSON file.
        metrics: flat metrics; NaN is written as null.
        queries: values per query.
        text_image_index: (C,) the image of each caption.
        meta: settings of the evaluation, written under the key ``meta``.
    """

    def write(part: Path) -> None:
        with part.open("wb") as file:
            arrays: dict[str, Any] = {name: values.cpu().numpy() for name, values in queries.items()}
            np.savez_compressed(file, text_image=text_image_index.cpu().numpy(), **arrays)

    write_atomically(queries_path(path), write)
    write_json(path, {**metrics, "meta": dict(meta)})


def is_evaluation(path: Path) -> bool:
    """Whether a file holds metrics or values per query as written by ``sdr evaluate``."""
    if path.suffix == ".npz":
        try:
            with zipfile.ZipFile(path) as archive:
                return "text_image.npy" in archive.namelist()
        except (OSError, zipfile.BadZipFile):
            return False
    try:
        found = read_json(path, "metrics")
    except ValueError:
        return False
    meta = found.get("meta") if isinstance(found, dict) else None
    return isinstance(meta, dict) and {"protocol", "data", "inputs", "code"} <= meta.keys()


def pairing_fingerprint(
    text_image_index: Tensor, caption_ids: Sequence[str] | None, image_ids: Sequence[str] | None
) -> str:
    """Return the SHA-256 of the pairing of captions and images, and of their ids if these are given."""
    names = [sha256(*ids) if ids is not None else "" for ids in (caption_ids, image_ids)]
    return sha256(text_image_index.cpu().numpy().astype(np.int64).tobytes(), *names)
