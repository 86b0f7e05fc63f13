"""VSE++: a triplet loss on the hardest negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.contrastive import positives
from sdr_lightning.functional.triplet import hinge_costs
from sdr_lightning.methods.base import Measure, Method
from sdr_lightning.types import Pairs


class VSEPlusPlus(Method):
    """Keep each pair by a margin above its hardest negative of the batch, in both directions ([0]).

    ``triplet``: the mean over pairs i of ``max_j [m + s_ij - s_ii]_+ + max_j [m + s_ji - s_ii]_+`` over the negatives j of i,
    where ``s_ij`` is the cosine of image i and caption j. In the warm-up epochs, it is the sum over j instead of the maximum, as
    in [1] (the loss VSE0 of [0]).

    Differences from the public code: captions of the same image are not negatives of each other; the loss is the mean over
    pairs, not their sum. The warm-up is that of [1] and [2]; [0] has none.

    Args:
        margin: m > 0.
        warmup_epochs: epochs with all negatives; 0 for none. [1] uses 2.

    Raises:
        ValueError: a margin that is not positive, or a negative number of warm-up epochs.

    References:
        [0] Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018; fartashf/vsepp: model.py.
        [1] naver-ai/pcmepp: pcmepp/criterions/triplet.py, configs/others/vse_infty.yaml.
        [2] Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding" (VSE-infinity), CVPR 2021.
    """

    supports_local_loss = True
    warming_up: Tensor

    def __init__(self, margin: float = 0.2, warmup_epochs: int = 2) -> None:
        super().__init__({"triplet": 1.0})
        if not 0 < margin < float("inf"):
            raise ValueError(f"VSE++'s margin must be positive, got {margin}")
        if warmup_epochs < 0:
            raise ValueError(f"VSE++'s warmup_epochs must be at least 0, got {warmup_epochs}")
        self.margin, self.warmup_epochs = margin, warmup_epochs
        self.register_buffer("warming_up", torch.tensor(warmup_epochs > 0))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """End the warm-up when its epochs are over."""
        self.warming_up.fill_(epoch < self.warmup_epochs)

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the triplet loss; gradient flows to both embeddings."""
        same = positives(pairs.image_index, pairs.image_index)
        costs = hinge_costs(pairs.image @ pairs.text.T, self.margin, same)  # (B, B) each
        per_pair = [cost.sum(dim=1) if self.warming_up else cost.amax(dim=1) for cost in costs]
        return {"triplet": (per_pair[0] + per_pair[1])[local_rows].mean()}

    def scalars(self) -> dict[str, Tensor]:
        """Return whether all negatives count, 1 in the warm-up and 0 after it."""
        return {"warming_up": self.warming_up.float()}
