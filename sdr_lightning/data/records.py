"""Records of images with captions, into which every reader reads a collection, and their validation."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sdr_lightning.data.table import CaptionTable, Split

_SURROGATE = re.compile("[\ud800-\udfff]")
_LOST = "\ufffd"  # replacement character


class Record(NamedTuple):
    """One image with its captions.

    Attributes:
        image_id: id, unique in the collection.
        reference: location of the image: a path below the image folder, or a row number.
        captions: any number of captions.
        caption_ids: their ids, unique in the collection.
    """

    image_id: str
    reference: str
    captions: Sequence[str]
    caption_ids: Sequence[str]


Records = Mapping[Split, Sequence[Record]]


class Problem(NamedTuple):
    """A problem of a split.

    Attributes:
        split: the split.
        what: description, such as ``images are missing``.
        number: number of items affected.
        of: total number of items.
        first: up to five affected items.
        remedy: what to do.
        fatal: whether training would fail; otherwise the problem is a note.
    """

    split: str
    what: str
    number: int
    of: int
    first: tuple[str, ...]
    remedy: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.split}: {self.number} of {self.of} {self.what}, first: {', '.join(self.first)}; {self.remedy}"


def numbered(image_id: str, count: int) -> list[str]:
    """Return caption ids ``image#0``, ``image#1``, ... for formats without caption ids."""
    return [f"{image_id}#{k}" for k in range(count)]


def one_line(caption: str) -> str:
    """Replace line breaks and repeated spaces by one space, and lone surrogates by U+FFFD."""
    return _SURROGATE.sub(_LOST, " ".join(caption.split()))


def captions_in(cell: Any, where: str, column: str) -> list[str]:
    """Return the captions in one cell: a text, a list of texts, or the printed form of a list.

    Tables converted to CSV hold printed lists: ``['a', 'b']`` (Python), ``["a", "b"]`` (JSON) or ``['a' 'b']`` (numpy).

    Args:
        cell: value of a caption column.
        where: name of the row, for error messages.
        column: name of the column.

    Returns:
        The captions; empty for None and for an empty list.

    Raises:
        ValueError: the cell is neither a text nor a list of texts.

    >>> captions_in("['a dog', 'a puppy']", "row 1", "caption")
    ['a dog', 'a puppy']
    """
    texts = [cell] if isinstance(cell, str) else [] if cell is None else cell
    if isinstance(cell, str) and (written := _written_list(cell)) is not None:
        texts = written
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where} has {cell!r} under {column!r}, expected text or a list of texts")
    return list(texts)


def _written_list(text: str) -> list[str | None] | None:
    """Parse a printed list of texts, with None for missing items; return None for any other text."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        items = _python_list(text)
    is_list = isinstance(items, list) and all(item is None or isinstance(item, str) for item in items)
    return items if is_list else None


def _python_list(text: str) -> list[Any] | None:
    """Parse a list as printed by Python, or by numpy without commas."""
    layout = (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    items: list[Any] = []
    try:
        tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in layout]
        for token in tokens[1:-1]:
            if token.type == tokenize.STRING:
                items.append(ast.literal_eval(token.string))
            elif token.string in ("None", "nan"):
                items.append(None)
            elif token.string != ",":
                return None
    except (tokenize.TokenError, SyntaxError, ValueError):
        return None
    return items


def without_empty(record: Record) -> Record:
    """Return a record without its empty captions."""
    kept = [k for k, caption in enumerate(record.captions) if caption]
    return record._replace(
        captions=[record.captions[k] for k in kept], caption_ids=[record.caption_ids[k] for k in kept]
    )


def grouped(rows: Sequence[tuple[str, str, str | None]]) -> list[Record]:
    """Group rows of (image id, reference, caption or None) into records, in order of the first row of each image."""
    captions: dict[str, list[str]] = {}
    references: dict[str, str] = {}
    for image_id, reference, caption in rows:
        captions.setdefault(image_id, []).extend([] if caption is None else [one_line(caption)])
        references.setdefault(image_id, reference)
    return [Record(name, references[name], texts, numbered(name, len(texts))) for name, texts in captions.items()]


def tabulate(name: str, split: Split, records: Sequence[Record]) -> CaptionTable:
    """Convert records to a table of columns."""
    return CaptionTable(
        name,
        split,
        [record.image_id for record in records],
        [caption for record in records for caption in record.captions],
        [caption_id for record in records for caption_id in record.caption_ids],
        np.repeat(np.arange(len(records)), [len(record.captions) for record in records]),
    )


def find_problems(split: Split, records: Sequence[Record], collection: Records) -> list[Problem]:
    """Find problems with the records of a split; pixels are not read.

    Args:
        split: the split.
        records: the records of the split that are used.
        collection: all records of all splits, to detect leaks.

    Returns:
        Problems: no records, repeated ids, images in two splits, empty captions, lost characters, images without captions.
    """
    images, captions = len(records), sum(len(record.captions) for record in records)
    if not records:
        return [Problem(split, "images", 0, 0, ("none",), "check the annotation file and what is skipped")]
    problems = []

    def add(what: str, found: Sequence[str], of: int, remedy: str, fatal: bool = True) -> None:
        if found:
            problems.append(Problem(split, what, len(found), of, tuple(found[:5]), remedy, fatal))

    add(
        "images have a repeated id",
        _repeated(record.image_id for record in records),
        images,
        "give every image one entry with an id of its own",
    )
    add(
        "images have an id that differs from another's by its Unicode normalisation only",
        _repeated(unicodedata.normalize("NFC", name) for name in {record.image_id for record in records}),
        images,
        "write each name in one way",
    )
    add(
        "captions have a repeated id",
        _repeated(name for record in records for name in record.caption_ids),
        captions,
        "give every caption an id of its own",
    )
    elsewhere = {
        record.image_id: other for other, entries in collection.items() if other != split for record in entries
    }
    add(
        "images are in another split as well (a leak)",
        [f"{r.image_id} ({elsewhere[r.image_id]})" for r in records if r.image_id in elsewhere],
        images,
        "keep each image in one split, or name it in leave_out",
    )
    add(
        "captions are empty",
        [name for r in records for name, text in zip(r.caption_ids, r.captions, strict=True) if not text],
        captions,
        "complete them, or leave them out with skip_empty",
    )
    add(
        "captions hold U+FFFD, a character that was lost",
        [name for r in records for name, text in zip(r.caption_ids, r.captions, strict=True) if _LOST in text],
        captions,
        "they are used as they are",
        fatal=False,
    )
    add(
        "images have no caption",
        [record.image_id for record in records if not record.captions],
        images,
        "they are left out" if captions else "give them captions, or leave the split out",
        fatal=not captions,
    )
    return problems


def _repeated(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
