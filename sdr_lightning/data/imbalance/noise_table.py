"""Noise tables, the files of the items that a corruption changes: this project's format, and two published formats."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.imbalance.pairs import mismatched
from sdr_lightning.data.imbalance.specification import Imbalance, Level
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.identity import sha256
from sdr_lightning.paths import write_atomically

_FORMAT = "sdr-noise-table-1"


@dataclass(frozen=True)
class NoiseTable:
    """The items that a corruption changes in one split.

    Attributes:
        imbalance: the specification.
        collection: name of the collection.
        split: the split.
        fingerprint: fingerprint of the clean split; empty for a published index read without a split.
        rows: (n,) int64 rows of the changed images or captions, depending on the level.
        caption_image: (C,) int64 image paired with each caption after corruption.
        clean: (C,) int64 true image of each caption.
        images: number of images.
        partners_as_asked: share of the chosen items whose partner is of the kind asked for, see :mod:`.partners`; None if any
            partner will do.
    """

    imbalance: Imbalance
    collection: str
    split: str
    fingerprint: str
    rows: NDArray[np.int64]
    caption_image: NDArray[np.int64]
    clean: NDArray[np.int64]
    images: int
    partners_as_asked: float | None = None

    @classmethod
    def draw(cls, table: CaptionTable, imbalance: Imbalance) -> NoiseTable:
        """Choose the items of a specification.

        Args:
            table: a clean split.
            imbalance: a specification with a kind, not a file.

        Returns:
            The chosen items.

        Raises:
            ValueError: the chosen items cannot all be mismatched.
        """
        rows = imbalance.choose(table) if imbalance.active else np.empty(0, dtype=np.int64)
        paired, clean, as_asked = table.caption_image, table.caption_image, None
        if imbalance.kind == "mismatch" and len(rows):
            level = imbalance.level or "image"
            paired, as_asked = mismatched(table, rows, level, imbalance.partner, imbalance.seed)
        made_for = table.name, table.split, table.fingerprint
        as_asked = None if imbalance.partner == "random" else as_asked
        return cls(imbalance, *made_for, rows, paired, clean, len(table.image_ids), as_asked)

    @property
    def of(self) -> int:
        """Number of items to choose from."""
        return self.images if self.imbalance.level == "image" else len(self.clean)

    @property
    def ratio(self) -> float:
        """Share of changed items, in [0, 1]."""
        return len(self.rows) / self.of

    @property
    def wrong_captions_per_image(self) -> dict[int, int]:
        """Numbers of images with 0, 1, 2, ... captions of another image."""
        return wrong_captions_per_image(self.clean, self.caption_image, self.images)

    @property
    def sha256(self) -> str:
        """Hash of the specification, the chosen items and the pairing."""
        partner = "" if self.imbalance.partner == "random" else f" {self.imbalance.partner}"
        what = f"{self.imbalance.content_key} {self.imbalance.level}{partner}"
        return sha256(what, np.sort(self.rows).tobytes(), self.caption_image.tobytes())

    def record(self) -> dict[str, Any]:
        """Return plain values for a run's record."""
        return {
            **asdict(self.imbalance),
            "affected": len(self.rows),
            "of": self.of,
            "realised_ratio": self.ratio,
            "partners_as_asked": self.partners_as_asked,
            "sha256": self.sha256,
        }

    def save(self, path: Path) -> None:
        """Write the table atomically.

        Args:
            path: ``.npz`` for this project's format. ``.npy`` for the published format of a mismatch: at level image, (N,)
                with the image that receives the captions of image i; at level caption, (C,) with the image of caption k.

        Raises:
            ValueError: another suffix, or ``.npy`` for a corruption other than a mismatch.
        """
        if path.suffix == ".npz":
            header: dict[str, Any] = {"format": _FORMAT, "collection": self.collection, "split": self.split}
            header |= {"fingerprint": self.fingerprint, "imbalance": asdict(self.imbalance), "images": self.images}
            header["partners_as_asked"] = self.partners_as_asked
            arrays: dict[str, Any] = {"rows": self.rows, "caption_image": self.caption_image, "clean": self.clean}
            write_atomically(
                path, lambda part: np.savez_compressed(part, header=np.array(json.dumps(header)), **arrays)
            )
        elif path.suffix == ".npy" and self.imbalance.kind == "mismatch":
            write_atomically(path, lambda part: np.save(part, self._published()))
        else:
            raise ValueError(f"{path} must end in .npz, or in .npy for a mismatch in its published form")

    def _published(self) -> NDArray[np.int64]:
        if self.imbalance.level == "caption":
            return self.caption_image
        receiver = np.arange(self.of)
        receiver[self.clean] = self.caption_image
        return receiver


def read_noise(path: Path, table: CaptionTable | None = None) -> NoiseTable:
    """Read a noise table or a published index.

    A published index with N entries has level image: the captions of image i are paired with image index[i] (RCL, DECL). One
    with C entries has level caption: caption k is paired with image index[k] (NCR, BiCro). Entries are row numbers, so the split
    must be in the same order as in the publication.

    Args:
        path: ``.npz`` or ``.npy`` without pickled content.
        table: the clean split; when None, captions are assumed to be grouped by image, with equally many per image.

    Returns:
        The table.

    Raises:
        ValueError: the file is missing, in another format, of another length than the split's images or captions, or made for
            other data.
    """
    if not path.is_file():
        raise ValueError(f"no noise table at {path}: make one with sdr noise make")
    if path.suffix == ".npy":
        return _read_published(path, table)
    try:
        found = _read_own(path)
    except Exception as error:  # numpy, zipfile and zlib raise many types of errors for damaged files
        raise ValueError(f"{path} is not a noise table of sdr noise make: {error}") from error
    if table is not None and table.fingerprint != found.fingerprint:
        raise ValueError(
            f"{path} was made for {found.collection} {found.split} ({found.fingerprint[:12]}), not for {table.name} "
            f"{table.split} as it is read here ({table.fingerprint[:12]}): make it anew with sdr noise make"
        )
    if table is not None and not _fits(found, table):
        raise ValueError(f"{path} is damaged, its rows are not those of {table.name} {table.split}: make it anew")
    return found


def is_noise_table(path: Path) -> bool:
    """Whether a file is an ``.npz`` written by :meth:`NoiseTable.save`; published indices are not recognised."""
    try:
        _read_own(path)
    except Exception:  # numpy, zipfile and json raise many types of errors for other files
        return False
    return True


def wrong_captions_per_image(clean: NDArray[np.int64], paired: NDArray[np.int64], images: int) -> dict[int, int]:
    """Count the images with 0, 1, 2, ... captions of another image.

    Args:
        clean: (C,) true image of each caption.
        paired: (C,) image paired with each caption.
        images: number of images.

    Returns:
        Number of images by number of wrong captions.
    """
    wrong = np.bincount(paired[paired != clean], minlength=images)
    return {int(k): int(n) for k, n in enumerate(np.bincount(wrong)) if n}


def _rows(array: NDArray[Any]) -> NDArray[np.int64]:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"found {array.dtype} of shape {array.shape}, expected (n,) rows")
    rows = array.astype(np.int64)
    if len(rows) and rows.min() < 0:
        raise ValueError(f"found the negative row {rows.min()}")
    return rows


def _read_own(path: Path) -> NoiseTable:
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        header = json.loads(str(file["header"]))
        rows, paired, clean = (_rows(file[name]) for name in ("rows", "caption_image", "clean"))
    if header["format"] != _FORMAT:
        raise ValueError(f"found the format {header['format']!r}, expected {_FORMAT!r}")
    if not len(clean) or len(clean) != len(paired):
        raise ValueError(f"found {len(paired)} pairs for {len(clean)} captions")
    images = int(header["images"])
    if max(int(clean.max()), int(paired.max())) >= images:
        raise ValueError(f"found pairs beyond its {images} images")
    made_for = header["collection"], header["split"], header["fingerprint"]
    as_asked = header.get("partners_as_asked")  # absent in older files
    return NoiseTable(Imbalance(**header["imbalance"]), *made_for, rows, paired, clean, images, as_asked)


def _fits(found: NoiseTable, table: CaptionTable) -> bool:
    return (
        found.images == len(table.image_ids)
        and np.array_equal(found.clean, table.caption_image)
        and int(found.rows.max(initial=-1)) < found.of
    )


def _read_published(path: Path, table: CaptionTable | None) -> NoiseTable:
    try:
        with path.open("rb") as file:
            index = _rows(np.lib.format.read_array(file, allow_pickle=False))
        if not len(index):
            raise ValueError("it is empty")
    except Exception as error:  # see read_noise
        raise ValueError(f"{path} is not a published index, rows of images in a plain .npy array: {error}") from error
    level, clean, images = _interpreted(path, index, table)
    paired = index[clean] if level == "image" else index
    changed = np.flatnonzero(index != (np.arange(images) if level == "image" else clean))
    imbalance = Imbalance("mismatch", len(changed) / len(index), level=level)
    made_for = (table.name, table.split, table.fingerprint) if table is not None else ("", "", "")
    return NoiseTable(imbalance, *made_for, changed, paired, clean, images)


def _interpreted(
    path: Path, index: NDArray[np.int64], table: CaptionTable | None
) -> tuple[Level, NDArray[np.int64], int]:
    images = int(index.max()) + 1
    if table is None:
        if len(index) == images:
            return "image", np.repeat(np.arange(images), 5), images
        if len(index) % images == 0:
            return "caption", np.repeat(np.arange(images), len(index) // images), images
        raise ValueError(
            f"{path} has {len(index)} entries for {images} images, neither one an image nor equally many: pass --data"
        )
    lengths: dict[int, Level] = {len(table.captions): "caption", len(table.image_ids): "image"}
    if len(index) not in lengths or images > len(table.image_ids):
        raise ValueError(
            f"{path} has {len(index)} entries up to {images - 1}; {table.name} {table.split} expects "
            f"{len(table.image_ids)} (one an image) or {len(table.captions)} (one a caption)"
        )
    return lengths[len(index)], table.caption_image, len(table.image_ids)
