"""Optimiser and schedule, the same for students and teachers."""

from __future__ import annotations

import math

import lightning.pytorch as pl
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


class Optimisation:
    """AdamW with linear warm-up and cosine decay to zero.

    Weight decay touches matrices and convolution kernels only: biases, norms, temperatures and lambda have one dimension
    or none and are left alone.

    Args:
        learning_rate: the highest learning rate.
        weight_decay: decoupled weight decay.
        warmup: share of the steps that warm up, in [0, 1].
        betas: of AdamW; the paper's by default.

    Raises:
        ValueError: a warm-up outside [0, 1], or a learning rate that is not positive.
    """

    def __init__(
        self,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        if not 0 <= warmup <= 1:
            raise ValueError(f"warmup is a share of the steps in [0, 1], got {warmup}")
        if not learning_rate > 0:
            raise ValueError(f"the learning rate must be positive, got {learning_rate}")
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.warmup, self.betas = warmup, betas

    def configure(self, module: pl.LightningModule) -> OptimizerLRSchedulerConfig:
        """Optimiser and schedule for the parameters of a module that want a gradient, as Lightning takes them."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = AdamW([g for g in groups if g["params"]], lr=self.learning_rate, betas=self.betas)
        steps = int(module.trainer.estimated_stepping_batches)
        warmup = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup))))

        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"},
        }
