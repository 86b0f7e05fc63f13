"""The contract of a training method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Literal

import torch
from torch import Tensor, nn

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.types import Pairs, TrainingPairs

Need = Literal["image_teacher", "text_teacher", "fusion", "matching"]
PerPair = Callable[[Pairs], Tensor]
Measure = Callable[[PerPair], Tensor]

_HARD_NEGATIVE_TEMPERATURE = 0.07


class Method(nn.Module, ABC):
    """A training method: named loss terms, their weights, and what happens between steps and epochs.

    :class:`~sdr_lightning.training.RetrievalModule` owns the encoder, the gathering over processes, the optimiser, evaluation
    and checkpoints; a method owns the loss. Only :meth:`terms` has to be implemented. State of a method belongs in
    parameters and buffers (:meth:`setup` may register buffers of one value per training pair): checkpoints hold them, so that
    an interrupted training continues exactly.

    Attributes:
        weights: weight of each term in the loss. A term without a weight counts once.
        needs: what the pairs must hold besides embeddings. ``image_teacher`` and ``text_teacher``: features of the unimodal
            teachers. ``fusion``: outputs of the fusion encoder. ``matching``: logits of its matching head, on hard negatives too.
        clean_probability: (C,) estimated probability of each training pair to be clean, in [0, 1], by pair index; None by
            default. A method that estimates it registers this buffer in :meth:`setup` and updates it in place. How well it
            detects corrupted pairs is then logged after each epoch, see
            :func:`~sdr_lightning.metrics.detection.detection`, and recorded in studies.
        supports_local_loss: whether :meth:`terms` honours ``local_rows``: the means over processes of the terms of their
            own rows are the terms of all rows.

    Example:
        >>> class Hinge(Method):
        ...     def terms(self, pairs, local_rows=slice(None)):
        ...         scores = pairs.image @ pairs.text.T
        ...         return {"hinge": (0.2 + scores - scores.diag()[:, None]).clamp(min=0).mean()}
        >>> embeddings = torch.eye(3)
        >>> method = Hinge()
        >>> method.total(method(Pairs(embeddings, embeddings, torch.arange(3))))
        tensor(0.0667)
    """

    supports_local_loss = False
    clean_probability: Tensor | None

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        super().__init__()
        self.weights = dict(weights or {})
        self.register_buffer("clean_probability", None)

    @property
    def needs(self) -> frozenset[Need]:
        """See the class."""
        return frozenset()

    @property
    def ranks_by_cosine(self) -> bool:
        """Whether evaluation ranks by cosine, because :meth:`similarity` is not overridden."""
        return type(self).similarity is Method.similarity

    @abstractmethod
    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the loss terms.

        Args:
            pairs: B pairs over all processes. Embeddings are in float32 at least; autocast is off.
            local_rows: the rows of this process, if ``local_loss`` is set; all rows otherwise.

        Returns:
            Unweighted scalars by name, the same names at every step.
        """

    def forward(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Call :meth:`terms` without autocast, with embeddings in float32 at least."""
        with torch.autocast(pairs.image.device.type, enabled=False):
            pairs = pairs._replace(image=at_least_float32(pairs.image), text=at_least_float32(pairs.text))
            return self.terms(pairs, local_rows)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms, a scalar."""
        return torch.stack([self.weights.get(name, 1.0) * value for name, value in terms.items()]).sum()

    def setup(self, training: TrainingPairs) -> None:
        """Prepare for training; called in every process, before a checkpoint is loaded.

        Args:
            training: the training pairs, on the CPU, with the features of the teachers that the method needs.
        """

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """Update the state of the method before an epoch.

        Training that continues within an epoch does not call this again: keep the results in buffers.

        Args:
            epoch: from 0.
            measure: ``measure(per_pair)`` encodes all training pairs in order, in evaluation mode, without augmentation and
                gradient, and calls ``per_pair`` with each batch. ``per_pair`` returns one value per pair, (B,), or m, (B, m).
                ``measure`` returns the values of all pairs by pair index, (num_pairs,) or (num_pairs, m) float32 on the CPU,
                the same in all processes and for any number of them. Each call is a pass over the training split.
        """

    def epoch_order(self, epoch: int, permutation: Tensor, batch_size: int) -> Tensor:
        """Choose the order of the training pairs.

        Args:
            epoch: from 0.
            permutation: (num_pairs,) int64, the random order of this epoch.
            batch_size: pairs of a global batch.

        Returns:
            (n,) int64 pair indices, n at least ``num_pairs // batch_size * batch_size``; pairs may repeat. The number of
            steps of an epoch stays the same, so n beyond that is left out. Must be the same in all processes.
        """
        return permutation

    def modify_gradients(self, encoder: DualEncoder) -> None:
        """Change the gradients of the encoder before an optimiser step.

        They are those of the whole step: accumulated, averaged over processes and unscaled, but not clipped.
        """

    def after_step(self) -> None:
        """Update the state of the method after an optimiser step, for example clamp parameters."""

    def scalars(self) -> dict[str, Tensor]:
        """Return detached scalars to log after each epoch, by name."""
        return {}

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor | None:
        """Score images against texts in evaluation.

        Args:
            images: (q, d) image embeddings, float32.
            texts: (g, d) text embeddings, float32.

        Returns:
            (q, g) scores, greater is better; None to rank by cosine.
        """
        return None

    def clean_probability_of(self, pairs: Pairs) -> Tensor:
        """Return (B,) ``clean_probability`` of some pairs.

        Raises:
            ValueError: pairs without their index, or a method that was not set up.
        """
        if pairs.pair_index is None:
            raise ValueError(
                f"{type(self).__name__} keeps a probability of each training pair: the batch must hold pair_index"
            )
        if self.clean_probability is None:
            raise ValueError(
                f"{type(self).__name__} estimates a probability of each pair: call setup with the training pairs first"
            )
        return self.clean_probability[pairs.pair_index]

    def hard_negative_temperature(self) -> Tensor | float:
        """Return the temperature that hard negatives for the matching head are drawn with."""
        return _HARD_NEGATIVE_TEMPERATURE


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64."""
    return tensor if tensor.dtype.itemsize >= 4 else tensor.float()


def checked_weights(weights: Mapping[str, float], known: Mapping[str, str]) -> dict[str, float]:
    """Check the weights of terms.

    Args:
        weights: by term.
        known: the terms that exist, with their descriptions.

    Returns:
        The positive weights, in the order of ``known``.

    Raises:
        ValueError: an unknown term, a weight that is negative or not finite, or no positive weight.
    """
    for name, weight in weights.items():
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown term {name!r} in weights, expected some of {', '.join(known)}{hint}")
        if not 0 <= weight < float("inf"):
            raise ValueError(f"the weight of {name!r} must be finite and >= 0, got {weight}")
    positive = {name: float(weights[name]) for name in known if weights.get(name, 0) > 0}
    if not positive:
        raise ValueError(f"no term has a positive weight: give at least one of {', '.join(known)}")
    return positive
