"""Several splits as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdr_lightning.data.images import InMemory, Pixels
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.joined import join_images, join_tables
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.pixel_cache import PixelCache
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.types import Modality
from tests.data.collection import MemorySource, bank_of

SCENES = SceneSource(num_train=8, num_val=5, num_test=6, size=16)


def table(split: Split, first: int, counts: Sequence[int]) -> CaptionTable:
    ids = [f"i{first + row}" for row in range(len(counts))]
    told = [(row, number) for row, count in enumerate(counts) for number in range(count)]
    captions = [f"caption {number} of {ids[row]}" for row, number in told]
    return CaptionTable(
        "c", split, ids, captions, [f"{ids[row]}.{number}" for row, number in told], np.array([row for row, _ in told])
    )


def pixels(count: int, seed: int) -> list[Pixels]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (4, 5, 3), dtype=np.uint8) for _ in range(count)]


class Streamed(InMemory):
    """Images that cannot be asked for, in an order of their own."""

    one_after_another = True

    def __getitem__(self, row: int) -> Pixels:
        raise ValueError("not one by one")

    def stream(self) -> Iterator[tuple[int, Pixels]]:
        for row in reversed(range(len(self))):
            yield row, self.pixels[row]


def test_rows_and_ids_follow_one_another() -> None:
    parts = table("train", 0, [2, 1]), table("val", 5, [1, 3, 1]), table("test", 9, [2])
    joined = join_tables(parts)
    assert (joined.name, joined.split) == ("c", "train")
    assert list(joined.image_ids) == ["i0", "i1", "i5", "i6", "i7", "i9"]
    assert joined.caption_image.tolist() == [0, 0, 1, 2, 3, 3, 3, 4, 5, 5]
    assert joined.caption_image.dtype == np.int64
    for row, (caption, name) in enumerate(zip(joined.captions, joined.caption_ids, strict=True)):
        image = joined.image_ids[joined.caption_image[row]]
        assert caption.endswith(f"of {image}")
        assert name.startswith(f"{image}.")
    assert joined.image_content.tolist() == np.concatenate([part.image_content for part in parts]).tolist()
    assert joined.text_content.tolist() == np.concatenate([part.text_content for part in parts]).tolist()


def test_one_split_is_itself() -> None:
    alone, images = table("train", 0, [1]), InMemory(pixels(2, 0))
    assert join_tables([alone]) is alone
    assert join_images([images]) is images


def test_an_id_in_two_splits_is_refused() -> None:
    with pytest.raises(ValueError, match="image id 'i1' occurs more than once"):
        join_tables([table("train", 0, [1, 1]), table("val", 1, [1])])
    other = table("val", 5, [1])
    same_caption = CaptionTable("c", "val", other.image_ids, other.captions, ["i0.0"], other.caption_image)
    with pytest.raises(ValueError, match=r"caption id 'i0\.0' occurs more than once"):
        join_tables([table("train", 0, [1]), same_caption])


def test_images_and_their_identities_follow_one_another() -> None:
    parts = [InMemory(pixels(count, seed)) for seed, count in enumerate((3, 1, 2))]
    joined = join_images(parts)
    assert len(joined) == 6
    for row, (part, inner) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]):
        assert np.array_equal(joined[row], parts[part][inner])
        assert joined.identity(row) == parts[part].identity(inner)
    assert len({joined.identity(row) for row in range(6)}) == 6
    with pytest.raises(IndexError):
        joined[6]
    assert not joined.one_after_another
    assert not joined.are_features
    assert [row for row, _ in joined.stream()] == list(range(6))


def test_streams_follow_one_another() -> None:
    """A part that can only be streamed makes the whole a stream, and each image still comes with its row."""
    plain, streamed = InMemory(pixels(2, 0)), Streamed(pixels(3, 1))
    for parts in ([plain, streamed], [streamed, plain], [streamed, Streamed(pixels(2, 2))]):
        joined = join_images(parts)
        assert joined.one_after_another
        expected = [one for part in parts for one in part.pixels]
        found = dict(joined.stream())
        assert sorted(found) == list(range(len(expected)))
        assert all(np.array_equal(found[row], one) for row, one in enumerate(expected))


def module(**options: Any) -> RetrievalDataModule:
    defaults: dict[str, Any] = {"batch_size": 10, "image_size": 16, "train_on": ["train", "val"], "select_on": "test"}
    return RetrievalDataModule(options.pop("source", SCENES), SceneTokenizer(), **{**defaults, **options})


def test_training_on_both_sees_both_and_nothing_of_test() -> None:
    data = module()
    data.setup("fit")
    assert set(data.splits) == {"train", "test"}
    split = data.split("train")
    both = [*SCENES.table("train").image_ids, *SCENES.table("val").image_ids]
    assert list(split.table.image_ids) == both
    assert not set(both) & set(data.split("test").table.image_ids)
    seen: set[int] = set()
    for batch in data.train_dataloader():
        for image, text, picture in zip(batch.image_index, batch.pair_index, batch.images, strict=True):
            assert int(split.caption_image[text]) == int(image)
            name = "train" if image < 8 else "val"
            expected = SCENES.images(name)[int(image) - (0 if image < 8 else 8)]
            assert np.array_equal(picture.permute(1, 2, 0).numpy(), expected)
            seen.add(int(text))
    assert len(seen) == 60  # 65 captions in batches of ten


def test_a_teacher_s_features_find_their_rows(tmp_path: Path) -> None:
    modalities: tuple[Modality, ...] = ("image", "text")
    for modality in modalities:
        parts = [
            bank_of(RetrievalDataModule(SCENES, SceneTokenizer(), 10, 16).split(s), modality) for s in ("val", "train")
        ]
        FeatureBank.union(parts).save(tmp_path / f"{modality}.safetensors")
    data = module(image_bank=f"{tmp_path}/image.safetensors", text_bank=f"{tmp_path}/text.safetensors")
    for modality in modalities:
        data.attach_teacher(modality)
    rows = np.array([12, 0, 8, 7])
    found = data.split("train").teacher("image", rows)
    assert found is not None
    assert found[:, 0].tolist() == [4, 0, 0, 7]  # in their own splits
    rows = np.array([64, 40, 39])
    found = data.split("train").teacher("text", rows)
    assert found is not None
    assert found[:, 0].tolist() == [24, 0, 39]


def test_bank_without_the_validation_split_is_refused(tmp_path: Path) -> None:
    bank_of(RetrievalDataModule(SCENES, SceneTokenizer(), 10, 16).split("train"), "image").save(tmp_path / "b")
    with pytest.raises(ValueError, match="the image bank lacks 5 of 13 ids"):
        module(image_bank=str(tmp_path / "b")).attach_teacher("image")


def test_corruption_applies_to_all_training_splits() -> None:
    plain, noisy = module().split("train"), module(imbalance=Imbalance("gaussian_noise", 1.0)).split("train")
    rows = np.arange(13)
    changed = (plain.images(rows) != noisy.images(rows)).flatten(1).any(dim=1)
    assert changed.all()
    test = module(imbalance=Imbalance("gaussian_noise", 1.0)).split("test")
    assert torch.equal(test.images(np.arange(6)), module().split("test").images(np.arange(6)))


def test_joined_splits_share_the_pixel_cache(tmp_path: Path) -> None:
    data = module(cached_size=16, cache=str(tmp_path))
    data.setup("fit")
    rows = np.arange(13)
    split = data.split("train")
    assert isinstance(split._images, PixelCache)
    assert torch.equal(split.images(rows), module().split("train").images(rows))
    files = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    alone = RetrievalDataModule(SCENES, SceneTokenizer(), 10, 16, cached_size=16, cache=str(tmp_path))
    alone.setup("fit")  # val was decoded as part of training
    assert {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()} == files


class StreamedScenes(SceneSource):
    """Scenes that come one after another."""

    def images(self, split: Split) -> Any:
        return Streamed([scene.pixels for scene in self.scenes(split)])


def test_a_streamed_collection_is_trained_on_as_a_whole(tmp_path: Path) -> None:
    source = StreamedScenes(num_train=8, num_val=5, num_test=6, size=16)
    rows = np.arange(13)
    found = module(source=source, cached_size=16, cache=str(tmp_path)).split("train").images(rows)
    assert torch.equal(found, module().split("train").images(rows))


def test_a_collection_whose_splits_share_ids_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="image id 'i0' occurs more than once"):
        module(source=MemorySource()).split("train")


@pytest.mark.parametrize("train_on", [["val"], [], ["train", "test"], ["test"]])
def test_what_may_be_trained_on(train_on: list[Split]) -> None:
    with pytest.raises(ValueError, match="train_on must hold train, and may hold val, got"):
        module(train_on=train_on)


def test_checkpoints_are_not_selected_on_what_is_trained_on() -> None:
    with pytest.raises(ValueError, match="cannot be selected on val, which is trained on: set select_on"):
        module(select_on="val")
