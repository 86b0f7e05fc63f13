"""OSA: one-step mitigation of mismatched pairs by a frozen estimator."""

from __future__ import annotations

import torch
from torch import Tensor

from sdr_lightning.functional.agreement import predicted_text_features
from sdr_lightning.functional.search import paired_similarity
from sdr_lightning.methods.base import Need
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.methods.weighted import WeightedInfoNCE
from sdr_lightning.types import Pairs, TrainingPairs


class OSA(WeightedInfoNCE):
    """Weight each pair by its similarity in a frozen joint space, compared with that of unrelated inputs ([0]).

    Before training, ``s_i`` is the cosine of pair i in the frozen space and the *shift* b the mean cosine of images and captions
    that do not belong together, which is 0 only if the space is centred. Of each batch:

    ``x_i = [s_i - b]_+ / max_k [s_k - b]_+``, ``w_i = x_i^2 (1 - x_i^2)``, ``info_nce = sum_i w_i l_i / sum_i w_i``

    in both directions, where ``l_i`` is the loss of the query i of :class:`~sdr_lightning.methods.InfoNCE`, whose targets are its
    positives in proportion to their weights. Pairs below the shift have no weight; the weight is greatest, 1/4, at ``x = 0.71``,
    and 0 for the most similar pair of the batch. A pair without weight remains a negative.

    The estimator is not that of the public code. [0] takes the joint space of a pretrained CLIP. Here, it is the space of the
    text teacher's features, into which held-out ridge regressions map the features of the image teacher, see
    :func:`~sdr_lightning.functional.agreement.predicted_text_features`. The regressions are fitted to the noisy training pairs;
    the one that judges a pair was not fitted to its image. The shift is the mean cosine of all images with all captions, where
    the public code embeds random pixels and random words. Further differences: losses are divided by the sum of the weights
    instead of the size of the batch, and captions of the same image are positives.

    ``clean_probability`` is ``[s_i - b]_+`` over its maximum of the training pairs. It ranks pairs and is no calibrated
    probability.

    Args:
        temperature: tau; learned from 0.07 by default.
        folds: folds of the cross-fitting.

    Raises:
        ValueError: from :meth:`setup`, features of a teacher are absent, fewer images than the folds need, or no pair is more
            similar than unrelated ones.

    References:
        [0] Li et al., "One-step Noisy Label Mitigation", 2024; leolee99/OSA: main_clip.py.
    """

    shift: Tensor

    def __init__(self, temperature: Temperature | None = None, folds: int = 5) -> None:
        super().__init__(temperature)
        self.folds = folds
        self.register_buffer("shift", torch.tensor(0.0))

    @property
    def needs(self) -> frozenset[Need]:
        """Both teachers."""
        return frozenset({"image_teacher", "text_teacher"})

    def setup(self, training: TrainingPairs) -> None:
        """Measure the similarity of each pair in the space of the text teacher, and the shift.

        Raises:
            ValueError: see the class.
        """
        if training.image_teacher is None or training.text_teacher is None:
            raise ValueError(
                "OSA estimates pairs from the features of an image and a text teacher, and one of them is absent"
            )
        index, everyone = training.image_index, torch.arange(training.num_pairs)
        image, text = predicted_text_features(training.image_teacher, training.text_teacher, index, folds=self.folds)
        shift = image[torch.unique(index)].mean(dim=0) @ text.mean(dim=0)
        above = (paired_similarity(image, text, index, everyone) - shift).clamp(min=0)
        if not bool(above.any()):
            raise ValueError(
                "no training pair is more similar than unrelated ones: give OSA teachers whose features agree"
            )
        self.shift.copy_(shift)
        self.register_probability(above / above.max())

    def pair_weights(self, pairs: Pairs) -> Tensor:
        """Return (B,) weights of some pairs, in [0, 1/4]."""
        above = self.clean_probability_of(pairs)
        squared = (above / above.max().clamp(min=torch.finfo(above.dtype).tiny)) ** 2
        return squared * (1 - squared)

    def scalars(self) -> dict[str, Tensor]:
        """Return tau, the shift, and the share of pairs above it."""
        found = super().scalars() | {"shift": self.shift}
        return (
            found
            if self.clean_probability is None
            else found | {"above_shift": (self.clean_probability > 0).float().mean()}
        )
