import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.types import RetrievalBatch, Tokens, UnimodalBatch
from tests.data.collection import MemorySource, bank_of

SCENES = SceneSource(num_train=24, num_val=6, num_test=7, size=16)


def module(**options: Any) -> RetrievalDataModule:
    defaults: dict[str, Any] = {"batch_size": 10, "image_size": 16, "evaluation_batch_size": 4}
    return RetrievalDataModule(options.pop("source", SCENES), SceneTokenizer(), **{**defaults, **options})


def fitted(**options: Any) -> RetrievalDataModule:
    data = module(**options)
    data.setup("fit")
    return data


def on_rank(data: RetrievalDataModule, rank: int, world_size: int) -> RetrievalDataModule:
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    return data


def tensors(batch: RetrievalBatch | UnimodalBatch) -> list[Tensor]:
    flat = []
    for value in batch:
        flat += list(value) if isinstance(value, Tokens) else [value] if value is not None else []
    return flat


def equal(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)
    )


def epochs(data: RetrievalDataModule) -> list[list[list[Tensor]]]:
    """Two epochs of a training loader, the way Lightning goes about it."""
    loader = data.train_dataloader()
    found = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        found.append([[tensor.clone() for tensor in tensors(batch)] for batch in loader])
    return found


@pytest.mark.parametrize(("kind", "pictures"), [("pairs", True), ("image_views", True), ("sibling_captions", False)])
def test_epochs_differ_and_repeat(kind: str, pictures: bool) -> None:
    options = {"batches": kind, "augmentation": "weak" if pictures else "none"}
    first, second = epochs(fitted(**options))
    assert not equal(first, second)
    assert all(equal(a, b) for a, b in zip((first, second), epochs(fitted(**options)), strict=True))
    other, _ = epochs(fitted(**options, seed=1))
    assert not equal(first, other)


@pytest.mark.parametrize("kind", ["pairs", "image_views"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker")
def test_workers_change_nothing(kind: str) -> None:
    options = {"batches": kind, "augmentation": "paper", "imbalance": Imbalance("gaussian_noise", 0.5)}
    here, there = epochs(fitted(**options)), epochs(fitted(**options, workers=3))
    assert all(equal(a, b) for a, b in zip(here, there, strict=True))


def test_an_epoch_of_pairs_is_every_caption_once_in_global_batches() -> None:
    loader = fitted(batch_size=20).train_dataloader()
    assert len(loader) == 6
    rows = [int(row) for batch in loader for row in batch.pair_index]
    assert sorted(rows) == list(range(120))


@pytest.mark.parametrize("augmentation", ["none", "weak"])
def test_two_ranks_see_what_one_process_sees(augmentation: str) -> None:
    """Row by row: the picture of a caption is the same wherever it is read."""

    def seen(data: RetrievalDataModule) -> list[dict[int, bytes]]:
        return [
            {int(row): image.numpy().tobytes() for row, image in zip(batch.pair_index, batch.images, strict=True)}
            for batch in data.train_dataloader()
        ]

    one = seen(fitted(augmentation=augmentation))
    two = [seen(on_rank(fitted(augmentation=augmentation), rank, 2)) for rank in (0, 1)]
    assert len(one) == 12
    for whole, left, right in zip(one, *two, strict=True):
        assert len(left) == len(right) == 5
        assert whole == left | right


def test_augmentation_leaves_the_global_generators_alone() -> None:
    def after(augmentation: str) -> tuple[Tensor, bytes, object]:
        data = fitted(augmentation=augmentation)
        torch.manual_seed(3)
        list(data.train_dataloader())
        return torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()

    plain, augmented = after("none"), after("paper")
    assert torch.equal(plain[0], augmented[0])
    assert plain[1:] == augmented[1:]


@pytest.mark.parametrize("imbalance", [Imbalance(kind, 1.0) for kind in ("mismatch", "drop_words", "gaussian_noise")])
def test_validation_and_test_are_clean(imbalance: Imbalance) -> None:
    clean, data = module(), module(imbalance=imbalance)
    for one in (clean, data):
        one.setup("fit")
        one.setup("test")
    splits: tuple[Split, ...] = ("val", "test")
    for split in splits:
        assert data.split(split).table.fingerprint == SCENES.table(split).fingerprint
        assert data.split(split).realised.parts == ()
    for name in ("val_dataloader", "test_dataloader"):
        for a, b in zip(getattr(clean, name)(), getattr(data, name)(), strict=True):
            assert equal([tensors(batch) for batch in a], [tensors(batch) for batch in b])
    assert data.split("train").realised.parts[0].ratio == 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_loaders_cover_both_modalities_once(world_size: int) -> None:
    images: list[int] = []
    captions: list[tuple[int, int]] = []
    for rank in range(world_size):
        data = on_rank(module(), rank, world_size)
        data.setup("test")
        of_images, of_captions = data.test_dataloader()
        images += [int(row) for batch in of_images for row in batch.rows]
        captions += [(int(r), int(g)) for batch in of_captions for r, g in zip(batch.rows, batch.group, strict=True)]
    assert sorted(images) == list(range(7))
    assert sorted(captions) == [(row, row // 5) for row in range(35)]


def test_items_are_all_here_by_default() -> None:
    data = on_rank(module(), 1, 2)
    assert [int(row) for batch in data.items("val", "image") for row in batch.rows] == list(range(6))
    assert [len(batch.rows) for batch in data.items("val", "text", rank=1, world_size=4)] == [4, 4]


def test_stages_read_what_they_need() -> None:
    for stage, splits in (("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"})):
        data = module()
        data.setup(stage)
        assert set(data.splits) == splits
    prepared = data.split("test")
    data.setup("test")
    assert data.split("test") is prepared  # once is enough


def test_banks_are_attached_to_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, imbalance = MemorySource(), Imbalance("mismatch", 1.0)
    plain = fitted(source=source)
    for modality in ("image", "text"):
        bank_of(plain.split("train"), modality).save(tmp_path / f"{modality}.safetensors")
    monkeypatch.setenv("BANKS", str(tmp_path))
    data = fitted(
        source=source,
        imbalance=imbalance,
        image_bank="$BANKS/image.safetensors",
        text_bank="${BANKS}/text.safetensors",
    )
    data.attach_teacher("image")
    data.attach_teacher("text")
    batch = next(iter(data.train_dataloader()))
    assert (batch.image_teacher[:, 0] == batch.image_index).all()
    assert (batch.text_teacher[:, 0] == batch.pair_index).all()
    assert next(iter(plain.train_dataloader())).image_teacher is None
    testing = module(source=source, image_bank="/nowhere", text_bank="/nowhere")
    testing.setup("test")  # needs no bank


def test_wrong_banks(tmp_path: Path) -> None:
    source = MemorySource()
    path = tmp_path / "image.safetensors"
    bank_of(fitted(source=source).split("train"), "image").save(path)
    with pytest.raises(ValueError, match=f"no feature bank at {tmp_path}/none"):
        fitted(source=source, image_bank=str(tmp_path / "none")).attach_teacher("image")
    with pytest.raises(ValueError, match="is a bank of the image modality, expected text"):
        fitted(source=source, text_bank=str(path)).attach_teacher("text")
    noisy = fitted(source=source, image_bank=str(path), imbalance=Imbalance("gaussian_noise", 0.5))
    with pytest.raises(ValueError, match="the image bank was extracted from other content"):
        noisy.attach_teacher("image")
    with pytest.raises(ValueError, match="text teacher: give its configuration, such as --text_teacher"):
        fitted(source=source).attach_teacher("text")


@pytest.mark.parametrize("batch_size", [1, 0, -4])
def test_a_batch_needs_a_negative(batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch size must be at least 2.* got {batch_size}"):
        module(batch_size=batch_size)


def test_a_batch_must_fit_the_data_and_the_ranks() -> None:
    with pytest.raises(ValueError, match="batch size 121 is larger than the 120 training items"):
        fitted(batch_size=121).train_dataloader()
    with pytest.raises(ValueError, match="cannot be divided over 3 processes"):
        on_rank(fitted(), 0, 3).train_dataloader()


def test_relevance_is_the_source_s(tmp_path: Path) -> None:
    data = module(cache=str(tmp_path))
    expected = SCENES.relevance("test", tmp_path)
    assert data.relevance("test").fingerprint == expected.fingerprint
