"""Tiny deterministic students for tests: towers of one layer, and the real fusion encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.encoders import Tower
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.functional.matching import Negatives
from sdr_lightning.methods import SDR
from sdr_lightning.metrics.relevance import FactRelevance, Relevance
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Encoded, RetrievalBatch, Tokens, TrainingPairs
from tests.data.collection import MemorySource

LIGHTNINGS_OWN_WARNINGS = [
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training"),
]
WIDTH, EMBEDDING = 8, 6
IMAGE_TEACHER, TEXT_TEACHER = 5, 7
BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 80,
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.5,  # so that an untrained fusion encoder gives distinct scores
}
ALL = {"itc": 1.0, "iic": 0.7, "ttc": 1.3, "kd": 2.0, "kdi": 0.6, "kdt": 0.9}
TEXT_CONTENT = np.array([7, 8, 7, 9])
WITH_MATCHING = {**ALL, "itm": 2.0}


class ImageTower(Tower):
    """One linear layer over the four patches of a 16-pixel image; ``rows`` stores the batch size of each call."""

    modality = "image"

    def __init__(self, frozen: bool = False, pretrained: bool = False, width: int = WIDTH) -> None:
        super().__init__(frozen)
        self.width = self.tokens_width = width
        self.patch, self.pretrained, self.rows = nn.Linear(3 * 8 * 8, width), pretrained, list[int]()
        self.apply_frozen()

    def settings(self) -> str:
        return "patches"

    def encode_inputs(self, inputs: Tensor) -> Encoded:
        self.rows.append(len(inputs))
        pixels = inputs.to(self.patch.weight.dtype) / 255 - 0.5
        patches = nn.functional.unfold(pixels, 8, stride=8).transpose(1, 2)  # (B, 4, 192)
        tokens = torch.tanh(self.patch(patches))
        return Encoded(tokens.mean(dim=1), tokens)


class TextTower(Tower):
    """Word embeddings, one linear layer and mean pooling; ``rows`` stores the batch size of each call."""

    modality = "text"

    def __init__(self, frozen: bool = False, pretrained: bool = False, width: int = WIDTH) -> None:
        super().__init__(frozen)
        self.width = self.tokens_width = width
        self.words, self.mix = nn.Embedding(80, width), nn.Linear(width, width)
        self.pretrained, self.rows = pretrained, list[int]()
        self.apply_frozen()

    def settings(self) -> str:
        return "words"

    def encode_inputs(self, inputs: Tokens) -> Encoded:
        ids, mask = inputs
        self.rows.append(len(ids))
        tokens = torch.tanh(self.mix(self.words(ids)))
        weight = mask[..., None].to(tokens.dtype)
        return Encoded((tokens * weight).sum(1) / weight.sum(1), tokens, mask)


def student(
    weights: dict[str, float] | None = None,
    relation: Any = "averaged",
    fusion: bool = True,
    seed: int = 0,
    frozen: Sequence[str] = (),
    optimisation: Optimisation | None = None,
    **options: Any,
) -> RetrievalModule:
    """Build a student with random parameters."""
    torch.manual_seed(seed)
    encoder = DualEncoder(
        ImageTower("image" in frozen),
        TextTower("text" in frozen),
        EMBEDDING,
        fusion=FusionEncoder(WIDTH, config=dict(BERT), first_layer=0) if fusion else None,
    )
    method = SDR(weights if weights is not None else ALL, EMBEDDING, IMAGE_TEACHER, TEXT_TEACHER, relation)
    return RetrievalModule(encoder, method, optimisation, **options)


def pictures(ids: Sequence[int]) -> Tensor:
    """Return the image of each id, (B, 3, 16, 16) uint8."""
    return torch.stack(
        [
            torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(100 + i))
            for i in ids
        ]
    )


def sentences(lengths: Sequence[int], seed: int = 0) -> Tokens:
    """Return random captions of these lengths, padded with an unused word."""
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.full((len(lengths), max(lengths)), 79), torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 79, (length,), generator=generator)
        mask[row, :length] = 1
    return Tokens(ids, mask)


def pairs(ids: Sequence[int], lengths: Sequence[int], seed: int = 0) -> RetrievalBatch:
    """Return a batch of pairs with random teacher features."""
    generator = torch.Generator().manual_seed(seed + 50)
    return RetrievalBatch(
        pictures(ids),
        sentences(lengths, seed),
        torch.tensor(ids),
        torch.arange(len(ids)),
        torch.randn(len(ids), IMAGE_TEACHER, generator=generator),
        torch.randn(len(ids), TEXT_TEACHER, generator=generator),
    )


def hardest(weights: Tensor, generator: torch.Generator | None = None) -> Negatives:
    """Replace the random draw by the most likely negative."""
    return Negatives(weights.argmax(dim=1), weights.sum(dim=1) > 0)


class FixedBatches(pl.LightningDataModule):
    """A data module with the same batches in every epoch."""

    def __init__(self, batches: Iterable[RetrievalBatch]) -> None:
        super().__init__()
        self.batches = list(batches)
        self.splits: dict[Split, Any] = {}
        self.tokenizer = SceneTokenizer(max_tokens=32)

    def attach_teacher(self, modality: str) -> None:
        """Do nothing: teacher features are in the batches."""

    def split(self, split: Split) -> Any:
        """Return the attributes that training reads."""
        rows = sum(len(batch.image_index) for batch in self.batches)
        table = SimpleNamespace(captions=[""] * rows)
        index = torch.cat([batch.image_index for batch in self.batches])
        pairs = TrainingPairs(index, torch.ones(len(index), dtype=torch.bool))
        return SimpleNamespace(
            teacher_sources={}, content=lambda _: TEXT_CONTENT, table=table, training_pairs=lambda: pairs
        )

    def set_epoch_order(self, _: Any) -> None:
        """Do nothing: the batches are fixed."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.batches, batch_size=None, collate_fn=_itself)  # type: ignore[arg-type]

    def val_dataloader(self) -> Any:
        return []


def _itself(batch: Any) -> Any:
    return batch


def trainer(**options: Any) -> pl.Trainer:
    """Build a trainer of one process without output."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1_000_000,
    }
    return pl.Trainer(**{**defaults, **options})


SCENES = SceneSource(num_train=12, num_val=6, num_test=7, size=16)


def scenes(**options: Any) -> RetrievalDataModule:
    """Build a data module of 60 pairs of scenes."""
    defaults: dict[str, Any] = {"source": SCENES, "batch_size": 20, "image_size": 16}
    return RetrievalDataModule(tokenizer=SceneTokenizer(), **{**defaults, **options})


class RaggedSource(MemorySource):
    """Images with one to five captions of different lengths, and constant relevance."""

    def table(self, split: Split) -> Any:
        table = super().table(split)
        longer = [" ".join([text, *["next to a red circle"] * (row % 3)]) for row, text in enumerate(table.captions)]
        return type(table)(table.name, table.split, table.image_ids, longer, table.caption_ids, table.caption_image)

    def relevance(self, split: Split, cache: Path) -> Relevance:
        return FactRelevance(np.ones((len(self.counts), 1), int), np.ones((sum(self.counts), 1), int))


class NamedScenes(SceneSource):
    """Scenes with a given name and number of words per caption."""

    def __init__(self, name: str, words: int = 5, num_train: int = 12, num_val: int = 6, num_test: int = 7) -> None:
        super().__init__(num_train=num_train, num_val=num_val, num_test=num_test, size=16)
        self.name, self.words = name, words

    def table(self, split: Split) -> Any:
        table = super().table(split)
        longer = [" ".join((text.split() * self.words)[: self.words]) for text in table.captions]
        return type(table)(table.name, table.split, table.image_ids, longer, table.caption_ids, table.caption_image)


def flattened(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows of batches."""
    for batch in batches:
        yield from batch
