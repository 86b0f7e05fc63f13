"""The terms of a loss, logged as their means over an epoch."""

from __future__ import annotations

from collections.abc import Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor


class EpochTerms(pl.LightningModule):
    """A module that logs each term of its loss once an epoch as ``train/NAME``.

    A log a term and step would cost a small model as much as its encoders.

    Attributes:
        epoch_terms: of each step of the epoch so far, detached; the same in all processes. Checkpoints keep them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.epoch_terms: list[dict[str, Tensor]] = []

    def keep_terms(self, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of a step."""
        self.epoch_terms.append({name: value.detach() for name, value in terms.items()})

    def epoch_means(self) -> dict[str, Tensor]:
        """What is logged at the end of an epoch."""
        return {f"train/{name}": values.mean() for name, values in self.packed_terms().items()}

    def logged_metrics(self) -> list[str]:
        """Names of the metrics that are logged in training and validation, which callbacks may monitor."""
        return ["train/loss"]

    def packed_terms(self) -> dict[str, Tensor]:
        """The terms so far as one tensor each, (steps,), for checkpoints."""
        names = self.epoch_terms[0] if self.epoch_terms else ()
        return {name: torch.stack([terms[name] for terms in self.epoch_terms]).cpu() for name in names}

    def restore_terms(self, packed: Mapping[str, Tensor]) -> None:
        """Take the terms of :meth:`packed_terms` back."""
        steps = zip(*(values.to(self.device).unbind() for values in packed.values()), strict=True)
        self.epoch_terms = [dict(zip(packed, values, strict=True)) for values in steps]

    def on_train_epoch_start(self) -> None:
        """Start again; a training that is continued in mid-epoch does not come here."""
        self.epoch_terms.clear()

    def on_train_epoch_end(self) -> None:
        """Log the means."""
        self.log_dict(self.epoch_means())
