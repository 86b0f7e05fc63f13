from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.datasets import (
    CaptionDataset,
    Draw,
    ImageDataset,
    ImageViewDataset,
    PairDataset,
    SiblingCaptionDataset,
)
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.split import PreparedSplit
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.data.transforms import augmentation
from sdr_lightning.types import Tokens
from tests.data.collection import COUNTS, MemorySource, bank_of, make_table, prepared

MISMATCH = Imbalance("mismatch", 1.0)
TOKENIZER = SceneTokenizer()


def split_under(imbalance: Imbalance, counts: tuple[int, ...] = COUNTS) -> PreparedSplit:
    return prepared(MemorySource(counts), TOKENIZER, 16, [imbalance])


def draw(*rows: int, epoch: int = 0) -> Draw:
    return Draw(epoch, np.array(rows, dtype=np.int64))


def ids_of(captions: list[str]) -> list[list[int]]:
    return TOKENIZER(captions).input_ids.tolist()


def tokens_of(texts: Tokens | Tensor) -> list[list[int]]:
    assert isinstance(texts, Tokens)
    return texts.input_ids.tolist()


PAPER = augmentation("paper", 16)


def test_pairs_under_a_mismatch() -> None:
    """The image that the caption claims, and each teacher's view of what is really there."""
    split, clean = split_under(MISMATCH), make_table()
    split.attach_teacher(bank_of(split, "image"))
    split.attach_teacher(bank_of(split, "text"))
    pairs = PairDataset(split, None, 0)
    assert len(pairs) == sum(COUNTS)
    rows = [7, 0, 19, 7]
    batch = pairs[draw(*rows)]
    claimed = split.table.caption_image[rows]
    assert (claimed != clean.caption_image[rows]).all()
    assert batch.image_index.tolist() == claimed.tolist()
    assert batch.pair_index.tolist() == rows
    pixels = MemorySource().images("train")
    for image, row in zip(batch.images, claimed, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[row])
    assert tokens_of(batch.texts) == ids_of([clean.captions[row] for row in rows])
    assert batch.image_teacher is not None
    assert batch.text_teacher is not None
    assert batch.image_teacher[:, 0].tolist() == claimed.tolist()
    assert batch.text_teacher[:, 0].tolist() == rows


def test_pairs_without_banks_have_no_teachers() -> None:
    batch = PairDataset(split_under(Imbalance()), None, 0)[draw(0, 1)]
    assert batch.image_teacher is None
    assert batch.text_teacher is None


def test_images_and_captions() -> None:
    split = split_under(MISMATCH)
    images, captions = ImageDataset(split), CaptionDataset(split)
    assert (len(images), len(captions)) == (len(COUNTS), sum(COUNTS))
    batch = images[draw(3, 1)]
    assert batch.rows.tolist() == batch.group.tolist() == [3, 1]
    assert torch.equal(batch.inputs, split.images(np.array([3, 1])))
    batch = captions[draw(4, 0)]
    assert batch.rows.tolist() == [4, 0]
    assert batch.group.tolist() == split.table.caption_image[[4, 0]].tolist()
    assert tokens_of(batch.inputs) == ids_of([split.table.captions[4], split.table.captions[0]])


def test_image_views() -> None:
    views = ImageViewDataset(split_under(Imbalance()), PAPER, 0)
    assert len(views) == len(COUNTS)
    batch = views[draw(3, 1, 4)]
    assert batch.rows.tolist() == batch.group.tolist() == [3, 1, 4, 3, 1, 4]
    assert isinstance(batch.inputs, Tensor)
    assert batch.inputs.shape == (6, 3, 16, 16)
    for first, second in zip(batch.inputs[:3], batch.inputs[3:], strict=True):
        assert not torch.equal(first, second)
    again = views[draw(4, 3)].inputs
    assert isinstance(again, Tensor)
    assert torch.equal(again, batch.inputs[[2, 0, 5, 3]])  # a view does not depend on its batch


def test_views_need_an_augmentation() -> None:
    with pytest.raises(ValueError, match="two views of an image need an augmentation"):
        ImageViewDataset(split_under(Imbalance()), None, 0)


@pytest.mark.parametrize("imbalance", [Imbalance(), MISMATCH])
def test_sibling_captions(imbalance: Imbalance) -> None:
    split = split_under(imbalance)
    siblings = SiblingCaptionDataset(split, 0)
    counts = np.bincount(split.table.caption_image)
    assert len(siblings) == int((counts > 1).sum()) == 6
    groups: set[int] = set()
    for epoch in range(4):
        batch = siblings[draw(5, 0, 2, epoch=epoch)]
        assert batch.rows.shape == (6,)
        first, second = batch.rows.view(2, 3)
        assert (first != second).all()
        assert torch.equal(batch.group, split.caption_image[batch.rows])
        assert torch.equal(*batch.group.view(2, 3))
        assert len(set(batch.group.tolist())) == 3
        assert tokens_of(batch.inputs) == ids_of([split.table.captions[row] for row in batch.rows])
        groups |= set(siblings[draw(*range(6), epoch=epoch)].group.tolist())
    assert groups == set(np.flatnonzero(counts > 1).tolist())


def test_every_pair_of_siblings_comes_up() -> None:
    siblings = SiblingCaptionDataset(split_under(Imbalance(), (1, 3)), 0)
    seen = {tuple(siblings[draw(0, epoch=epoch)].rows.tolist()) for epoch in range(100)}
    assert seen == {(a, b) for a in (1, 2, 3) for b in (1, 2, 3) if a != b}


def test_siblings_are_a_function_of_seed_epoch_and_row() -> None:
    split = split_under(Imbalance(), (5,) * 12)
    every = draw(*range(12))

    def index(seed: int, epoch: int) -> list[int]:
        return SiblingCaptionDataset(split, seed)[Draw(epoch, every.rows)].rows.tolist()

    assert index(0, 0) == index(0, 0)
    assert len({tuple(index(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6
    alone = SiblingCaptionDataset(split, 0)[draw(7)].rows.tolist()
    assert alone == [index(0, 0)[7], index(0, 0)[19]]


def test_siblings_need_two_captions() -> None:
    with pytest.raises(ValueError, match="no image of memory has two captions"):
        SiblingCaptionDataset(split_under(Imbalance(), (1, 1, 1)), 0)


@pytest.mark.parametrize("make", [PairDataset, ImageViewDataset])
def test_augmentation_is_a_function_of_seed_epoch_and_row(make: Callable[..., PairDataset | ImageViewDataset]) -> None:
    split = split_under(Imbalance(), (1,) * 8)

    def pictures(seed: int, epoch: int, *rows: int) -> list[bytes]:
        batch = make(split, PAPER, seed)[draw(*rows, epoch=epoch)]
        images = batch.images if hasattr(batch, "images") else batch.inputs
        return [image.numpy().tobytes() for image in images[: len(rows)]]

    base = pictures(0, 0, 2, 5, 6)
    torch.manual_seed(1)  # another global state changes nothing
    assert pictures(0, 0, 6, 2) == [base[2], base[0]]
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        assert not set(pictures(seed, epoch, 2, 5, 6)) & set(base)
