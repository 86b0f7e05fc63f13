"""Epoch means of loss terms."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor


class EpochTerms(pl.LightningModule):
    """Base module that logs the epoch mean of each loss term as ``train/NAME``.

    Logging every term at every step can cost as much time as a small encoder.

    Attributes:
        epoch_terms: detached terms of each step of the current epoch, equal in all processes. Saved in checkpoints.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch_terms: list[dict[str, Tensor]] = []

    def keep_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Store the terms of a step."""
        self.epoch_terms.append({name: value.detach() for name, value in terms.items()})

    def epoch_means(self) -> dict[str, Tensor]:
        """Return the metrics to log at the end of an epoch."""
        return {f"train/{name}": values.mean() for name, values in self.packed_terms().items()}

    def logged_metrics(self) -> list[str]:
        """Return the names of all metrics logged during fitting, which callbacks may monitor."""
        return ["train/loss"]

    def packed_terms(self) -> dict[str, Tensor]:
        """Return the stored terms for a checkpoint, one (steps,) CPU tensor per name."""
        names = self.epoch_terms[0] if self.epoch_terms else ()
        return {name: torch.stack([terms[name] for terms in self.epoch_terms]).cpu() for name in names}

    def restore_terms(self, packed: Mapping[str, Tensor]) -> None:
        """Restore the terms that :meth:`packed_terms` returned."""
        steps = zip(*(values.to(self.device).unbind() for values in packed.values()), strict=True)
        self.epoch_terms = [dict(zip(packed, values, strict=True)) for values in steps]

    def on_train_epoch_start(self) -> None:
        """Clear the terms. Not called when training resumes within an epoch."""
        self.epoch_terms.clear()

    def on_train_epoch_end(self) -> None:
        """Log the epoch means."""
        self.log_dict(self.epoch_means())
