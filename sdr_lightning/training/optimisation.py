"""Optimiser and learning rate schedule of students and teachers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig  # its name since Lightning 2.5.1

Decayed = Literal["matrices", "published"]


class Optimisation:
    """AdamW with linear warm-up and decay to zero.

    Args:
        learning_rate: peak learning rate.
        weight_decay: decoupled weight decay.
        warmup: fraction of the steps used for warm-up, in [0, 1].
        betas: betas of AdamW; the default is the paper's.
        schedule: decay of the learning rate to zero, ``cosine`` or ``linear`` (as in the paper).
        decayed: parameters with weight decay. ``matrices``: matrices and convolution kernels, without biases (relative
            position tables included), norms, temperatures and lambda. ``published``: as in the public code, which decays
            temperatures, lambda and the norm of the matching head as well.
        newly_initialized_multiple: factor on the learning rate of layers with random initial weights. The public code
            configures 2, but does not apply it.
        fused: use the fused AdamW kernel; equal up to rounding. Lightning does not support it together with ``16-mixed`` and
            gradient clipping.

    Raises:
        ValueError: a warm-up outside [0, 1], a learning rate or multiple that is not positive, or an unknown option.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.98),
        schedule: Literal["cosine", "linear"] = "cosine",
        decayed: Decayed = "matrices",
        newly_initialized_multiple: float = 1.0,
        fused: bool = False,
    ) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], got {warmup}")
        for name, value in (
            ("learning rate", learning_rate),
            ("newly_initialized_multiple", newly_initialized_multiple),
        ):
            if not value > 0:
                raise ValueError(f"the {name} must be positive, got {value}")
        if schedule not in ("cosine", "linear"):
            raise ValueError(f"schedule must be cosine or linear, got {schedule!r}")
        if decayed not in ("matrices", "published"):
            raise ValueError(f"decayed must be matrices or published, got {decayed!r}")
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup, self.betas, self.schedule = warmup, betas, schedule
        self.decayed, self.newly_initialized_multiple, self.fused = decayed, newly_initialized_multiple, fused

    def configure(
        self, module: pl.LightningModule, newly_initialized: Collection[str] = ()
    ) -> OptimizerLRSchedulerConfig:
        """Build optimiser and schedule for Lightning.

        Args:
            module: attached to a trainer; its parameters with ``requires_grad`` are optimised.
            newly_initialized: names of parameters with random initial weights.

        Raises:
            ValueError: the training has no end, which the schedule needs.
        """
        steps = module.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the schedule of the learning rate needs an end: set trainer.max_epochs or trainer.max_steps"
            )
        optimizer = AdamW(
            self.groups(module, newly_initialized), lr=self.learning_rate, betas=self.betas, fused=self.fused or None
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda step: self.factor(step, int(steps))),
                "interval": "step",
            },
        }

    def groups(self, module: nn.Module, newly_initialized: Collection[str] = ()) -> list[dict[str, Any]]:
        """Group the parameters with ``requires_grad`` by weight decay and learning rate."""
        newly_initialized = set(newly_initialized) if self.newly_initialized_multiple != 1 else set()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                rate = self.learning_rate * (self.newly_initialized_multiple if name in newly_initialized else 1)
                decay = self.weight_decay if self._is_decayed(name, parameter) else 0.0
                groups.setdefault((decay, rate), []).append(parameter)
        return [{"params": found, "weight_decay": decay, "lr": rate} for (decay, rate), found in groups.items()]

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the peak learning rate at a step, in [0, 1]."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        passed = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * passed)) if self.schedule == "cosine" else 1 - passed

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        if self.decayed == "published":
            return "bias" not in name and "norm" not in name.lower()
        return parameter.ndim > 1 and "bias" not in name
