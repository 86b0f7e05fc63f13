"""The student: a dual encoder trained by the rebalancing objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.functional.search import TopK, top_k
from sdr_lightning.losses.objective import RebalancingObjective
from sdr_lightning.metrics.evaluation import checked_embeddings, cross_modal, cross_modal_folds, evaluate_queries
from sdr_lightning.metrics.paper_protocol import evaluate_published, first_five
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.training.continuation import is_dev_run
from sdr_lightning.training.distributed import EmbeddingTable, Gather, gather, gather_encoded, in_first_process
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.training.gradient_caching import check_chunks, encode_in_chunks
from sdr_lightning.training.matching import Matched, Pool, match
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.protocol import ProtocolName
from sdr_lightning.training.reranking import (
    Rescored,
    encode_captions,
    published_scores,
    reranked_metrics,
    score_pairs,
)
from sdr_lightning.training.student_weights import leave_frozen_out, put_frozen_back, start_from
from sdr_lightning.types import Encoded, Modality, PairEmbeddings, RetrievalBatch, UnimodalBatch

_TEACHERS, _PROTOCOL, _BEST = "teachers", "protocol", "best_rsum"


class RetrievalModule(EpochTerms):
    """Trains and evaluates a dual encoder, with or without a fusion encoder.

    Training logs every term unweighted, the loss, the temperatures and lambda, once an epoch. Validation measures recall;
    testing measures everything, against the data module's graded relevance. A frozen tower is run over the data once, its
    features are kept in the data module's cache (not if a fusion encoder reads tokens), and its weights are left out of
    checkpoints (its fingerprint is in them, and loading checks it).

    Args:
        encoder: the dual encoder. A fusion encoder that no term reads stays as it is.
        objective: the terms and their weights.
        optimisation: optimiser and schedule.
        gather: which gradients cross processes, see :func:`~sdr_lightning.training.distributed.gather`.
        negatives: whether hard negatives are drawn among a process's own pairs (``local``, as published) or among those of
            all processes (``global``).
        positives: which pairs of a batch are positives of one another, and so never negatives: those of the same image
            (``image``, as published), or also those whose captions have the same text (``image_or_text``).
        rerank: how many candidates the fusion encoder re-scores at test time, for each query in both directions; the
            metrics are added as ``reranked_...``. All of a smaller gallery. None for cosine alone.
        micro_batch: how many pairs are encoded at a time, with the gradient of the whole batch, see
            :mod:`~sdr_lightning.training.gradient_caching`; None for all of a process at once.
        local_loss: each process computes the rows of its own pairs instead of every row, as far as a term falls apart
            into rows: the contrasts, and structure by ``mae`` and ``mse``. The mean over processes, and so the
            gradient, is the same.
        start_from: a checkpoint of an earlier stage: training starts from its encoder, and from what of its objective is
            part of this one. ``$NAME`` and ``${NAME:-default}`` are filled in.

    Raises:
        ValueError: a term or re-ranking that needs a fusion encoder, without one; a rerank or micro_batch below 1; batch
            norm with micro_batch; local_loss without the exact gradient; an unknown word.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        objective: RebalancingObjective,
        optimisation: Optimisation | None = None,
        gather: Gather = "exact",
        negatives: Literal["local", "global"] = "local",
        positives: Literal["image", "image_or_text"] = "image",
        rerank: int | None = None,
        micro_batch: int | None = None,
        local_loss: bool = False,
        start_from: FilePath | None = None,
    ) -> None:
        super().__init__()
        if encoder.fusion is None and (objective.needs_fusion or rerank is not None):
            raise ValueError(
                "the objective's term itm or relation fused, or rerank, needs a fusion encoder: configure encoder.fusion, or "
                "leave these out"
            )
        if rerank is not None and rerank < 1:
            raise ValueError(f"rerank must be at least 1 candidate, got {rerank}")
        if gather not in get_args(Gather) or negatives not in ("local", "global"):
            raise ValueError(
                f"gather is exact or albef and negatives local or global, got {gather!r} and {negatives!r}"
            )
        if positives not in ("image", "image_or_text"):
            raise ValueError(f"positives is image or image_or_text, got {positives!r}")
        if local_loss and gather != "exact":
            raise ValueError("local_loss leaves rows to other processes and needs their gradient: set gather to exact")
        check_chunks(micro_batch, **{"image tower": encoder.image_tower, "text tower": encoder.text_tower})
        self.encoder, self.objective = encoder, objective
        self.optimisation = optimisation if optimisation is not None else Optimisation()
        self.gather, self.negatives, self.positives = gather, negatives, positives
        self.rerank, self.start_from = rerank, start_from
        self.micro_batch, self.local_loss = micro_batch, local_loss
        self.image_table, self.text_table, self.pair_table = EmbeddingTable(), EmbeddingTable(), EmbeddingTable()
        self.best_rsum = 0.0
        self.test_metrics: dict[str, float] = {}
        self.test_queries: dict[str, Tensor] = {}
        self.val_embeddings: tuple[Tensor, Tensor] | None = None
        self.test_embeddings: tuple[Tensor, Tensor] | None = None
        self.protocol: ProtocolName = "clean"  # whoever trains under another says so
        self.teachers: dict[Modality, Callable[[], Tower]] = {}  # whoever has them at hand passes them; banks otherwise
        if encoder.fusion is not None:  # a parameter that no term reads would stop DDP
            encoder.fusion.requires_grad_(objective.needs_fusion)
            encoder.fusion.head.requires_grad_(objective.needs_matching)

    @property
    def data(self) -> RetrievalDataModule:
        """The data module of the trainer that runs this module."""
        data: RetrievalDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def setup(self, stage: str) -> None:
        """Check data against model, attach the teachers that the objective needs, and let frozen towers speak once.

        Raises:
            ValueError: a tokenizer that does not fit the text tower, a teacher's bank that is absent or of other data, or a test
                split that protocol paper cannot evaluate.
        """
        if self.protocol == "paper" and "test" in self.data.splits:
            test = self.data.split("test")
            first_five(test.caption_image, len(test.table.image_ids))
        tokenizer = self.data.tokenizer
        check_tokens(self.encoder.text_tower, tokenizer.vocabulary_size, tokenizer.max_tokens)
        needed: dict[Modality, bool] = {
            "image": self.objective.needs_image_teacher,
            "text": self.objective.needs_text_teacher,
        }
        for modality, is_needed in needed.items():
            if stage == "fit" and is_needed:
                self._attach_teacher(modality)
        if stage == "fit" and self.start_from is not None:
            start_from(Path(expand(self.start_from)), self, self.encoder, self.objective)
        if stage == "fit" and self.positives == "image_or_text":
            content = torch.from_numpy(self.data.split("train").content("text"))
            self._text_content = content.to(self.trainer.strategy.root_device)
        for name, split in self.data.splits.items():
            for tower in self.encoder.cached_towers().values():
                split.cache(self._features(tower, name))

    def _attach_teacher(self, modality: Modality) -> None:
        """Hand out a teacher's features: of the teacher at hand, run over the training data as it is, or of its bank."""
        if modality in self.teachers:
            self.data.split("train").attach_teacher(self._features(self.teachers[modality](), "train"))
        else:
            self.data.attach_teacher(modality)

    def _features(self, tower: Tower, name: Split) -> FeatureBank:
        """What a frozen tower says of a split; the first process writes the cache that all then read."""
        bank = partial(split_bank, tower, self.data, name, self.trainer.strategy.root_device)
        in_first_process(self.trainer, bank)
        return bank()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, see :class:`~sdr_lightning.training.optimisation.Optimisation`."""
        newly_initialized = [f"encoder.{name}" for name in self.encoder.newly_initialized_parameters()]
        newly_initialized += [f"objective.{name}" for name, _ in self.objective.named_parameters()]
        return self.optimisation.configure(self, newly_initialized)

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        """The objective over the pairs of all ranks.

        Raises:
            ValueError: the loss is not finite; names the step, every term and the images of the batch.
        """
        image = encode_in_chunks(self.encoder.image, batch.images, self.micro_batch)
        text = encode_in_chunks(self.encoder.text, batch.texts, self.micro_batch)
        index = self._positive_index(batch)
        matched = self._match(image, text, index) if self.objective.needs_fusion else Matched(None)
        pairs = PairEmbeddings(
            gather(self, image.embedding, self.gather),
            gather(self, text.embedding, self.gather),
            gather(self, index),
            gather(self, batch.image_teacher),
            gather(self, batch.text_teacher),
            gather(self, matched.fused, self.gather),
            gather(self, matched.logits),  # the public code does not gather these, so they have their whole gradient
            gather(self, matched.labels),
        )
        terms: dict[str, Tensor] = self.objective(pairs, self._own_rows(len(batch.image_index)))
        loss = self.objective.total(terms)
        whole = {"loss": loss} | terms
        if self.local_loss:  # a process knows its rows alone
            values = gather(self, torch.stack(list(whole.values())).detach()[None]).mean(dim=0)
            whole = dict(zip(whole, values, strict=True))
        if not bool(torch.isfinite(whole["loss"])):
            raise ValueError(self._not_finite(whole, batch.image_index))
        self.keep_terms(whole)
        return loss

    def _positive_index(self, batch: RetrievalBatch) -> Tensor:
        """(B,) or (B, 2) int64: pairs with an equal value in a column are positives of one another."""
        if self.positives == "image":
            return batch.image_index
        return torch.stack([batch.image_index, self._text_content[batch.text_index]], dim=1)

    def _own_rows(self, pairs: int) -> slice:
        first = self.trainer.global_rank * pairs
        return slice(first, first + pairs) if self.local_loss else slice(None)

    def _match(self, image: Encoded, text: Encoded, image_index: Tensor) -> Matched:
        assert self.encoder.fusion is not None
        pool = Pool(image, text, image_index)
        if self.negatives == "global" and self.trainer.world_size > 1:
            first = self.trainer.global_rank * len(image_index)
            pool = Pool(gather_encoded(self, image), gather_encoded(self, text), gather(self, image_index), first)
        tau = self.objective.negatives_temperature()
        with_negatives = self.objective.needs_matching
        return match(self.encoder.fusion, pool, len(image_index), tau, with_negatives, self.micro_batch)

    def _not_finite(self, terms: dict[str, Tensor], image_index: Tensor) -> str:
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items() if name != "loss")
        ids = self.data.split("train").table.image_ids
        shown = [str(ids[row]) for row in image_index[:8].tolist()]
        more = f" and {len(image_index) - 8} more" if len(image_index) > 8 else ""
        return (
            f"the loss is not finite at step {self.global_step} ({values}), images {', '.join(shown)}{more}: lower the "
            "learning rate; checkpoints of earlier epochs are kept"
        )

    def epoch_means(self) -> dict[str, Tensor]:
        """Every term's mean, and the temperatures and lambda as they are."""
        return super().epoch_means() | {f"objective/{name}": value for name, value in self.objective.scalars().items()}

    def logged_metrics(self) -> list[str]:
        """Names of the metrics of validation, of the terms, and of the temperatures and lambda."""
        pair = torch.eye(2)
        recall = [f"{self.data.select_on}/{name}" for name in (*cross_modal(pair, pair, torch.arange(2)), "rsum_best")]
        terms = [f"train/{name}" for name in ("loss", *self.objective.weights)]
        return [*recall, *terms, *(f"objective/{name}" for name in self.objective.scalars())]

    def on_train_batch_end(self, *_: Any) -> None:
        """Keep the temperatures in their ranges."""
        self.objective.clamp()

    def validation_step(self, batch: UnimodalBatch, batch_idx: int, dataloader_idx: int) -> None:
        """Embed a batch of images (loader 0) or captions (loader 1)."""
        if dataloader_idx == 0:
            self.image_table.update(batch.rows, self.encoder.encode_image(batch.inputs))  # type: ignore[arg-type]
        else:
            self.text_table.update(batch.rows, self.encoder.encode_text(batch.inputs))

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log recall on the split that checkpoints are selected on, and the best rsum so far, for sweeps."""
        if self.trainer.sanity_checking or is_dev_run(self.trainer):  # a few batches are not the gallery
            self.image_table.reset()
            self.text_table.reset()
            return
        name = self.data.select_on
        self.val_embeddings = image, text = self._collect(name)
        metrics = cross_modal(image, text, self.data.split(name).caption_image)
        self.best_rsum = max(self.best_rsum, metrics["rsum"])
        self.log_dict({f"{name}/{key}": value for key, value in {**metrics, "rsum_best": self.best_rsum}.items()})

    def on_test_epoch_end(self) -> None:
        """Everything, on the test split."""
        image, text = self._collect("test")
        self.test_embeddings = image, text
        pairs, relevance = self.data.split("test").caption_image, self.data.relevance("test")
        rescored = (
            None if self.rerank is None else self._rescored(*checked_embeddings(image, text, pairs)[:2], self.rerank)
        )
        if self.protocol == "paper":
            self.test_metrics, self.test_queries = evaluate_published(image, text, pairs, relevance)
            if rescored is not None:
                i2t, t2i = published_scores(rescored.i2t, len(text)), published_scores(rescored.t2i, len(image))
                reranked = evaluate_published(image, text, pairs, relevance, i2t, t2i).metrics
                self.test_metrics |= {f"reranked_{name}": value for name, value in reranked.items()}
        else:
            self.test_metrics, self.test_queries = evaluate_queries(image, text, pairs, relevance)
            if self.data.test_folds is not None:
                self.test_metrics |= cross_modal_folds(image, text, pairs, self.data.test_folds)
            if rescored is not None:
                self.test_metrics |= reranked_metrics(image, text, pairs, rescored)
        defined = {name: value for name, value in self.test_metrics.items() if not math.isnan(value)}
        self.log_dict({f"test/{name}": value for name, value in defined.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the weights of frozen towers by their fingerprints, and note whose features were distilled."""
        train = self.data.splits.get("train")
        checkpoint[_PROTOCOL], checkpoint[_BEST] = self.protocol, self.best_rsum
        checkpoint[_TEACHERS] = {} if train is None else dict(train.teacher_sources)
        leave_frozen_out(checkpoint, self.encoder)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the weights of frozen towers back; outside training, pass the objective's parameters over.

        Raises:
            ValueError: the tower that is frozen here is not the one that was frozen then, training is continued with
                another teacher, or the checkpoint is of another protocol.
        """
        trained = checkpoint.get(_PROTOCOL, "clean")
        if trained != self.protocol:
            raise ValueError(f"the checkpoint was trained under protocol {trained}: say --protocol {trained}")
        if (
            self.trainer.state.fn != TrainerFn.FITTING
        ):  # an objective with other terms has other parameters, and is not used
            mine = {key: value for key, value in self.state_dict().items() if key.startswith("objective.")}
            theirs = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {key: value for key, value in theirs if not key.startswith("objective.")} | mine
        else:
            self._check_teachers(checkpoint.get(_TEACHERS, {}))
            self.best_rsum = checkpoint.get(_BEST, 0.0)
        put_frozen_back(checkpoint, self.encoder)

    def _check_teachers(self, then: dict[Modality, str]) -> None:
        for modality, source in self.data.split("train").teacher_sources.items():
            if then.get(modality, source) != source:
                raise ValueError(
                    f"the {modality} teacher is another than the one this training began with: continue with that one, or "
                    "start again"
                )

    def _rescored(self, image: Tensor, text: Tensor, k: int) -> Rescored:
        """The first k of each query by cosine, in both directions, with the fusion encoder's scores; embeddings normalised."""
        images = torch.arange(len(image))
        to_text, to_image = top_k(image, text, k).items, top_k(text, image, k).items  # (N, k), (C, k)
        columns = torch.arange(len(text))[:, None]
        i2t, t2i = images[:, None] * len(text) + to_text, to_image * len(text) + columns
        pairs = torch.unique(torch.cat([i2t.flatten(), t2i.flatten()]))  # what both directions ask for is scored once
        device, data = self.device, self.data
        rank, world = self.trainer.global_rank, self.trainer.world_size
        with self.trainer.strategy.precision_plugin.forward_context():
            captions = encode_captions(self.encoder, data.items("test", "text"), device)
            positions, scores = score_pairs(
                self.encoder,
                data.items("test", "image", rank, world),
                captions,
                pairs // len(text),
                pairs % len(text),
                device,
                data.evaluation_batch_size,
                progress=rank == 0,
            )
        self.pair_table.update(positions.to(device), scores[:, None].to(device))
        found = self.pair_table.table(len(pairs)).squeeze(1)
        return Rescored(
            TopK(found[torch.searchsorted(pairs, i2t)], to_text), TopK(found[torch.searchsorted(pairs, t2i)], to_image)
        )

    def _collect(self, name: Split) -> tuple[Tensor, Tensor]:
        table = self.data.split(name).table
        return self.image_table.table(len(table.image_ids)), self.text_table.table(len(table.captions))
