"""Lightning module of unimodal teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.functional.contrastive import ambiguity_penalty, nt_xent
from sdr_lightning.training.distributed.collectives import gather
from sdr_lightning.training.epoch_terms import EpochTerms
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.types import UnimodalBatch

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig  # its name since Lightning 2.5.1


class TeacherModule(EpochTerms):
    """Trains a tower by unimodal contrastive learning (NT-Xent).

    Positives are two augmented views of an image, or two captions of the same image. The features of the teacher are those of
    the tower, before the projection. Only one modality and no validation labels are used; the last epoch is the teacher. The
    paper publishes only the features of its teachers; this training follows earlier code of the same group.

    Args:
        tower: image or text tower; the ``batches`` of the data module must have the same modality.
        embedding_width: width of the projection before the loss.
        temperature: temperature of NT-Xent.
        regulariser: weight of :func:`~sdr_lightning.functional.contrastive.ambiguity_penalty`, which penalises similarities in
            (0.1, 0.5), as in earlier code of the same group; 0 for none.
        optimisation: optimiser and schedule.

    Raises:
        ValueError: the weight of the regulariser is negative or not finite.
    """

    def __init__(
        self,
        tower: Tower,
        embedding_width: int = 128,
        temperature: float = 0.1,
        regulariser: float = 0.0,
        optimisation: Optimisation | None = None,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.projection = Projection(tower.width, embedding_width, hidden_width=tower.width)
        if not 0 <= regulariser < float("inf"):
            raise ValueError(f"the regulariser's weight must be finite and >= 0, got {regulariser}")
        self.temperature, self.regulariser = temperature, regulariser
        self.optimisation = optimisation if optimisation is not None else Optimisation()

    def setup(self, stage: str) -> None:
        """Check the tokenizer of a text tower.

        Raises:
            ValueError: it does not fit, see :func:`~sdr_lightning.encoders.text.check_tokens`.
        """
        if self.tower.modality == "text":
            tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
            check_tokens(self.tower, tokenizer.vocabulary_size, tokenizer.max_tokens)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build AdamW and its schedule, see :class:`~sdr_lightning.training.optimisation.Optimisation`.

        Raises:
            ValueError: the tower is frozen.
        """
        if self.tower.frozen:
            raise ValueError("a frozen tower has nothing to train: run sdr extract on it as it is")
        pretrained = ("tower.",) if self.tower.pretrained else ()
        return self.optimisation.configure(
            self, [name for name, _ in self.named_parameters() if not name.startswith(pretrained)]
        )

    def training_step(self, batch: UnimodalBatch, batch_idx: int) -> Tensor:
        """Compute NT-Xent over the views of all processes, plus the regulariser."""
        embeddings = gather(self, F.normalize(self.projection(self.tower(batch.inputs)), dim=1))
        loss = nt_xent(embeddings, gather(self, batch.group), self.temperature)
        if self.regulariser:
            loss = loss + self.regulariser * ambiguity_penalty(embeddings)
        self.keep_terms({"loss": loss})
        return loss
