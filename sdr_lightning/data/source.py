"""Interface of a collection: a table of captions per split, images by row, and graded relevance."""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sdr_lightning.data.id_list import read_ids
from sdr_lightning.data.images import ImageFiles, Images
from sdr_lightning.data.records import Problem, Record, Records, find_problems, tabulate, without_empty
from sdr_lightning.data.table import SPLITS, CaptionTable, Split
from sdr_lightning.metrics.relevance import Relevance, RougeLRelevance
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.strings import Strings


class Source(ABC):
    """A captioned image collection.

    Attributes:
        name: name of the collection; part of every fingerprint.
        relevance_description: one sentence that defines the graded relevance.
    """

    name: str
    relevance_description = (
        "ROUGE-L between captions: of a caption and an image, against all captions of that image; "
        "of two captions, against all captions of the second one's image; "
        "of two images, the mean over the first one's captions"
    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The available splits."""
        return SPLITS

    @abstractmethod
    def table(self, split: Split) -> CaptionTable:
        """Return the images and captions of a split, without corruption.

        Raises:
            ValueError: the collection on disk is missing, incomplete or malformed.
        """

    @abstractmethod
    def images(self, split: Split) -> Images:
        """Return the images of a split by row, decoded on access."""

    def problems(self, split: Split) -> list[Problem]:
        """Return the problems of a split, without reading pixels; none for a generated collection."""
        return []

    def absent(self, split: Split) -> list[str]:
        """Return the ids of missing images of a split."""
        return []

    def there(self, split: Split) -> tuple[Sequence[str], Images]:
        """Return ids and images of the existing images of a split, even if a problem makes the split unusable."""
        return self.table(split).image_ids, self.images(split)

    def relevance(self, split: Split, cache: Path) -> Relevance:
        """Return the graded relevance between the items of a split, ROUGE-L by default.

        Args:
            split: the split.
            cache: folder for expensive results.
        """
        table = self.table(split)
        return RougeLRelevance(table.captions, table.caption_image, len(table.image_ids), cache=cache)


class RecordSource(Source):
    """A collection that is read into records.

    Args:
        name: name of the collection.
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line, as written by ``sdr data check --unusable``.
    """

    def __init__(
        self, name: str, skip_missing: bool = False, skip_empty: bool = False, leave_out: FilePath | None = None
    ) -> None:
        self.name, self.skip_missing, self.skip_empty, self.leave_out = name, skip_missing, skip_empty, leave_out

    @abstractmethod
    def read(self) -> Records:
        """Read all records of all splits.

        Raises:
            ValueError: a file is missing or malformed; with the file and the entry.
        """

    @abstractmethod
    def images_of(self, split: Split, references: Strings) -> Images:
        """Return the images of references."""

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Return missing references with the locations searched; empty for formats that contain their images."""
        return {}

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits found by the reader."""
        return tuple(split for split in SPLITS if split in self._readings)

    def table(self, split: Split) -> CaptionTable:
        """Return the images and captions of a split.

        Raises:
            ValueError: the split has a fatal problem; with the number of items affected, the first five, and a remedy.
        """
        reading = self._reading(split)
        if reading.table is None:
            raise ValueError(f"{self.name} {next(problem for problem in reading.problems if problem.fatal)}")
        return reading.table

    def images(self, split: Split) -> Images:
        """Return the images of a split.

        Raises:
            ValueError: as :meth:`table`.
        """
        self.table(split)
        return self.images_of(split, self._reading(split).references)

    def problems(self, split: Split) -> list[Problem]:
        """Return the problems of a split, without reading pixels."""
        return self._reading(split).problems

    def absent(self, split: Split) -> list[str]:
        """Return the ids of missing images of a split."""
        return self._reading(split).absent

    def there(self, split: Split) -> tuple[Sequence[str], Images]:
        """Return ids and images of the existing images of a split, even if a problem makes the split unusable."""
        reading = self._reading(split)
        return reading.ids, self.images_of(split, reading.references)

    def _reading(self, split: Split) -> _Reading:
        if split not in self._readings:
            raise ValueError(f"{self.name} has no {split} split; it has {', '.join(self.splits) or 'none'}")
        return self._readings[split]

    @cached_property
    def _readings(self) -> dict[Split, _Reading]:
        # The records are not kept: forked workers would copy their many objects one by one.
        left_out: set[str] = set()
        if self.leave_out is not None:
            left_out = read_ids(Path(expand(self.leave_out)))
        read = self.read()
        unknown = left_out - {record.image_id for records in read.values() for record in records}
        if unknown:
            raise ValueError(
                f"{self.leave_out} names {len(unknown)} images that {self.name} does not have, first {min(unknown)!r}: "
                "it was written for other data"
            )
        collection = {
            split: [
                without_empty(record) if self.skip_empty else record
                for record in records
                if record.image_id not in left_out
            ]
            for split, records in read.items()
        }
        return {split: self._validated(split, records, collection) for split, records in collection.items()}

    def _validated(self, split: Split, records: Sequence[Record], collection: Records) -> _Reading:
        missing = self.missing([record.reference for record in records])
        kept = [r for r in records if r.reference not in missing] if self.skip_missing else records
        problems = find_problems(split, kept, collection)
        if missing:
            skip = "leave them out with --data.init_args.source.init_args.skip_missing true"
            remedy = "they are left out" if self.skip_missing else f"complete the folder, or {skip}"
            first = tuple(missing.values())[:5]
            fatal = not self.skip_missing
            problems.insert(0, Problem(split, "images are missing", len(missing), len(records), first, remedy, fatal))
        kept = [record for record in kept if record.captions]
        fine = not any(problem.fatal for problem in problems)
        table = tabulate(self.name, split, kept) if fine else None
        absent = [record.image_id for record in records if record.reference in missing]
        there = list({record.image_id: record for record in kept if record.reference not in missing}.values())
        ids, references = Strings(r.image_id for r in there), Strings(r.reference for r in there)
        return _Reading(problems, absent, table, ids, references)


class _Reading(NamedTuple):
    problems: list[Problem]
    absent: list[str]
    table: CaptionTable | None  # None if a problem is fatal
    ids: Strings  # of existing images, as are the references
    references: Strings


class FolderSource(RecordSource):
    """A collection whose images are files below a folder.

    File names match regardless of their Unicode normalisation.

    Args:
        name: name of the collection.
        images: the folder; ``$NAME`` and ``${NAME:-default}`` are expanded from the environment.
        skip_missing: skip images whose files are missing, instead of raising an error.
        skip_empty: skip empty captions.
        leave_out: text file with the ids of images to skip, one per line.
    """

    def __init__(
        self,
        name: str,
        images: FilePath,
        skip_missing: bool = False,
        skip_empty: bool = False,
        leave_out: FilePath | None = None,
    ) -> None:
        super().__init__(name, skip_missing, skip_empty, leave_out)
        self.root = images
        self._renormalised: dict[str, str] = {}  # from references to file names in another Unicode normalisation

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Return references to missing files."""
        root = expand(self.root)
        paths = {reference: os.path.join(root, reference) for reference in references}  # noqa: PTH118 (speed)
        absent = {reference: path for reference, path in paths.items() if not os.path.isfile(path)}  # noqa: PTH113
        self._renormalised |= _find_renormalised(Path(root), [name for name in absent if not name.isascii()])
        return {reference: path for reference, path in absent.items() if reference not in self._renormalised}

    def images_of(self, split: Split, references: Strings) -> Images:
        """Return the image files of references."""
        if self._renormalised:
            references = Strings(self._renormalised.get(reference, reference) for reference in references)
        return ImageFiles(Path(expand(self.root)), references)


def _find_renormalised(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Find files whose names have another Unicode normalisation, e.g. after copying between macOS and Linux."""
    listings: dict[Path, dict[str, Path]] = {}
    found: dict[str, str] = {}
    for name in names:
        place: Path | None = root
        for part in Path(name).parts:
            if place is None or not place.is_dir():
                place = None
                break
            if place not in listings:
                listings[place] = {unicodedata.normalize("NFC", entry.name): entry for entry in place.iterdir()}
            place = listings[place].get(unicodedata.normalize("NFC", part))
        if place is not None and place.is_file():
            found[name] = str(place.relative_to(root))
    return found
