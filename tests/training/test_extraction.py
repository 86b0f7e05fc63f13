"""Feature extraction: the cache, reuse under other corruptions, and interruption."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.encoders import HeadTower, Tower
from sdr_lightning.features import FeatureBank
from sdr_lightning.training import extraction
from sdr_lightning.training.checkpoints.interruption import Stopped
from sdr_lightning.training.extraction import extract_bank, split_bank
from sdr_lightning.training.feature_caching import CacheFeatures
from sdr_lightning.training.teacher_module import TeacherModule
from sdr_lightning.types import Encoded, Tokens
from tests.training.student import trainer

CPU = torch.device("cpu")
SCENES = SceneSource(num_train=20, num_val=6, num_test=5, size=16)
CLEAN = Imbalance()


class CountingTower(Tower):
    """A linear tower that counts the rows it encodes."""

    width = 4

    def __init__(self, modality: Literal["image", "text"], frozen: bool = True, seed: int = 0) -> None:
        super().__init__(frozen)
        self.modality = modality
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(100 if modality == "text" else 768, 4, generator=generator))
        self.rows: list[int] = []
        self.apply_frozen()

    def settings(self) -> str:
        return "counting"

    def encode_inputs(self, inputs: Tensor | Tokens) -> Encoded:
        self.rows.append(len(inputs.input_ids) if isinstance(inputs, Tokens) else len(inputs))
        if isinstance(inputs, Tokens):
            words = nn.functional.one_hot(inputs.input_ids, 100) * inputs.attention_mask[..., None]
            return Encoded(words.sum(1).float() @ self.weight)
        return Encoded(inputs.flatten(1).float() / 255 @ self.weight)

    def encoded_rows(self) -> int:
        """Return the number of rows since the last call."""
        rows, self.rows = sum(self.rows), []
        return rows


def module(cache: Path, *imbalances: Imbalance, **options: Any) -> RetrievalDataModule:
    defaults: dict[str, Any] = {"batch_size": 10, "image_size": 16, "evaluation_batch_size": 7}
    return RetrievalDataModule(
        SCENES, SceneTokenizer(), cache=str(cache), imbalance=list(imbalances), **{**defaults, **options}
    )


def bank(tower: Tower, data: RetrievalDataModule, split: Split = "train") -> FeatureBank:
    return split_bank(tower, data, split, CPU)


def assert_equals_recomputed(found: FeatureBank, tower: CountingTower, data: RetrievalDataModule, empty: Path) -> None:
    """Check that a bank equals the one computed without a cache."""
    again = CountingTower(tower.modality)
    fresh = bank(again, module(empty, *data.imbalances))
    split = data.split("train")
    assert again.encoded_rows() == len(split.ids(tower.modality))
    assert list(found.ids) == list(split.ids(tower.modality))
    assert np.array_equal(found.content, split.content(tower.modality))
    assert torch.equal(found.features, fresh.features)
    assert found.fingerprint == fresh.fingerprint


@pytest.mark.parametrize(("modality", "items"), [("image", 20), ("text", 100)])
def test_frozen_features_are_computed_once(modality: Literal["image", "text"], items: int, tmp_path: Path) -> None:
    tower = CountingTower(modality)
    first = bank(tower, module(tmp_path))
    assert tower.encoded_rows() == items
    again = bank(tower, module(tmp_path))
    assert tower.encoded_rows() == 0
    assert torch.equal(first.features, again.features)
    assert len(list(tmp_path.glob(f"{modality}-*.safetensors"))) == 1


def test_features_of_trained_teachers_are_not_cached(tmp_path: Path) -> None:
    tower = CountingTower("image", frozen=False)
    for _ in range(2):
        extract_bank(tower, module(tmp_path), ["train", "val"], CPU)
        assert tower.encoded_rows() == 26
    assert not list(tmp_path.iterdir())


def with_event(tower: CountingTower, batch: int, event: Callable[[], object]) -> CountingTower:
    """Call a function in one of the batches of a tower."""
    plain = tower.encode_inputs

    def encode_inputs(inputs: Tensor | Tokens) -> Encoded:
        encoded = plain(inputs)
        if len(tower.rows) == batch:
            event()
        return encoded

    tower.encode_inputs = encode_inputs  # type: ignore[method-assign]
    return tower


def kill() -> None:
    """Fail without saving, like a kill."""
    raise MemoryError


def sending(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("event", "kept", "frozen"),
    [(sending(signal.SIGINT), [7, 7], True), (sending(signal.SIGTERM), [7, 7], False), (kill, [7], True)],
    ids=["Ctrl-C", "SIGTERM", "kill"],
)
def test_interrupted_extraction_resumes_with_the_missing_batches(
    event: Callable[[], object], kept: list[int], frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill loses only the batches since the last part."""
    whole = CountingTower("image", frozen)
    expected = bank(whole, module(tmp_path / "whole"))
    if event is kill:
        monkeypatch.setattr(extraction, "_PART_SECONDS", 0.0)
    tower = with_event(CountingTower("image", frozen), 2, event)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises((Stopped, MemoryError)) as caught:
        extract_bank(tower, module(tmp_path), ["train"], CPU)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    if isinstance(caught.value, Stopped):
        assert str(caught.value).endswith("after 14 of 20 image features; they are kept, the same command continues")
    again = CountingTower("image", frozen)
    found = extract_bank(again, module(tmp_path), ["train"], CPU)
    assert kept + again.rows == whole.rows
    assert torch.equal(found.features, expected.features)
    assert found.fingerprint == expected.fingerprint
    assert [path.suffix for path in tmp_path.glob("image-*")] == [".safetensors"] * frozen


def test_interruption_keeps_earlier_splits(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        extract_bank(
            with_event(CountingTower("image", False), 4, sending(signal.SIGTERM)),
            module(tmp_path),
            ["train", "val"],
            CPU,
        )
    tower = CountingTower("image", frozen=False)
    assert len(extract_bank(tower, module(tmp_path), ["train", "val"], CPU).ids) == 26
    assert tower.encoded_rows() == 0
    assert not list(tmp_path.iterdir())


def test_second_process_waits_for_the_first(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun, waited = threading.Event(), threading.Event()
    slow = with_event(CountingTower("image"), 1, lambda: (begun.set(), waited.wait(10)))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bank, slow, module(tmp_path))
        assert begun.wait(10)
        tower = CountingTower("image")
        second = pool.submit(bank, tower, module(tmp_path))
        while "waiting for another process" not in capfd.readouterr().err:
            assert not second.done()
        waited.set()
        assert torch.equal(first.result().features, second.result().features)
    assert tower.encoded_rows() == 0


STEPS: dict[str, tuple[Literal["image", "text"], Sequence[tuple[Imbalance, int]]]] = {
    "image noise, nested": (
        "image",
        [
            (CLEAN, 20),
            (Imbalance("gaussian_noise", 0.6), 12),
            (Imbalance("gaussian_noise", 0.3), 0),
            (Imbalance("gaussian_noise", 0.9), 6),
        ],
    ),
    "image noise without the clean split": (
        "image",
        [(Imbalance("gaussian_noise", 0.6), 20), (Imbalance("gaussian_noise", 0.3), 6)],
    ),
    "another severity": (
        "image",
        [(Imbalance("gaussian_noise", 0.5, severity=5), 20), (Imbalance("gaussian_noise", 0.5, severity=4), 10)],
    ),
    "other kinds": ("image", [(Imbalance("blur", 0.5), 20), (Imbalance("missing", 1.0, "image"), 20), (CLEAN, 10)]),
    "mismatched images": ("image", [(CLEAN, 20), (Imbalance("mismatch", 1.0), 0)]),
    "mismatched captions": ("text", [(CLEAN, 100), (Imbalance("mismatch", 1.0), 0)]),
    "missing captions": ("text", [(CLEAN, 100), (Imbalance("missing", 0.4, "text"), 40)]),
}


@pytest.mark.parametrize("name", STEPS)
def test_only_items_of_new_content_are_encoded(name: str, tmp_path: Path) -> None:
    modality, steps = STEPS[name]
    tower = CountingTower(modality)
    for number, (imbalance, encoded) in enumerate(steps):
        data = module(tmp_path, imbalance)
        found = bank(tower, data)
        assert tower.encoded_rows() == encoded
        assert_equals_recomputed(found, tower, data, tmp_path / f"fresh {number}")


@pytest.mark.parametrize(("modality", "per_image"), [("image", 1), ("text", 5)])
def test_a_subset_and_the_whole_split_share_features(
    modality: Literal["image", "text"], per_image: int, tmp_path: Path
) -> None:
    tower = CountingTower(modality)
    for images, encoded in ((8, 8), (None, 12), (5, 0), (None, 0)):
        data = module(tmp_path, train_images=images)
        found = bank(tower, data)
        assert tower.encoded_rows() == encoded * per_image
        assert len(found.ids) == (images or 20) * per_image


def test_a_head_is_applied_to_the_cached_features_of_its_backbone(tmp_path: Path) -> None:
    backbone = CountingTower("text")
    teacher = HeadTower(backbone)
    with torch.no_grad():
        teacher.head.weight.copy_(torch.arange(16.0).view(4, 4))
    features = bank(backbone, module(tmp_path)).features
    assert backbone.encoded_rows() == 100
    found = extract_bank(teacher, module(tmp_path), ["train"], CPU)
    assert backbone.encoded_rows() == 0
    torch.testing.assert_close(found.features, features @ teacher.head.weight.T)
    assert found.source == teacher.fingerprint()
    assert len(list(tmp_path.glob("text-*.safetensors"))) == 1  # of the backbone alone


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec", "ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of", "ignore:.*but have no `validation_step`")
@pytest.mark.parametrize(
    ("modality", "options", "encoded"),
    [
        ("text", {"batches": "sibling_captions"}, 100),  # every caption, once
        ("image", {"batches": "image_views", "augmentation": "weak"}, 2 * 20 * 2),  # two views in two epochs
    ],
)
def test_a_teacher_that_trains_a_head_encodes_once_what_is_not_augmented(
    modality: Literal["image", "text"], options: dict[str, Any], encoded: int, tmp_path: Path
) -> None:
    backbone = CountingTower(modality)
    before = backbone.weight.clone()
    module_ = TeacherModule(HeadTower(backbone), 4)
    trainer(max_epochs=2, limit_val_batches=0, callbacks=[CacheFeatures()]).fit(module_, module(tmp_path, **options))
    assert backbone.encoded_rows() == encoded
    assert torch.equal(backbone.weight, before)
    assert not torch.equal(module_.tower.head.weight, torch.eye(4))  # type: ignore[union-attr, arg-type]


def test_unchanged_captions_are_not_encoded_again(tmp_path: Path) -> None:
    tower = CountingTower("text")
    bank(tower, module(tmp_path))
    tower.encoded_rows()
    data = module(tmp_path, Imbalance("drop_words", 0.5, severity=1))
    found = bank(tower, data)
    captions = zip(data.split("train").table.captions, SCENES.table("train").captions, strict=True)
    changed = sum(now != was for now, was in captions)
    assert tower.encoded_rows() == changed
    assert 0 < changed < 50
    assert_equals_recomputed(found, tower, data, tmp_path / "fresh")


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 8},
        {"cached_size": 32},
        {"source": SceneSource(seed=1, num_train=20, num_val=6, num_test=5, size=16)},
    ],
)
def test_other_input_settings_are_encoded_again(change: dict[str, Any], tmp_path: Path) -> None:
    options = {"source": SCENES, "batch_size": 10, "image_size": 16, "cache": str(tmp_path)}
    data = [RetrievalDataModule(tokenizer=SceneTokenizer(), **{**options, **each}) for each in ({}, change)]
    towers = [CountingTower("image") for _ in data]
    for tower in towers:  # accept any image size
        tower.encode_inputs = lambda inputs, tower=tower: Encoded(pooled(tower, inputs))  # type: ignore[method-assign]
    for tower, each in zip(towers, data, strict=True):
        bank(tower, each)
        assert tower.encoded_rows() == 20


def pooled(tower: CountingTower, inputs: Tensor) -> Tensor:
    tower.rows.append(len(inputs))
    return inputs.float().mean((2, 3)) @ tower.weight[:3]


def test_other_weights_are_encoded_again(tmp_path: Path) -> None:
    first, second = CountingTower("image", seed=0), CountingTower("image", seed=1)
    banks = [bank(tower, module(tmp_path)) for tower in (first, second)]
    assert (first.encoded_rows(), second.encoded_rows()) == (20, 20)
    assert banks[0].source != banks[1].source
    assert not torch.equal(banks[0].features, banks[1].features)


def test_other_token_limit_is_encoded_again(tmp_path: Path) -> None:
    tower = CountingTower("text")
    for limit in (40, 5):
        data = RetrievalDataModule(SCENES, SceneTokenizer(limit), batch_size=10, image_size=16, cache=str(tmp_path))
        bank(tower, data)
        assert tower.encoded_rows() == 100


def test_bank_of_several_splits(tmp_path: Path) -> None:
    tower, data = CountingTower("image"), module(tmp_path)
    both = extract_bank(tower, data, ["train", "test"], CPU)
    assert tower.encoded_rows() == 25
    assert len(both.ids) == 25
    for split in ("train", "test"):
        prepared = data.split(split)
        found = both.rows(prepared.ids("image"), prepared.content("image"))
        assert torch.equal(found, bank(tower, data, split).features)
    assert tower.encoded_rows() == 0


def test_cached_features_replace_pixels(tmp_path: Path) -> None:
    tower = CountingTower("image")
    bank(tower, module(tmp_path, CLEAN))
    data = module(tmp_path, Imbalance("gaussian_noise", 0.5))
    split = data.split("train")
    pixels = split.images(np.arange(20))
    expected = tower(pixels)
    split.cache(bank(tower, data))
    torch.testing.assert_close(split.images(np.arange(20)).values, expected)
