"""Collections of precomputed image features: detector regions, or one vector per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.images import Features, Images
from sdr_lightning.data.records import Record, Records, numbered, one_line
from sdr_lightning.data.source import RecordSource
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.identity import stable_hash
from sdr_lightning.paths import FilePath, expand, text_lines
from sdr_lightning.strings import Strings


class PrecomputedSource(RecordSource):
    """A folder in the ``*_precomp`` format of SCAN and its successors.

    ``{split}_ims.npy`` holds (N, R, D) features of regions or (N, D) features of images. ``{split}_caps.txt`` holds one
    caption per line, grouped by image in the order of the images. If there is one feature row per caption (5 N rows), the first
    row of each image is used. ``{split}_image_of_caption.npy``, (C,) image rows, allows any number of captions per image.
    Image ids are split and row; the format has no names, so leaks between splits cannot be detected.

    Args:
        name: name of the collection.
        folder: the folder; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        splits: the name of each split in the file names.
        captions_per_image: captions per image, if there is no ``image_of_caption`` file.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.

    Raises:
        ValueError: captions_per_image is below 1.
    """

    def __init__(
        self,
        name: str,
        folder: FilePath,
        splits: dict[str, str] | None = None,
        captions_per_image: int = 5,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        super().__init__(name, skip_empty=skip_empty, leave_out=leave_out)
        if captions_per_image < 1:
            raise ValueError(f"captions_per_image must be at least 1, got {captions_per_image}")
        self.folder, self.captions_per_image = folder, captions_per_image
        self.names = splits or {"train": "train", "val": "dev", "test": "test"}

    def read(self) -> Records:
        """Read the records of the splits that have a feature file."""
        found = {split: self._read(split) for split in SPLITS if self._file(split, "ims.npy").is_file()}
        if not found:
            raise ValueError(
                f"no features in {expand(self.folder)}: expected files such as {self._file('train', 'ims.npy').name}"
            )
        return found

    def images_of(self, split: Split, references: Strings) -> Images:
        """Return the features, memory-mapped."""
        path = self._file(split, "ims.npy")
        return FeatureRows(path, np.fromiter((int(row) for row in references), dtype=np.int64, count=len(references)))

    def _file(self, split: Split, ending: str) -> Path:
        return Path(expand(self.folder)) / f"{self.names.get(split, split)}_{ending}"

    def _read(self, split: Split) -> list[Record]:
        path = self._file(split, "ims.npy")
        captions = [one_line(line) for line in text_lines(self._file(split, "caps.txt"))]
        rows = len(load_array(path))
        image_of, stride = self._pairing(split, rows, len(captions))
        owned: list[list[int]] = [[] for _ in range(rows // stride)]
        for caption, image in enumerate(image_of.tolist()):
            owned[image].append(caption)
        records = []
        for image, own in enumerate(owned):
            name = f"{split}-{image}"
            records.append(Record(name, str(image * stride), [captions[k] for k in own], numbered(name, len(own))))
        return records

    def _pairing(self, split: Split, rows: int, captions: int) -> tuple[NDArray[np.int64], int]:
        """Return the image of each caption and the number of feature rows per image."""
        path = self._file(split, "image_of_caption.npy")
        if path.is_file():
            image_of = np.asarray(load_array(path))
            fits = image_of.shape == (captions,) and np.issubdtype(image_of.dtype, np.integer)
            if not fits or not 0 <= image_of.min() <= image_of.max() < rows:
                raise ValueError(f"{path} must hold {captions} rows of images below {rows}, one a caption")
            return image_of.astype(np.int64), 1
        per_image = self.captions_per_image
        if captions == rows * per_image:
            return np.repeat(np.arange(rows), per_image), 1
        if captions == rows and rows % per_image == 0 and self._repeats(split, per_image):
            return np.repeat(np.arange(rows // per_image), per_image), per_image
        raise ValueError(
            f"{self.name} {split}: {rows} rows of features and {captions} captions; expected {rows * per_image} captions "
            f"({per_image} an image) or as many rows as captions, each image's repeated: set captions_per_image, or write "
            f"{path.name}"
        )

    def _repeats(self, split: Split, per_image: int) -> bool:
        """Whether the feature rows of an image are equal; only the first and the last image are checked."""
        array = load_array(self._file(split, "ims.npy"))
        groups = (array[:per_image], array[-per_image:])
        return all(np.array_equal(group, np.broadcast_to(group[0], group.shape)) for group in groups)


class FeatureRows(Images):
    """Rows of a memory-mapped array, shared by worker processes.

    Args:
        path: an ``.npy`` file with floats, (M, R, D) or (M, D).
        rows: (N,) int64 rows of the array.

    Raises:
        ValueError: the file is missing, or not an array of floats of this shape.
    """

    are_features = True

    def __init__(self, path: Path, rows: NDArray[np.int64]) -> None:
        self.path, self.rows, self.array = path, rows, load_array(path)
        if self.array.ndim not in (2, 3) or not np.issubdtype(self.array.dtype, np.floating):
            raise ValueError(
                f"{path} holds {self.array.dtype} of shape {self.array.shape}, expected floats (N, R, D) or (N, D)"
            )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Features:
        features = np.array(self.array[self.rows[row]], dtype=np.float32)
        if not np.isfinite(features).all():
            raise ValueError(f"row {self.rows[row]} of {self.path} holds NaN or infinity, expected finite features")
        return features.reshape(-1, features.shape[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": None}  # pickling a memory map would copy its content

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.array = load_array(self.path)

    def identity(self, row: int) -> int:
        """Return a hash of the file's path, size and modification time, and of the row."""
        status = self.path.stat()
        return stable_hash(self.path.resolve(), status.st_size, status.st_mtime_ns, int(self.rows[row]))


def load_array(path: Path) -> NDArray[Any]:
    """Memory-map an ``.npy`` file without pickled content.

    Raises:
        ValueError: the file is missing, or not a plain array of at least one dimension.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"no array at {path}") from error
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not a plain .npy array: {error}") from error
    if not array.ndim:
        raise ValueError(f"{path} holds a single value, expected rows")
    return array
