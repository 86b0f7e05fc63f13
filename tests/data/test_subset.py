"""Fewer training images."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.data.images import InMemory
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.subset import SubsetImages, chosen_rows, subset_table
from sdr_lightning.data.tokenizer import SceneTokenizer
from tests.data.collection import MemorySource, make_table


def module(**options: object) -> RetrievalDataModule:
    return RetrievalDataModule(MemorySource(), SceneTokenizer(), batch_size=2, image_size=16, **options)  # type: ignore[arg-type]


def test_a_subset_has_the_images_of_smallest_hash_and_all_their_captions() -> None:
    whole = make_table()
    rows = chosen_rows(whole.image_ids, 3, seed=0)
    table = subset_table(whole, rows)
    expected = [(whole.image_ids[image], c) for image, c in zip(whole.caption_image, whole.captions, strict=True)]
    assert list(table.image_ids) == [whole.image_ids[row] for row in rows]
    found = [(table.image_ids[image], c) for image, c in zip(table.caption_image, table.captions, strict=True)]
    assert found == [pair for pair in expected if pair[0] in set(table.image_ids)]
    assert np.isin(table.text_content, whole.text_content).all()
    assert table.image_content.tolist() == whole.image_content[rows].tolist()


def test_subsets_are_nested_and_depend_on_the_seed() -> None:
    ids = [f"i{i}" for i in range(50)]
    sets = [set(chosen_rows(ids, count, seed=1)) for count in range(1, 51)]
    assert all(a < b for a, b in pairwise(sets))
    assert set(chosen_rows(ids, 20, seed=2)) != sets[19]
    assert {ids[row] for row in sets[19]} == {ids[::-1][row] for row in chosen_rows(ids[::-1], 20, seed=1)}
    for count in (0, 51):
        with pytest.raises(ValueError, match=f"from 1 to the 50 images of the training split, got {count}"):
            chosen_rows(ids, count, seed=0)


def test_images_of_a_subset_keep_their_identity_and_stream_order() -> None:
    images = InMemory([np.full((2, 2, 3), i, dtype=np.uint8) for i in range(6)])
    subset = SubsetImages(images, np.array([1, 4, 5]))
    assert [int(subset[row].max()) for row in range(len(subset))] == [1, 4, 5]
    assert [subset.identity(row) for row in range(3)] == [images.identity(row) for row in (1, 4, 5)]
    assert [(row, int(image.max())) for row, image in subset.stream()] == [(0, 1), (1, 4), (2, 5)]


def test_the_training_split_alone_is_smaller_and_equal_in_every_run(tmp_path: Path) -> None:
    noise = Imbalance("mismatch", 0.5)
    one, other = (module(train_images=4, seed=seed, imbalance=noise, cache=str(tmp_path)) for seed in (0, 1))
    assert len(one.split("train").table.image_ids) == len(one.split("train")._images) == 4
    assert one.table("train").fingerprint == other.table("train").fingerprint
    assert len(one.table("val").image_ids) == len(module().table("train").image_ids) == 8
    chosen = module(train_images=4, train_images_seed=3).table("train")
    assert chosen.fingerprint != one.table("train").fingerprint
