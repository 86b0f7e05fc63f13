"""What a collection must offer to be used: a table per split, images by row, and graded relevance."""

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
from sdr_lightning.data.strings import Strings
from sdr_lightning.data.table import SPLITS, CaptionTable, Split
from sdr_lightning.metrics.relevance import Relevance, RougeLRelevance
from sdr_lightning.paths import FilePath, expand


class Source(ABC):
    """A captioned image collection.

    Attributes:
        name: of the collection; part of every fingerprint.
        relevance_description: one sentence that says what the graded relevance is.
    """

    name: str
    relevance_description = (
        "ROUGE-L between captions: of a caption and an image, against all captions of that image; "
        "of two captions, against all captions of the second one's image; "
        "of two images, the mean over the first one's captions"
    )

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits there are."""
        return SPLITS

    @abstractmethod
    def table(self, split: Split) -> CaptionTable:
        """Images and captions of a split, clean.

        Raises:
            ValueError: the collection on disk is absent, incomplete or malformed.
        """

    @abstractmethod
    def images(self, split: Split) -> Images:
        """The images of a split by row, decoded when they are asked for."""

    def problems(self, split: Split) -> list[Problem]:
        """What is wrong with a split, pixels aside; a generated collection has nothing wrong with it."""
        return []

    def absent(self, split: Split) -> list[str]:
        """Ids of the images of a split that are not there."""
        return []

    def there(self, split: Split) -> tuple[Sequence[str], Images]:
        """Ids and images of a split that are there, even where a problem keeps the split from being used."""
        return self.table(split).image_ids, self.images(split)

    def relevance(self, split: Split, cache: Path) -> Relevance:
        """Graded relevance between the items of a split: ROUGE-L unless the collection knows better.

        Args:
            split: which split.
            cache: folder for what is dear to compute.
        """
        table = self.table(split)
        return RougeLRelevance(table.captions, table.caption_image, len(table.image_ids), cache=cache)


class RecordSource(Source):
    """A collection that a reader reads into records.

    Args:
        name: of the collection.
        skip_missing: leave out images that are not there, instead of refusing the collection.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line, such as ``sdr data check --unusable``
            writes.
    """

    def __init__(
        self, name: str, skip_missing: bool = False, skip_empty: bool = False, leave_out: FilePath | None = None
    ) -> None:
        self.name, self.skip_missing, self.skip_empty, self.leave_out = name, skip_missing, skip_empty, leave_out

    @abstractmethod
    def read(self) -> Records:
        """All records of all splits there are.

        Raises:
            ValueError: the files are absent or malformed; names the file and the entry.
        """

    @abstractmethod
    def images_of(self, split: Split, references: Strings) -> Images:
        """The images that references point to."""

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Which images are not there, each with where it was looked for; formats that carry their images miss none."""
        return {}

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that the reader found."""
        return tuple(split for split in SPLITS if split in self._readings)

    def table(self, split: Split) -> CaptionTable:
        """Images and captions of a split.

        Raises:
            ValueError: the first problem there is with the split: how many items it concerns, the first five, and what to do.
        """
        reading = self._reading(split)
        if reading.table is None:
            raise ValueError(f"{self.name} {next(problem for problem in reading.problems if problem.fatal)}")
        return reading.table

    def images(self, split: Split) -> Images:
        """The images of a split.

        Raises:
            ValueError: what :meth:`table` would say.
        """
        self.table(split)
        return self.images_of(split, self._reading(split).references)

    def problems(self, split: Split) -> list[Problem]:
        """Everything wrong with a split, pixels aside."""
        return self._reading(split).problems

    def absent(self, split: Split) -> list[str]:
        """Ids of the images of a split that are not there."""
        return self._reading(split).absent

    def there(self, split: Split) -> tuple[Sequence[str], Images]:
        """Ids and images of a split that are there, even where a problem keeps the split from being used."""
        reading = self._reading(split)
        return reading.ids, self.images_of(split, reading.references)

    def _reading(self, split: Split) -> _Reading:
        if split not in self._readings:
            raise ValueError(f"{self.name} has no {split} split; it has {', '.join(self.splits) or 'none'}")
        return self._readings[split]

    @cached_property
    def _readings(self) -> dict[Split, _Reading]:
        # The records themselves are dropped: thousands of objects that forked workers would copy one by one.
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
        return {split: self._judge(split, records, collection) for split, records in collection.items()}

    def _judge(self, split: Split, records: Sequence[Record], collection: Records) -> _Reading:
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
    table: CaptionTable | None  # None where a problem is fatal
    ids: Strings  # of the images that are there, like the references
    references: Strings


class FolderSource(RecordSource):
    """A collection whose images are files below a folder.

    A name is found in whichever Unicode normalisation the folder has it.

    Args:
        name: of the collection.
        images: the folder; ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        skip_missing: leave out images that are not in the folder, instead of refusing the collection.
        skip_empty: leave out empty captions.
        leave_out: a text file with the ids of images to leave out, one a line.
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
        self._spelled: dict[str, str] = {}  # references whose file is in the folder under another normalisation

    def missing(self, references: Sequence[str]) -> dict[str, str]:
        """Files that are not in the folder."""
        root = expand(self.root)
        paths = {reference: os.path.join(root, reference) for reference in references}  # noqa: PTH118 (tens of thousands)
        absent = {reference: path for reference, path in paths.items() if not os.path.isfile(path)}  # noqa: PTH113
        self._spelled |= _spelled_otherwise(Path(root), [name for name in absent if not name.isascii()])
        return {reference: path for reference, path in absent.items() if reference not in self._spelled}

    def images_of(self, split: Split, references: Strings) -> Images:
        """The files of the references."""
        if self._spelled:
            references = Strings(self._spelled.get(reference, reference) for reference in references)
        return ImageFiles(Path(expand(self.root)), references)


def _spelled_otherwise(root: Path, names: Sequence[str]) -> dict[str, str]:
    """Files that are below a folder under another Unicode normalisation of their name: as macOS and Linux write it."""
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
