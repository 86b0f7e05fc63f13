"""The student: a dual encoder trained by a method."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.methods.base import Method, PerPair
from sdr_lightning.metrics.detection import detection
from sdr_lightning.metrics.evaluation import checked_embeddings, cross_modal
from sdr_lightning.metrics.paper_protocol import first_five
from sdr_lightning.paths import FilePath, expand
from sdr_lightning.training.checkpoints.continuation import is_dev_run
from sdr_lightning.training.checkpoints.student import load_student, save_student, start_from
from sdr_lightning.training.distributed.collectives import Gather, gather, gather_encoded
from sdr_lightning.training.distributed.strategies import FullySharded, complete_weights
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.evaluation import RetrievalEvaluation
from sdr_lightning.training.gradient_caching import check_chunks, encode_in_chunks
from sdr_lightning.training.matching import Matched, Pool, match
from sdr_lightning.training.measurement import measure_pairs
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.protocol import ProtocolName
from sdr_lightning.training.reranking import rescore
from sdr_lightning.types import Encoded, Modality, Pairs, RetrievalBatch, UnimodalBatch

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig  # its name since Lightning 2.5.1


class LossNotFiniteError(ValueError):
    """The training loss is infinite or not a number."""


class RetrievalModule(EpochTerms):
    """Trains and evaluates a dual encoder, with or without a fusion encoder.

    Training logs the loss, every unweighted term and the method's scalars once per epoch. Validation computes recall; testing
    computes all metrics, with the graded relevance of the data module. Evaluation is in
    :mod:`~sdr_lightning.training.evaluation`, re-ranking in :mod:`~sdr_lightning.training.reranking`, checkpoint contents in
    :mod:`~sdr_lightning.training.checkpoints.student`.

    Args:
        encoder: the dual encoder. A fusion encoder that the method does not need is not trained.
        method: loss terms and their weights, see :class:`~sdr_lightning.methods.Method`.
        optimisation: optimiser and schedule.
        gather: gradient of gathered tensors, see :func:`~sdr_lightning.training.distributed.collectives.gather`.
        negatives: draw hard negatives from the pairs of the process (``local``, as in the public code) or of all processes
            (``global``).
        positives: pairs of a batch that are positives of one another, and thus never negatives: those of the same image
            (``image``, as in the public code), or also those with equal captions (``image_or_text``).
        rerank: number of candidates per query that the fusion encoder scores at test time, in both directions, at most the
            size of the gallery; adds metrics named ``reranked_...``. None for cosine alone.
        micro_batch: pairs encoded at a time, with the gradient of the whole batch, see
            :mod:`~sdr_lightning.training.gradient_caching`; None for all pairs of a process.
        local_loss: compute only the loss rows of the process's own pairs, for terms that decompose over rows. The mean over
            processes, and so the gradient, is the same.
        start_from: checkpoint of an earlier stage. Loads its encoder, and the parameters of its method that this method has
            too. ``$NAME`` and ``${NAME:-default}`` are expanded.
        protocol: ``paper`` evaluates like the public code, see docs/sdr.md; set by ``--protocol``.

    Raises:
        ValueError: options that do not fit each other, the encoder or the method.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        method: Method,
        optimisation: Optimisation | None = None,
        gather: Gather = "exact",
        negatives: Literal["local", "global"] = "local",
        positives: Literal["image", "image_or_text"] = "image",
        rerank: int | None = None,
        micro_batch: int | None = None,
        local_loss: bool = False,
        start_from: FilePath | None = None,
        protocol: ProtocolName = "clean",
    ) -> None:
        super().__init__()
        _check_options(gather, negatives, positives)
        _check_method(method, encoder, rerank, local_loss, protocol)
        if local_loss and gather != "exact":
            raise ValueError("local_loss leaves rows to other processes and needs their gradient: set gather to exact")
        check_chunks(micro_batch, **{"image tower": encoder.image_tower, "text tower": encoder.text_tower})
        self.encoder, self.method = encoder, method
        self.optimisation = optimisation if optimisation is not None else Optimisation()
        self.gather, self.negatives, self.positives = gather, negatives, positives
        self.rerank, self.start_from, self.protocol = rerank, start_from, protocol
        self.micro_batch, self.local_loss = micro_batch, local_loss
        self.evaluation = RetrievalEvaluation(protocol)
        self.best_rsum = 0.0
        self.test_metrics: dict[str, float] = {}
        self.test_queries: dict[str, Tensor] = {}
        self.val_embeddings: tuple[Tensor, Tensor] | None = None
        self.test_embeddings: tuple[Tensor, Tensor] | None = None
        self.cache_features: Callable[[], None] = lambda: None
        """Caches the features of frozen towers again, if they are cached; called when the weights of one have changed."""
        if encoder.fusion is not None:  # DDP requires that every trainable parameter gets a gradient
            encoder.fusion.requires_grad_("fusion" in method.needs)
            encoder.fusion.head.requires_grad_("matching" in method.needs)

    # --- Preparation

    @property
    def data(self) -> RetrievalDataModule:
        """The data module of the trainer that runs this module."""
        data: RetrievalDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def setup(self, stage: str) -> None:
        """Check the data against the model, and prepare the method.

        Raises:
            ValueError: the tokenizer does not fit the text tower, a teacher's bank is absent or belongs to other data, or the
                paper protocol cannot evaluate the test split.
        """
        if self.protocol == "paper" and "test" in self.data.splits:
            test = self.data.split("test")
            first_five(test.caption_image, len(test.table.image_ids))
        tokenizer = self.data.tokenizer
        check_tokens(self.encoder.text_tower, tokenizer.vocabulary_size, tokenizer.max_tokens)
        if stage == "fit":
            self._setup_training()

    def _setup_training(self) -> None:
        train = self.data.split("train")
        for modality in self.teachers:
            if modality not in train.teacher_sources:
                self.data.attach_teacher(modality)
        self.method.setup(train.training_pairs())
        self.data.set_epoch_order(self.method.epoch_order)
        if self.start_from is not None:
            start_from(Path(expand(self.start_from)), self)
        if self.positives == "image_or_text":
            content = torch.from_numpy(train.content("text"))
            self._text_content = content.to(self.trainer.strategy.root_device)

    @property
    def teachers(self) -> list[Modality]:
        """Modalities of the teachers that the method needs."""
        return [modality for modality in get_args(Modality) if f"{modality}_teacher" in self.method.needs]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build AdamW and its schedule, see :class:`~sdr_lightning.training.optimisation.Optimisation`."""
        newly_initialized = [f"encoder.{name}" for name in self.encoder.newly_initialized_parameters()]
        newly_initialized += [f"method.{name}" for name, _ in self.method.named_parameters()]
        return self.optimisation.configure(self, newly_initialized)

    def configure_model(self) -> None:
        """Divide the weights over the processes if the strategy does so.

        Raises:
            ValueError: an option, the method or a tower does not go with it.
        """
        if isinstance(strategy := self.trainer.strategy, FullySharded):
            if self.micro_batch is not None:
                raise ValueError(
                    "trainer.strategy fsdp gathers weights once for each layer, and micro_batch encodes chunks again: set "
                    "encoder.init_args.activation_checkpointing instead, or use ddp"
                )
            if type(self.method).modify_gradients is not Method.modify_gradients:
                raise ValueError(
                    f"{type(self.method).__name__} changes gradients, of which trainer.strategy fsdp has parts: use ddp"
                )
            strategy.divide(self.encoder)

    # --- Training

    def on_train_epoch_start(self) -> None:
        """Call :meth:`~sdr_lightning.methods.Method.begin_epoch`. Not called when training resumes within an epoch."""
        super().on_train_epoch_start()
        self.method.begin_epoch(self.current_epoch, self._measure)

    def _measure(self, per_pair: PerPair) -> Tensor:
        with complete_weights(self.trainer):
            return measure_pairs(self, per_pair)

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        """Compute the loss of the method over the pairs of all processes.

        Raises:
            ValueError: the loss is not finite; the message names the step, the terms and the images of the batch.
        """
        image = encode_in_chunks(self.encoder.image, batch.images, self.micro_batch)
        text = encode_in_chunks(self.encoder.text, batch.texts, self.micro_batch)
        index = self.positive_index(batch)
        matched = self._match(image, text, index) if "fusion" in self.method.needs else Matched(None)
        pairs = Pairs(
            gather(self, image.embedding, self.gather),
            gather(self, text.embedding, self.gather),
            gather(self, index),
            gather(self, batch.pair_index),
            gather(self, batch.image_teacher),
            gather(self, batch.text_teacher),
            gather(self, matched.fused, self.gather),
            gather(self, matched.logits),  # the public code does not gather these, so their gradient is always exact
            gather(self, matched.labels),
        )
        terms: dict[str, Tensor] = self.method(pairs, self._local_rows(len(batch.image_index)))
        loss = self.method.total(terms)
        logged = {"loss": loss} | terms
        if self.local_loss:  # each process has the terms of its own rows
            values = gather(self, torch.stack(list(logged.values())).detach()[None]).mean(dim=0)
            logged = dict(zip(logged, values, strict=True))
        if not bool(torch.isfinite(logged["loss"])):
            raise LossNotFiniteError(self._not_finite_message(logged, batch.image_index))
        self.keep_terms(logged)
        return loss

    def positive_index(self, batch: RetrievalBatch) -> Tensor:
        """Return (B,) or (B, 2) int64: pairs with an equal value in a column are positives of one another."""
        if self.positives == "image":
            return batch.image_index
        return torch.stack([batch.image_index, self._text_content[batch.pair_index]], dim=1)

    def _local_rows(self, pairs: int) -> slice:
        first = self.trainer.global_rank * pairs
        return slice(first, first + pairs) if self.local_loss else slice(None)

    def _match(self, image: Encoded, text: Encoded, image_index: Tensor) -> Matched:
        assert self.encoder.fusion is not None
        pool = Pool(image, text, image_index)
        if self.negatives == "global" and self.trainer.world_size > 1:
            first = self.trainer.global_rank * len(image_index)
            pool = Pool(gather_encoded(self, image), gather_encoded(self, text), gather(self, image_index), first)
        tau = self.method.hard_negative_temperature()
        with_negatives = "matching" in self.method.needs
        return match(self.encoder.fusion, pool, len(image_index), tau, with_negatives, self.micro_batch)

    def _not_finite_message(self, terms: dict[str, Tensor], image_index: Tensor) -> str:
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items() if name != "loss")
        ids = self.data.split("train").table.image_ids
        shown = [str(ids[row]) for row in image_index[:8].tolist()]
        more = f" and {len(image_index) - 8} more" if len(image_index) > 8 else ""
        return (
            f"the loss is not finite at step {self.global_step} ({values}), images {', '.join(shown)}{more}: lower the "
            "learning rate; checkpoints of earlier epochs are kept"
        )

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Call ``modify_gradients`` of the method: after accumulation, averaging and unscaling, before clipping."""
        self.method.modify_gradients(self.encoder)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, and let the method update its state, before callbacks save a checkpoint of the step."""
        super().optimizer_step(*arguments, **options)
        self.method.after_step()

    def epoch_means(self) -> dict[str, Tensor]:
        """Return the mean of every term, the scalars of the method, and its detection of corrupted pairs."""
        scalars = self.method.scalars() | {name: torch.tensor(value) for name, value in self.detection().items()}
        return super().epoch_means() | {f"method/{name}": value for name, value in scalars.items()}

    def detection(self) -> dict[str, float]:
        """Measure how well the method detects corrupted pairs, see :func:`~sdr_lightning.metrics.detection.detection`.

        Returns:
            Percentages by name; empty if the method does not estimate ``clean_probability``.
        """
        probability = self.method.clean_probability
        return {} if probability is None else detection(probability, self.data.split("train").is_original)

    def logged_metrics(self) -> list[str]:
        """Return the names of validation metrics, weighted terms and scalars of the method."""
        pair = torch.eye(2)
        recall = [f"{self.data.select_on}/{name}" for name in (*cross_modal(pair, pair, torch.arange(2)), "rsum_best")]
        terms = [f"train/{name}" for name in ("loss", *self.method.weights)]
        return [*recall, *terms, *(f"method/{name}" for name in self.method.scalars())]

    # --- Evaluation

    def validation_step(self, batch: UnimodalBatch, batch_idx: int, dataloader_idx: int) -> None:
        """Embed a batch of images (loader 0) or captions (loader 1)."""
        if dataloader_idx == 0:
            self.evaluation.update("image", batch.rows, self.encoder.encode_image(batch.inputs))  # type: ignore[arg-type]
        else:
            self.evaluation.update("text", batch.rows, self.encoder.encode_text(batch.inputs))  # type: ignore[arg-type]

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log recall on the split used for model selection, and the best rsum so far, for sweeps."""
        if self.trainer.sanity_checking or is_dev_run(self.trainer):  # only a part of the gallery was encoded
            self.evaluation.reset()
            return
        name = self.data.select_on
        self.val_embeddings = image, text = self.evaluation.collect(self.data, name)
        metrics = self.evaluation.validate(self.method, image, text, self.data.split(name).caption_image)
        self.best_rsum = max(self.best_rsum, metrics["rsum"])
        self.log_dict({f"{name}/{key}": value for key, value in {**metrics, "rsum_best": self.best_rsum}.items()})

    def on_test_epoch_end(self) -> None:
        """Compute all metrics of the test split and log those that are defined."""
        self.test_embeddings = image, text = self.evaluation.collect(self.data, "test")
        rescored = None
        if self.rerank is not None:
            unit = checked_embeddings(image, text, self.data.split("test").caption_image)
            rescored = rescore(self.encoder, self.data, self.trainer, unit[0], unit[1], self.rerank)
        self.test_metrics, self.test_queries = self.evaluation.test(self.method, image, text, self.data, rescored)
        defined = {name: value for name, value in self.test_metrics.items() if not math.isnan(value)}
        self.log_dict({f"test/{name}": value for name, value in defined.items()})

    # --- Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :func:`~sdr_lightning.training.checkpoints.student.save_student`."""
        save_student(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """See :func:`~sdr_lightning.training.checkpoints.student.load_student`."""
        load_student(checkpoint, self)


def _check_options(gather: str, negatives: str, positives: str) -> None:
    if gather not in get_args(Gather) or negatives not in ("local", "global"):
        raise ValueError(f"gather is exact or albef and negatives local or global, got {gather!r} and {negatives!r}")
    if positives not in ("image", "image_or_text"):
        raise ValueError(f"positives is image or image_or_text, got {positives!r}")


def _check_method(
    method: Method, encoder: DualEncoder, rerank: int | None, local_loss: bool, protocol: ProtocolName
) -> None:
    name = type(method).__name__
    if encoder.fusion is None and ("fusion" in method.needs or rerank is not None):
        raise ValueError(
            f"{'rerank' if 'fusion' not in method.needs else f'the method {name} with these terms'} needs a fusion encoder: "
            "configure encoder.fusion, or leave it out (for SDR: the term itm and relation fused)"
        )
    if rerank is not None and rerank < 1:
        raise ValueError(f"rerank must be at least 1 candidate, got {rerank}")
    if rerank is not None and "matching" not in method.needs:
        raise ValueError(
            f"rerank scores with the matching head, which {name} with these terms does not train: set rerank to null (for SDR: "
            "or give itm a weight)"
        )
    if local_loss and not method.supports_local_loss:
        raise ValueError(f"the terms of {name} do not decompose over rows: set local_loss to false")
    if not method.ranks_by_cosine and (rerank is not None or protocol == "paper"):
        raise ValueError(
            f"{name} ranks by its own similarity, which rerank and protocol paper do not use: leave them out"
        )
