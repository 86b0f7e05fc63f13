"""Optimiser and schedule, the same for students and teachers."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

Decayed = Literal["matrices", "published"]


class Optimisation:
    """AdamW with linear warm-up, and decay to zero.

    Args:
        learning_rate: the highest learning rate.
        weight_decay: decoupled weight decay.
        warmup: share of the steps that warm up, in [0, 1].
        betas: of AdamW; the paper's by default.
        schedule: how the learning rate falls to zero: as a ``cosine``, or ``linear`` as in the paper.
        decayed: what weight decay touches. ``matrices``: matrices and convolution kernels; biases (tables of relative
            positions among them), norms, temperatures and lambda are left alone. ``published``: what the public code's
            names come to, which is that, and temperatures, lambda and the norm in the matching head.
        newly_initialized_multiple: the learning rate of layers that start from random weights is this many times the others'. The
            public code asks for 2 and does not get it.
        fused: update all parameters in one kernel; equal to rounding. With ``16-mixed`` Lightning then refuses to clip
            gradients.

    Raises:
        ValueError: a warm-up outside [0, 1], a learning rate or multiple that is not positive, or an unknown word.
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
        """Optimiser and schedule, as Lightning takes them.

        Args:
            module: whose parameters that want a gradient are optimised; attached to a trainer.
            newly_initialized: names of those that start from random weights.
        """
        optimizer = AdamW(
            self.groups(module, newly_initialized), lr=self.learning_rate, betas=self.betas, fused=self.fused or None
        )
        steps = int(module.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda step: self.factor(step, steps)),
                "interval": "step",
            },
        }

    def groups(self, module: nn.Module, newly_initialized: Collection[str] = ()) -> list[dict[str, Any]]:
        """Parameters that want a gradient, by weight decay and learning rate."""
        newly_initialized = set(newly_initialized) if self.newly_initialized_multiple != 1 else set()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                rate = self.learning_rate * (self.newly_initialized_multiple if name in newly_initialized else 1)
                decay = self.weight_decay if self._is_decayed(name, parameter) else 0.0
                groups.setdefault((decay, rate), []).append(parameter)
        return [{"params": found, "weight_decay": decay, "lr": rate} for (decay, rate), found in groups.items()]

    def factor(self, step: int, steps: int) -> float:
        """Share of the highest learning rate at a step out of steps."""
        warmup = max(1, round(self.warmup * steps))
        if step < warmup:
            return (step + 1) / warmup
        passed = min(1.0, (step - warmup) / max(1, steps - warmup))
        return 0.5 * (1 + math.cos(math.pi * passed)) if self.schedule == "cosine" else 1 - passed

    def _is_decayed(self, name: str, parameter: nn.Parameter) -> bool:
        if self.decayed == "published":
            return "bias" not in name and "norm" not in name.lower()
        return parameter.ndim > 1 and "bias" not in name
