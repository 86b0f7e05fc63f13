"""The student: a dual encoder trained by the rebalancing objective."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.features.bank import Modality
from sdr_lightning.losses.objective import RebalancingObjective
from sdr_lightning.metrics.evaluation import cross_modal, cross_modal_folds, evaluate
from sdr_lightning.training.distributed import EmbeddingTable, gather
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.types import PairEmbeddings, RetrievalBatch, UnimodalBatch

_FROZEN = "frozen_towers"


class RetrievalModule(pl.LightningModule):
    """Trains and evaluates a dual encoder.

    Training logs every term unweighted, the loss, the temperatures and lambda, once an epoch. Validation measures recall;
    testing measures everything, against the data module's graded relevance. A frozen tower is run over the data once, its
    features are kept in the data module's cache, and its weights are left out of checkpoints (its fingerprint is
    in them, and loading checks it).

    Args:
        encoder: the dual encoder.
        objective: the terms and their weights.
        optimisation: optimiser and schedule.
    """

    def __init__(
        self, encoder: DualEncoder, objective: RebalancingObjective, optimisation: Optimisation | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.optimisation = optimisation if optimisation is not None else Optimisation()
        self.image_table, self.text_table = EmbeddingTable(), EmbeddingTable()
        self.epoch_terms: list[dict[str, Tensor]] = []
        self.test_metrics: dict[str, float] = {}
        self.test_embeddings: tuple[Tensor, Tensor] | None = None

    @property
    def data(self) -> RetrievalDataModule:
        """The data module of the trainer that runs this module."""
        data: RetrievalDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def setup(self, stage: str) -> None:
        """Check data against model, attach the teachers that the objective needs, and let frozen towers speak once.

        Raises:
            ValueError: a tokenizer that is not the text tower's, or a teacher's bank that is absent or of other data.
        """
        vocabulary = getattr(self.encoder.text_tower, "vocabulary_size", None)
        if vocabulary is not None and vocabulary < self.data.tokenizer.vocabulary_size:
            raise ValueError(
                f"the tokenizer has {self.data.tokenizer.vocabulary_size} entries and the text tower embeds {vocabulary}: "
                "give both the same weights, or raise text_tower's config.vocab_size"
            )
        needed: dict[Modality, bool] = {
            "image": self.objective.needs_image_teacher,
            "text": self.objective.needs_text_teacher,
        }
        for modality, is_needed in needed.items():
            if stage == "fit" and is_needed:
                self.data.attach_teacher(modality)
        for name, split in self.data.splits.items():
            for tower in self.encoder.frozen_towers().values():
                device = self.trainer.strategy.root_device
                if self.trainer.is_global_zero:  # writes the cache that the others then read
                    split.cache(split_bank(tower, self.data, name, device))
                self.trainer.strategy.barrier()
                if not self.trainer.is_global_zero:
                    split.cache(split_bank(tower, self.data, name, device))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW and its schedule, see :class:`~sdr_lightning.training.optimisation.Optimisation`."""
        return self.optimisation.configure(self)

    def training_step(self, batch: RetrievalBatch, batch_idx: int) -> Tensor:
        """The objective over the pairs of all ranks.

        Raises:
            ValueError: the loss is not finite; names the step and every term.
        """
        pairs = PairEmbeddings(
            gather(self, self.encoder.encode_image(batch.images)),
            gather(self, self.encoder.encode_text(batch.texts)),
            gather(self, batch.image_index),
            gather(self, batch.image_teacher),
            gather(self, batch.text_teacher),
        )
        terms: dict[str, Tensor] = self.objective(pairs)
        loss = self.objective.total(terms)
        if not bool(torch.isfinite(loss)):
            values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.items())
            raise ValueError(
                f"the loss is {loss.item()} at step {self.global_step} ({values}): lower the learning rate"
            )
        self.epoch_terms.append({"loss": loss.detach()} | {name: value.detach() for name, value in terms.items()})
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean of every term, and the temperatures and lambda it ended with."""
        # One log a term and epoch: a log a term and step would cost a small model as much as its encoders.
        for name in self.epoch_terms[0]:
            self.log(f"train/{name}", torch.stack([terms[name] for terms in self.epoch_terms]).mean())
        self.log_dict({f"objective/{name}": value for name, value in self.objective.scalars().items()})
        self.epoch_terms.clear()

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
        """Recall on the validation split."""
        if self.trainer.sanity_checking:  # a few batches are not the gallery
            self.image_table.reset()
            self.text_table.reset()
            return
        image, text = self._collect("val")
        metrics = cross_modal(image, text, self.data.split("val").caption_image)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    def on_test_epoch_end(self) -> None:
        """Everything, on the test split."""
        image, text = self._collect("test")
        self.test_embeddings = image, text
        pairs = self.data.split("test").caption_image
        self.test_metrics = evaluate(image, text, pairs, self.data.relevance("test"))
        if self.data.test_folds is not None:
            self.test_metrics |= cross_modal_folds(image, text, pairs, self.data.test_folds)
        self.log_dict({f"test/{name}": value for name, value in self.test_metrics.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Replace the weights of frozen towers by their fingerprints."""
        towers = self.encoder.frozen_towers()
        checkpoint[_FROZEN] = {name: tower.fingerprint() for name, tower in towers.items()}
        for name in towers:
            for key in [key for key in checkpoint["state_dict"] if key.startswith(f"encoder.{name}.")]:
                del checkpoint["state_dict"][key]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the weights of frozen towers back; outside training, pass the objective's parameters over.

        Raises:
            ValueError: the tower that is frozen here is not the one that was frozen then.
        """
        if (
            self.trainer.state.fn != TrainerFn.FITTING
        ):  # an objective with other terms has other parameters, and is not used
            mine = {key: value for key, value in self.state_dict().items() if key.startswith("objective.")}
            theirs = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {key: value for key, value in theirs if not key.startswith("objective.")} | mine
        towers = self.encoder.frozen_towers()
        for name, fingerprint in checkpoint.get(_FROZEN, {}).items():
            if name not in towers or towers[name].fingerprint() != fingerprint:
                raise ValueError(
                    f"the checkpoint was trained on another frozen {name}: configure the weights it was trained with"
                )
            prefix = f"encoder.{name}."
            checkpoint["state_dict"] |= {prefix + key: value for key, value in towers[name].state_dict().items()}

    def _collect(self, name: Split) -> tuple[Tensor, Tensor]:
        table = self.data.split(name).table
        return self.image_table.table(len(table.image_ids)), self.text_table.table(len(table.captions))
