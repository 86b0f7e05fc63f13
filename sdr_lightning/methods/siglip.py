"""SigLIP: a sigmoid loss on each image-text pair."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.functional.contrastive import positives
from sdr_lightning.methods.base import Method
from sdr_lightning.types import Pairs


class SigLIP(Method):
    """Classify every image-caption pair of the batch as matched or unmatched ([0]).

    ``sigmoid``: ``-1/B sum_i sum_j log sigmoid(y_ij (t s_ij + b))`` with cosines ``s_ij``, ``y_ij`` = 1 for positives and -1
    otherwise. [1] knows positives on the diagonal only; here captions of the same image are positives too. With one caption per
    image in a batch the two are equal.

    Args:
        scale: t at the start; learned as log t.
        bias: b at the start; learned.

    Raises:
        ValueError: a scale that is not positive.

    References:
        [0] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
        [1] mlfoundations/open_clip: src/open_clip/loss.py.
    """

    supports_local_loss = True

    def __init__(self, scale: float = 10.0, bias: float = -10.0) -> None:
        super().__init__({"sigmoid": 1.0})
        if not scale > 0:
            raise ValueError(f"SigLIP's scale must be positive, got {scale}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the sigmoid loss; gradient flows to both embeddings, t and b."""
        logits = self.log_scale.exp() * pairs.image[local_rows] @ pairs.text.T + self.bias  # (Q, B)
        matched = positives(pairs.image_index[local_rows], pairs.image_index)
        signs = torch.where(matched, 1.0, -1.0).to(logits.dtype)
        return {"sigmoid": -F.logsigmoid(signs * logits).sum(dim=1).mean()}

    def scalars(self) -> dict[str, Tensor]:
        """Return t and b."""
        return {"scale": self.log_scale.detach().exp(), "bias": self.bias.detach()}

    def hard_negative_temperature(self) -> Tensor:
        """Return 1 / t."""
        return (-self.log_scale.detach()).exp()
