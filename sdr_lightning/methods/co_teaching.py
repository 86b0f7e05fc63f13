"""Co-teaching: two networks that tell each other which pairs are mismatched; NCR in full."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sdr_lightning.encoders.twin import split_embedding
from sdr_lightning.functional.mixture import low_component_posterior
from sdr_lightning.functional.soft_margin import mean_costs, predicted_labels, soft_margin_costs
from sdr_lightning.methods.base import Measure, Method
from sdr_lightning.types import Pairs, TrainingPairs


class CoTeaching(Method):
    """Base of methods that train the two networks of a :class:`~sdr_lightning.encoders.TwinEncoder`, each by the other.

    Before each epoch after the warm-up, the mean hinge of every pair is measured with each network, and a mixture of two
    distributions gives the probability that the pair is clean. Each network is trained with the probabilities of the *other*, so
    that it does not confirm its own mistakes. Subclasses implement the mixture, :meth:`posterior`, and the soft labels,
    :meth:`labels`; the loss is the hinge on the hardest negative with a soft margin. It is the mean over both networks, which
    share no trained parameter.

    Args:
        margin: m.
        warmup_epochs: epochs before pairs are separated.
        threshold: probability above which a pair counts as clean.
        noisy_from: epoch from which pairs that count as noisy contribute.

    Raises:
        ValueError: a margin that is not positive, fewer than one warm-up epoch, or a threshold outside [0, 1).
    """

    supports_local_loss = True
    warming_up: Tensor
    with_noisy: Tensor
    network_probability: Tensor

    def __init__(
        self, margin: float = 0.2, warmup_epochs: int = 1, threshold: float = 0.5, noisy_from: int = 1
    ) -> None:
        super().__init__({"triplet": 1.0})
        name = type(self).__name__
        if not margin > 0:
            raise ValueError(f"{name}'s margin must be positive, got {margin}")
        if warmup_epochs < 1:
            raise ValueError(f"{name} needs at least 1 warm-up epoch to tell pairs apart, got {warmup_epochs}")
        if not 0 <= threshold < 1:
            raise ValueError(f"{name}'s threshold must be in [0, 1), got {threshold}")
        self.margin, self.warmup_epochs = margin, warmup_epochs
        self.threshold, self.noisy_from = threshold, noisy_from
        self.register_buffer("warming_up", torch.tensor(True))
        self.register_buffer("with_noisy", torch.tensor(False))

    def setup(self, training: TrainingPairs) -> None:
        """Register the probabilities of each pair to be clean, 1 at the start: (2, C) by network, and (C,) their mean."""
        ones = torch.ones(2, training.num_pairs, device=self.warming_up.device)
        self.register_buffer("network_probability", ones)
        self.register_buffer("clean_probability", ones.mean(dim=0))

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """After the warm-up, estimate with each network which pairs are clean."""
        self.warming_up.fill_(epoch < self.warmup_epochs)
        self.with_noisy.fill_(epoch >= self.noisy_from)
        if epoch >= self.warmup_epochs:
            costs = measure(self._network_costs).T.contiguous()  # (2, C)
            assert self.clean_probability is not None  # since setup
            self.network_probability.copy_(torch.stack([self.posterior(of_network) for of_network in costs]))
            self.clean_probability.copy_(self.network_probability.mean(dim=0))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the triplet loss; gradient flows to both embeddings, not to soft labels.

        Raises:
            ValueError: the encoder is no twin encoder; after the warm-up, pairs without their index, or a method that was not
                set up.
        """
        networks = networks_of(pairs)
        if self.warming_up:
            costs = [self.warmup_costs(network) for network in networks]
        else:
            labels, counts = self._soft_labels(pairs, networks)
            costs = [
                soft_margin_costs(network.image, network.text, network.image_index, self.margin, label) * count
                for network, label, count in zip(networks, labels, counts, strict=True)
            ]
        return {"triplet": torch.stack(costs).mean(dim=0)[local_rows].mean()}

    def scalars(self) -> dict[str, Tensor]:
        """Return the share of pairs that count as clean, and the share on which both networks agree whether they are."""
        if self.clean_probability is None:
            return {}
        is_clean = self.network_probability > self.threshold
        return {"clean_share": is_clean.float().mean(), "agreement": (is_clean[0] == is_clean[1]).float().mean()}

    def warmup_costs(self, network: Pairs) -> Tensor:
        """Return the (B,) costs that a network is trained with in the warm-up."""
        return self.costs(network)

    def costs(self, network: Pairs) -> Tensor:
        """Return the (B,) mean hinge of each pair over its negatives, see :func:`mean_costs`."""
        return mean_costs(network.image, network.text, network.image_index, self.margin)

    @abstractmethod
    def posterior(self, costs: Tensor) -> Tensor:
        """Return the (C,) probability of each pair to be clean, given its cost."""

    @abstractmethod
    def labels(self, networks: tuple[Pairs, Pairs], probability: Tensor) -> Tensor:
        """Compute soft labels, without gradient.

        Args:
            networks: the pairs as each network embeds them.
            probability: (2, B) probability of each pair to be clean; row k is the estimate that network k is trained with, which
                is that of the other network.

        Returns:
            (2, B) labels in [0, 1] that each network is trained with.
        """

    def _network_costs(self, pairs: Pairs) -> Tensor:
        """(B, 2) costs of each pair with each network."""
        return torch.stack([self.costs(network) for network in networks_of(pairs)], dim=1)

    @torch.no_grad()
    def _soft_labels(self, pairs: Pairs, networks: tuple[Pairs, Pairs]) -> tuple[Tensor, Tensor]:
        """(2, B) labels in [0, 1], and (2, B) whether a pair contributes to the loss of each network."""
        self.clean_probability_of(pairs)  # raises if there is none
        probability = self.network_probability.flip(0)[:, pairs.pair_index].to(pairs.image.dtype)
        counts = (probability > self.threshold) | self.with_noisy
        return self.labels(networks, probability), counts.to(pairs.image.dtype)


class CoTeachingNCR(CoTeaching):
    """NCR with two networks, as published: each divides the pairs of the other, and both label noisy pairs ([0]).

    With the embeddings of network k in {a, b}, ``s_ij`` its cosines and ``p^k_i`` its probability that pair i is clean:

    1. Warm-up: the mean hinge over all negatives, ``sum_ij [m + s_ij - s_ii]_+ / B``, in both directions, averaged over i.
    2. Before each later epoch, the warm-up loss of every pair is measured with each network, scaled to [0, 1] over the data set,
       and modelled by two Gaussians. ``p^k_i`` is the posterior of the one with the lower mean.
    3. Prediction of network k: ``y'^k_i = clamp(m - cost_i / 2, 0, m)``, divided by the mean of the greatest tenth of the batch
       and clamped to 1. Soft labels of network a, with ``p = p^b_i``: ``y_i = p + (1 - p) y'^a_i`` if p exceeds the threshold,
       else ``y_i = (y'^a_i + y'^b_i) / 2``. Those of b with a and b exchanged.
    4. Training of each network: the hinge on the hardest negative, with the margin ``m (10^y_i - 1) / 9`` of the anchor i. Pairs
       that count as noisy contribute from ``noisy_from`` on.
    5. Evaluation ranks by the mean of both cosines, which is the cosine of the :class:`~sdr_lightning.encoders.TwinEncoder`.

    :class:`~sdr_lightning.methods.NCR` is the same with one network. The first network starts as that of a dual encoder with the
    same seed.

    Differences from the public code: both networks see the same batches and are trained together, so that their predictions are
    of the same step; clean and noisy pairs share batches, so they are negatives of each other; trained towers start from the
    same weights; captions of the same image are not negatives; predictions are those of the training forward pass; no pair is
    made noisy where the mixture finds none; losses are means instead of sums, which AdamW does not see. Labels and margins are
    those of the paper, where the public code broadcasts: its label of a clean pair is the matrix ``p_i + (1 - p_i) y'_j``, and
    in the direction from captions to images it takes the margin of the negative.

    Args:
        margin: m.
        warmup_epochs: epochs of step 1.
        threshold: p above which a pair counts as clean.
        noisy_from: epoch from which pairs that count as noisy contribute; the public code takes half of all epochs.

    Raises:
        ValueError: a margin that is not positive, fewer than one warm-up epoch, or a threshold outside [0, 1).

    References:
        [0] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021;
            XLearning-SCU/2021-NeurIPS-NCR: NCR/co_train.py, NCR/model.py, NCR/run.py.
    """

    def posterior(self, costs: Tensor) -> Tensor:
        """Return the posterior of the lower of two Gaussians."""
        return low_component_posterior(costs)

    def labels(self, networks: tuple[Pairs, Pairs], probability: Tensor) -> Tensor:
        """Return the labels of step 3, see :meth:`CoTeaching.labels`."""
        predicted = torch.stack([predicted_labels(self.costs(network), self.margin) for network in networks])
        refined = probability + (1 - probability) * predicted
        return torch.where(probability > self.threshold, refined, predicted.mean(dim=0))


def networks_of(pairs: Pairs) -> tuple[Pairs, Pairs]:
    """Return pairs as each network of a twin encoder embeds them.

    Raises:
        ValueError: the embeddings are those of one network.
    """
    images, texts = split_embedding(pairs.image), split_embedding(pairs.text)
    first, second = (pairs._replace(image=image, text=text) for image, text in zip(images, texts, strict=True))
    return first, second
