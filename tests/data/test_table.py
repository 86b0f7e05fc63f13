from dataclasses import replace

import numpy as np
import pytest

from sdr_lightning.data.table import CaptionTable
from sdr_lightning.strings import Strings
from tests.data.collection import COUNTS, make_table

TABLE = make_table()
CAPTIONS = sum(COUNTS)


def test_text_columns_are_stored_as_strings() -> None:
    table = CaptionTable("mine", "val", ("i",), iter(["x", "y"]), ["1", "2"], np.zeros(2, dtype=np.int64))  # type: ignore[arg-type]
    assert all(isinstance(column, Strings) for column in (table.image_ids, table.captions, table.caption_ids))
    assert (list(table.image_ids), list(table.captions), list(table.caption_ids)) == (["i"], ["x", "y"], ["1", "2"])


def test_columns_that_do_not_fit() -> None:
    for changes, message in [
        ({"image_ids": ["i3", *TABLE.image_ids[1:]]}, "image id 'i3' occurs more than once"),
        ({"caption_ids": ["c3.0", *TABLE.caption_ids[1:]]}, "caption id 'c3.0' occurs more than once"),
        ({"captions": TABLE.captions[1:]}, "captions, their ids and their images differ in number"),
        ({"caption_ids": TABLE.caption_ids[1:]}, "captions, their ids and their images differ in number"),
        ({"caption_image": TABLE.caption_image[1:]}, "captions, their ids and their images differ in number"),
        ({"caption_image": TABLE.caption_image + 1}, "image rows from 1 to 8 for 8 images"),
        ({"caption_image": TABLE.caption_image - 1}, "image rows from -1 to 6 for 8 images"),
    ]:
        with pytest.raises(ValueError, match=f"memory train: {message}"):
            replace(TABLE, **changes)


def test_an_empty_split_is_refused() -> None:
    for images, captions in [(0, 0), (1, 0)]:
        with pytest.raises(ValueError, match=f"memory val: {images} images and {captions} captions"):
            CaptionTable("memory", "val", ["i"] * images, [], [], np.zeros(0, dtype=np.int64))


def test_text_content_is_equal_for_equal_captions_only() -> None:
    table = replace(TABLE, captions=["a word", "a word", *TABLE.captions[2:]])
    assert table.text_content[0] == table.text_content[1]
    assert len(set(table.text_content.tolist())) == CAPTIONS - 1
    assert table.text_content.dtype == table.image_content.dtype == np.int64


def test_image_content_depends_on_the_collection() -> None:
    here, there = TABLE.image_content, make_table(name="elsewhere").image_content
    assert len({*here.tolist(), *there.tolist()}) == 2 * len(COUNTS)


def test_fingerprint_covers_every_column() -> None:
    swapped = TABLE.caption_image.copy()
    swapped[[0, 3]] = swapped[[3, 0]]
    others = [
        replace(TABLE, name="other"),
        replace(TABLE, split="val"),
        replace(TABLE, image_ids=["x", *TABLE.image_ids[1:]]),
        replace(TABLE, captions=["x", *TABLE.captions[1:]]),
        replace(TABLE, caption_ids=["x", *TABLE.caption_ids[1:]]),
        replace(TABLE, caption_image=swapped),
    ]
    assert len({table.fingerprint for table in (TABLE, *others)}) == 7
    assert make_table().fingerprint == TABLE.fingerprint
