"""The LightningDataModule of all collections, corruptions and kinds of batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import numpy as np
from torch.utils.data import Sampler

from sdr_lightning.data import datasets
from sdr_lightning.data.datasets import BatchDataset, Draw
from sdr_lightning.data.images import Images
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.joined import join_images, join_tables
from sdr_lightning.data.loaders import BatchLoader, Loader, ResumableLoader
from sdr_lightning.data.pixel_cache import PixelCache, cache_folder, fill
from sdr_lightning.data.samplers import EpochOrder, EvaluationSampler, OrderedSampler, TrainingSampler
from sdr_lightning.data.shards.images import ShardImages
from sdr_lightning.data.shards.order import StreamOrder, StreamSampler
from sdr_lightning.data.shards.source import ShardSource
from sdr_lightning.data.shards.stream import StreamedPairs, StreamLoader
from sdr_lightning.data.source import Source
from sdr_lightning.data.split import PreparedSplit, Rows
from sdr_lightning.data.subset import SubsetImages, chosen_rows, subset_table
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import Tokenizer
from sdr_lightning.data.transforms import Augmentation, augmentation
from sdr_lightning.data.wording import Wording
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.metrics.relevance import Relevance
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.progress import progress
from sdr_lightning.types import Modality

_TEACHERS: dict[Modality, str] = {"image": "efficientnet_lite2", "text": "minilm"}  # that an error suggests


class RetrievalDataModule(pl.LightningDataModule):
    """Captioned images, clean or corrupted, as batches of pairs or of one modality.

    Args:
        source: the collection.
        tokenizer: tokenizer of the text tower.
        batch_size: *global* batch size; each of W processes gets batch_size / W pairs.
        image_size: side of the input images in pixels; None for collections of features.
        batches: content of training batches: ``pairs`` for a student; ``image_views`` or ``sibling_captions`` for a teacher.
        augmentation: augmentation of training images.
        imbalance: corruption of the data: one specification or several, applied in order; None for clean data. Applies to the
            training split only, unless it names other splits.
        image_bank: feature bank of the image teacher, read if the method needs it; ``$NAME`` and ``${NAME:-default}`` are
            expanded.
        text_bank: feature bank of the text teacher, likewise.
        evaluation_batch_size: batch size per process outside training.
        test_folds: also report the mean over this many disjoint folds of the test images (COCO 1K: 5); None for none.
        workers: number of worker processes; 0 to read in the main process.
        cached_size: side of decoded images in a memory-mapped cache on disk, written by ``sdr data prepare`` or the first run;
            None to decode files in every epoch.
        cache: folder for decoded images, tokens, relevance and features of frozen towers; ``cache`` in the current folder if
            None.
        seed: seed of shuffling and augmentation; linked to ``seed_everything``.
        train_on: splits used for training.
        train_images: number of images to train on, with all their captions; None for all. Which ones depends on
            ``train_images_seed`` and the image ids only, so every run of a study uses the same images, and cached features of
            all images serve the subset as well.
        train_images_seed: seed of the choice of these images.
        select_on: split used for validation and model selection. ``test``, as in the public code, gives optimistic test
            scores.
        strip_punctuation: lower-case captions and remove punctuation before tokenisation, as in the public code.
        train_words: truncate training captions to this number of words; None for no limit.
        evaluation_words: truncate validation and test captions, likewise.

    Raises:
        ValueError: invalid options; from :meth:`setup`, missing or malformed data.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        batch_size: int,
        image_size: int | None = None,
        batches: Literal["pairs", "image_views", "sibling_captions"] = "pairs",
        augmentation: Augmentation = "none",
        imbalance: Imbalance | list[Imbalance] | None = None,
        image_bank: FilePath | None = None,
        text_bank: FilePath | None = None,
        evaluation_batch_size: int = 256,
        test_folds: int | None = None,
        workers: int = 0,
        cached_size: int | None = None,
        cache: FilePath | None = None,
        seed: int = 0,
        train_on: Sequence[Split] = ("train",),
        train_images: int | None = None,
        train_images_seed: int = 0,
        select_on: Literal["val", "test"] = "val",
        strip_punctuation: bool = False,
        train_words: int | None = None,
        evaluation_words: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise ValueError(f"the batch size must be at least 2, a contrast needs a negative; got {batch_size}")
        if cached_size is not None and (image_size is None or cached_size < image_size):
            raise ValueError(f"cached_size must be at least image_size, {image_size}, got {cached_size}")
        if image_size is None and augmentation != "none":
            raise ValueError(f"features cannot be augmented: set augmentation to none, got {augmentation}")
        self.source, self.tokenizer = source, tokenizer
        self.imbalances = [imbalance] if isinstance(imbalance, Imbalance) else imbalance or []
        self.batch_size, self.evaluation_batch_size = batch_size, evaluation_batch_size
        self.test_folds = test_folds
        self.image_size, self.batches, self.augmentation = image_size, batches, augmentation
        self.banks: dict[Modality, str | None] = {"image": image_bank, "text": text_bank}
        self.workers, self.cached_size, self.seed = workers, cached_size, seed
        self.cache = Path("cache" if cache is None else expand(cache))
        if "train" not in train_on or "test" in train_on:
            raise ValueError(f"train_on must hold train, and may hold val, got {', '.join(train_on) or 'nothing'}")
        if select_on in train_on:
            raise ValueError(f"checkpoints cannot be selected on {select_on}, which is trained on: set select_on")
        self.train_on, self.select_on = tuple(train_on), select_on
        self.train_images, self.train_images_seed = train_images, train_images_seed
        self.train_wording = Wording(strip_punctuation, train_words)
        self.evaluation_wording = Wording(strip_punctuation, evaluation_words)
        self.splits: dict[Split, PreparedSplit] = {}
        self._epoch_order: EpochOrder | None = None

    def prepare_data(self) -> None:
        """Fill the cache of decoded images; called by Lightning in one process per machine."""
        if self.cached_size is not None:
            stage = self.trainer.state.fn if self.trainer is not None else None
            for split in self.source.splits if stage is None else self._needed(stage.value):
                self._cache_images(split, self._images(split), self.cached_size)

    def setup(self, stage: str) -> None:
        """Read the splits that a stage needs."""
        for split in self._needed(stage):
            self.split(split)
        if stage == "fit":
            self.train_dataloader()  # checks the batch size before features are extracted

    def attach_teacher(self, modality: Modality) -> None:
        """Add the features of a teacher's bank to every training pair.

        Raises:
            ValueError: no bank is configured or found, or it belongs to other data.
        """
        path = self.banks[modality]
        if path is None and isinstance(self.source, ShardSource) and (found := self.source.teacher(modality)):
            if self.train_images is not None or len(self.train_on) > 1:
                raise ValueError(
                    "teachers' features beside shards are of the whole training split: leave train_images and train_on out, "
                    f"or name a bank as --data.init_args.{modality}_bank"
                )
            self.split("train").attach_rows(modality, *found)
            return
        if path is None:
            raise ValueError(
                f"the method needs the features of the {modality} teacher: give its configuration, such as "
                f"--{modality}_teacher.config sdr:teachers/{_TEACHERS[modality]}.yaml (pretrained, of the extra towers), or "
                f"features of sdr extract, --data.init_args.{modality}_bank"
            )
        self.split("train").attach_teacher(FeatureBank.load(Path(expand(path)), modality))

    def split(self, split: Split) -> PreparedSplit:
        """Return a prepared split; prepared at the first call."""
        if split not in self.splits:
            table, images = self.table(split), self._images(split)
            self.refuse(split, images)
            if self.cached_size is not None:
                images = self._cache_images(split, images, self.cached_size)
            self.splits[split] = PreparedSplit(
                table,
                images,
                self.tokenizer,
                self.image_size,
                self.imbalances,
                self.cache,
                self.train_wording if split == "train" else self.evaluation_wording,
            )
        return self.splits[split]

    def table(self, split: Split) -> CaptionTable:
        """Return the clean captions of a split. ``train`` joins all splits of ``train_on`` and keeps ``train_images``."""
        table = join_tables([self.source.table(part) for part in self._parts(split)])
        if split != "train" or self.train_images is None:
            return table
        return subset_table(table, chosen_rows(table.image_ids, self.train_images, self.train_images_seed))

    def refuse(self, split: Split, images: Images) -> None:
        """Check that the settings fit the images of a split.

        Raises:
            ValueError: pixels without a size, features with a size, pixel corruption of features, or a stream without cache.
        """
        if images.are_features:
            pixel_kinds = {part.kind for part in self.imbalances if part.modality == "image" and split in part.splits}
            if self.cached_size is not None or self.image_size is not None:
                raise ValueError("this collection has features: leave image_size and cached_size out")
            if pixel_kinds - {"missing"}:
                raise ValueError(f"{min(pixel_kinds)} is done to pixels, and this collection has features: use missing")
        elif self.image_size is None:
            raise ValueError("images of pixels need a size: set data.init_args.image_size")
        elif images.one_after_another and self.cached_size is None:
            raise ValueError("a streamed collection is read through its cache alone: set data.init_args.cached_size")

    def evaluated_under(self) -> dict[str, Any]:
        """Return the corruption of the validation and test splits that were read, by split; empty if clean."""
        records = {name: self.splits[name].record() for name in ("val", "test") if name in self.splits}
        return {name: record for name, record in records.items() if record["imbalances"]}

    def relevance(self, split: Split) -> Relevance:
        """Return the graded relevance between the items of a split."""
        return self.source.relevance(split, self.cache)

    def items(
        self, split: Split, modality: Modality, rank: int = 0, world_size: int = 1, rows: Rows | None = None
    ) -> Loader:
        """Load each image or caption of a split once.

        Args:
            split: the split.
            modality: images or captions.
            rank: rank of this process.
            world_size: number of processes that the items are divided over.
            rows: (n,) rows of the items to load; None for all.
        """
        prepared = self.split(split)
        dataset = datasets.ImageDataset(prepared) if modality == "image" else datasets.CaptionDataset(prepared)
        wanted = np.arange(len(dataset)) if rows is None else rows
        return self._loader(dataset, EvaluationSampler(wanted, self.evaluation_batch_size, rank, world_size))

    def ordered_pairs(self, rank: int = 0, world_size: int = 1) -> Loader:
        """Load all training pairs in order, without augmentation; whole batches are divided over the processes."""
        dataset = datasets.PairDataset(self.split("train"), None, self.seed)
        return self._loader(dataset, OrderedSampler(len(dataset), self.batch_size, rank, world_size))

    def set_epoch_order(self, epoch_order: EpochOrder) -> None:
        """Set the order of the training pairs, see :meth:`sdr_lightning.methods.Method.epoch_order`."""
        self._epoch_order = epoch_order

    def train_dataloader(self) -> Loader:
        """Load shuffled training batches, the share of this process."""
        prepared = self.splits["train"]
        transform = None if self.image_size is None else augmentation(self.augmentation, self.image_size)
        dataset: BatchDataset
        if self.batches == "pairs":
            dataset = datasets.PairDataset(prepared, transform, self.seed)
            if prepared.streamed is not None:
                return self._stream(dataset, prepared.streamed)
        elif self.batches == "image_views":
            dataset = datasets.ImageViewDataset(prepared, transform, self.seed)
        else:
            dataset = datasets.SiblingCaptionDataset(prepared, self.seed)
        sampler = TrainingSampler(len(dataset), self.batch_size, self.seed, *self._place(), self._epoch_order)
        return ResumableLoader(dataset, sampler, self.workers)

    def val_dataloader(self) -> Sequence[Loader]:
        """Return loaders of the images and of the captions of the split used for model selection."""
        return [self.items(self.select_on, modality, *self._place()) for modality in ("image", "text")]

    def test_dataloader(self) -> Sequence[Loader]:
        """Return loaders of the images and of the captions of the test split."""
        return [self.items("test", "image", *self._place()), self.items("test", "text", *self._place())]

    def _needed(self, stage: str) -> tuple[Split, ...]:
        select_on: Split = self.select_on
        needed: dict[str, tuple[Split, ...]] = {
            "fit": ("train", select_on),
            "validate": (select_on,),
            "test": ("test",),
        }
        return needed[stage]

    def _parts(self, split: Split) -> tuple[Split, ...]:
        return self.train_on if split == "train" else (split,)

    def _images(self, split: Split) -> Images:
        images = join_images([self.source.images(part) for part in self._parts(split)])
        if split != "train" or self.train_images is None:
            return images
        ids = [name for part in self.train_on for name in self.source.table(part).image_ids]
        return SubsetImages(images, chosen_rows(ids, self.train_images, self.train_images_seed))

    def _cache_images(self, split: Split, images: Images, side: int) -> PixelCache:
        """Write the missing decoded images of a split and return the cache."""
        folder = cache_folder(self.cache, self.source.name, side)
        with progress(f"decoding images of {split}", len(images)) as advance:
            fill(folder, images, side, advance)
        return PixelCache(folder, images, side)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _stream(self, pairs: datasets.PairDataset, images: ShardImages) -> Loader:
        order = StreamOrder(images, pairs.split.table.caption_image, self.batch_size, self.seed)
        sampler = StreamSampler(order, *self._place(), self.workers, self._epoch_order)
        return StreamLoader(StreamedPairs(pairs, images), sampler, self.workers, self.tokenizer.padding)

    def _loader(self, dataset: BatchDataset, sampler: Sampler[Draw]) -> Loader:
        return BatchLoader(dataset, sampler, self.workers)
