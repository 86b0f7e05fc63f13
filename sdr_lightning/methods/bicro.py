"""BiCro: soft labels from the similarities of a pair to anchors, in both modalities."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.beta_mixture import low_beta_posterior
from sdr_lightning.functional.consistency import bidirectional_consistency
from sdr_lightning.methods.co_teaching import CoTeaching
from sdr_lightning.types import Pairs


class BiCro(CoTeaching):
    """Label each pair by whether its image and its caption are as near to the same clean pairs ([0]).

    Two networks a and b of a :class:`~sdr_lightning.encoders.TwinEncoder`:

    1. Warm-up: of each batch, the share ``warmup_share`` of the pairs with the smallest mean hinge,
       ``sum_j ([m + s_ij - s_ii]_+ + [m + s_ji - s_ii]_+) / B``, each network by its own.
    2. Before each later epoch, the mean hinge of every pair is measured with each network, scaled to [0, 1] over the data set,
       and modelled by two beta distributions. The posterior of the lower one is the probability that a pair is clean. A pair is
       *clean* for network a if the probability by network b exceeds the threshold, and *noisy* otherwise.
    3. Anchors: of the n clean pairs of a batch, the ``n // 10 + 1`` with the smallest mean hinge. Consistency of pair i:
       ``c_i``, the mean over both modalities of the lesser of ``S(I_i, I_c) / S(T_i, T_c)`` and its inverse, where c is the
       anchor that is nearest in that modality and S the cosine, see
       :func:`~sdr_lightning.functional.consistency.bidirectional_consistency`. For network a, network b chooses the anchors and
       computes the similarities.
    4. Labels: 1 for anchors, ``(1 + c_i) / 2`` for other clean pairs, ``c_i`` for noisy pairs. Labels up to ``least_label``
       become 0.
    5. Training of each network: the hinge on the hardest negative, with the margin ``m (10^y_i - 1) / 9`` of the anchor i. Pairs
       that count as noisy contribute from ``noisy_from`` on. Evaluation ranks by the mean of both cosines.

    Differences from the public code: similarities are those of the embeddings instead of averaged regions and words; both
    networks see the same batches and take one step for clean and noisy pairs together, which are therefore negatives of each
    other; trained towers start from the same weights; captions of the same image are not negatives; labels are computed in the
    training forward pass; of equally small losses, those of pairs with greater cosines are selected; no pair is made noisy where
    the mixture finds none; losses are means instead of sums, which AdamW does not see. Each pair has its own label and the
    margin of the anchor, as in the paper; the public code gives the label of row k of a clean batch to the k-th pair that is no
    anchor, and takes the margin of the negative in the direction from images to captions.

    Args:
        margin: m.
        warmup_epochs: epochs of step 1; 10 before another 40 in the public code.
        warmup_share: share of each batch that is trained on in the warm-up, in (0, 1].
        threshold: probability above which a pair counts as clean.
        least_label: labels that are not greater become 0, in [0, 1).
        noisy_from: epoch from which pairs that count as noisy contribute; the public code takes half of the epochs after the
            warm-up.

    Raises:
        ValueError: a margin that is not positive, fewer than one warm-up epoch, a threshold or least label outside [0, 1), or a
            share outside (0, 1].

    References:
        [0] Yang et al., "BiCro: Noisy Correspondence Rectification for Multi-modality Data via Bi-directional Cross-modal
            Similarity Consistency", CVPR 2023; xu5zhao/BiCro: co_train.py, model.py, train_f30k.sh.
    """

    def __init__(
        self,
        margin: float = 0.2,
        warmup_epochs: int = 1,
        warmup_share: float = 0.3,
        threshold: float = 0.5,
        least_label: float = 0.5,
        noisy_from: int = 1,
    ) -> None:
        super().__init__(margin, warmup_epochs, threshold, noisy_from)
        if not 0 < warmup_share <= 1:
            raise ValueError(f"BiCro's warmup_share must be in (0, 1], got {warmup_share}")
        if not 0 <= least_label < 1:
            raise ValueError(f"BiCro's least_label must be in [0, 1), got {least_label}")
        self.warmup_share, self.least_label = warmup_share, least_label

    def warmup_costs(self, network: Pairs) -> Tensor:
        """Return the (B,) mean hinge of the pairs where it is smallest, and 0 of the others."""
        costs = self.costs(network)
        return costs * _smallest(costs.detach(), network, max(1, int(self.warmup_share * len(costs))))

    def posterior(self, costs: Tensor) -> Tensor:
        """Return the posterior of the lower of two beta distributions."""
        return low_beta_posterior(costs)

    def labels(self, networks: tuple[Pairs, Pairs], probability: Tensor) -> Tensor:
        """Return the labels of step 4, see :meth:`CoTeaching.labels`."""
        is_clean = probability > self.threshold
        return torch.stack([self._labels_by(networks[1 - k], is_clean[k]) for k in range(2)])

    def _labels_by(self, network: Pairs, is_clean: Tensor) -> Tensor:
        """(B,) labels that a network gives to the pairs of the other."""
        costs = self.costs(network).masked_fill(~is_clean, float("inf"))
        is_anchor = _smallest(costs, network, is_clean.sum() // 10 + 1) & is_clean
        consistency = bidirectional_consistency(network.image, network.text, is_anchor)
        labels = torch.where(is_clean, (1 + consistency) / 2, consistency).clamp(0, 1)
        return torch.where(labels > self.least_label, labels, 0).masked_fill(is_anchor, 1)


@torch.no_grad()
def _smallest(costs: Tensor, network: Pairs, count: Tensor | int) -> Tensor:
    """(B,) bool, whether a cost is among the smallest; of equal costs, which are often 0, those of pairs with greater cosines."""
    by_cosine = (network.image * network.text).sum(dim=1).argsort(descending=True)
    order = by_cosine[costs[by_cosine].argsort(stable=True)]
    return order.argsort() < count
