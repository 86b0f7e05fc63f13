"""Which image-text pairs are right, judged by the agreement of unimodal features.

A cross-fitted regression between the modalities scores each pair on data that it was not fitted to. The scores of wrong pairs
are measured on shuffled pairs, so that a score becomes a probability without labels.

References:
    [0] Efron et al., "Empirical Bayes Analysis of a Microarray Experiment", JASA 96(456), 2001: the local false discovery rate.
    [1] Storey, "A direct approach to false discovery rates", JRSS B 64(3), 2002: the share of nulls from a tail of the scores.
    [2] Auckenthaler, Carey and Lloyd-Thomas, "Score Normalization for Text-Independent Speaker Verification Systems", Digital
        Signal Processing 10, 2000: standardisation of a score by those of both of its sides with others (S-norm).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.bootstrap import bootstrap_mean, interval
from sdr_lightning.functional.search import chunks

Level = Literal["caption", "image"]

SHUFFLES = 5
"""Shuffled pairs of each caption."""
NULL_TAILS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Candidates for the share of the lowest shuffled scores, among which wrong pairs are counted."""
_TILE = 4096
_ROUNDING = 2.0**16  # of scores, so that the order of summation does not change a bit of the results
_REPLICATES = 200
_STANDARD_ERRORS = 3.0  # of the upper bound of a share

Floats = NDArray[np.float64]


class PairAgreement(NamedTuple):
    """The result of :func:`pair_agreement`; all constants.

    Attributes:
        probability: (C,) float32 in [0, 1], the probability of each pair to be right; all 0 where the teachers do not agree.
        share: the estimated share of wrong pairs, in [0, 1]; 1 where the teachers do not agree.
        interval: the 95 % bootstrap interval of the share, over images. It covers sampling, not the bias of the estimate: the
            share is too high by that of the right pairs whose scores are like the lowest of shuffled pairs.
        score: (C,) float32, greater for pairs that agree more; shuffled pairs have mean 0.
    """

    probability: Tensor
    share: float
    interval: tuple[float, float]
    score: Tensor


@torch.no_grad()
def pair_agreement(
    image_features: Tensor,
    text_features: Tensor,
    image_index: Tensor | None = None,
    level: Level = "caption",
    folds: int = 5,
    rounds: int = 2,
    ridge: float = 1.0,
    seed: int = 0,
) -> PairAgreement:
    """Estimate the probability of each pair to be right from unimodal features of its image and its caption.

    1. Images are divided into folds, with all their captions. On the other folds, ridge regressions predict normalised text
       features from normalised image features, and the reverse.
    2. Two cosines score an image with a caption of the held-out fold: the predicted with the given text feature, and the
       predicted with the given image feature. Each is standardised by mean and deviation of the caption with all images of the
       fold, and of the image with all captions of the fold; the score is the sum ([2]).
    3. The scores f0 of wrong pairs are measured: each caption with the next images of its fold in a random order.
    4. The share w of wrong pairs is the number of pairs in a lower tail of f0, over the number that is expected if all
       are wrong ([1]). The tail is the widest whose w is within the upper bound, w plus three standard errors, of every other
       one: wide tails vary less, and hold more right pairs. If this bound is 1 or more for the lower half of f0, no pair is
       distinguished from shuffled ones: the teachers do not agree.
    5. ``P(right | score) = 1 - w f0(score) / f(score)`` with f the scores of the given pairs ([0]); isotonic regression
       estimates the ratio of the densities, which makes P monotone in the score.
    6. In further rounds, the regressions weight each pair by its P, and steps 2, 3 and 5 are repeated. The share remains that of
       the first round: weights depend on all pairs, so later scores are not strictly held out, and their share is too low.

    Everything is summed in float64, by tiles. The order of the pairs and the number of threads do not change the result. Two
    rounds over 150,000 pairs of 30,000 images (widths 1,280 and 384) took 50 s of one core and 0.45 GiB besides the features.

    Args:
        image_features: (N, D_I), a row of each image; or (C, D_I), a row of each pair, if ``image_index`` is None.
        text_features: (C, D_T), a row of each caption.
        image_index: (C,) int64, row of the image of each pair; images without pairs are ignored. None: pairs with equal rows of
            ``image_features`` are of the same image.
        level: what is right or wrong: each pair on its own (``caption``), or an image with all its captions (``image``), whose
            scores are then averaged.
        folds: number of folds, at least 2.
        rounds: number of fits, at least 1.
        ridge: penalty in multiples of the mean variance of the regressors' columns, positive.
        seed: random seed of the folds and of the shuffling.

    Returns:
        Probabilities, the share of wrong pairs with its interval, and the scores, on the CPU. No gradient.

    Raises:
        ValueError: an option out of range, different numbers of pairs, features that are not finite, or fewer than two images a
            fold.

    Example:
        >>> image = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
        >>> found = pair_agreement(image, torch.cat([image[:1000], image[1000:].roll(1, 0)]))  # the second half is wrong
        >>> bool(found.probability[:1000].mean() > 0.9), bool(found.probability[1000:].mean() < 0.1)
        (True, True)
    """
    if image_index is None:
        _check(image_features, text_features, torch.arange(len(image_features)), level, folds, rounds, ridge)
        image_features, image_index = torch.unique(image_features.cpu(), dim=0, return_inverse=True)
    image_features, text_features, image_index = (
        tensor.detach().cpu() for tensor in (image_features, text_features, image_index)
    )
    _check(image_features, text_features, image_index, level, folds, rounds, ridge)
    parts = _folds(image_index, folds, seed)
    weights = torch.ones(len(image_index), dtype=torch.float64)
    share, bounds = 1.0, (1.0, 1.0)
    for done in range(rounds):
        given, shuffled = _scores(image_features, text_features, parts, weights, ridge)
        if level == "image":
            given, shuffled = (_mean_by_image(scores, image_index) for scores in (given, shuffled))
        given, shuffled = (torch.round(scores * _ROUNDING) / _ROUNDING for scores in (given, shuffled))
        if done == 0:
            share, bounds = _share(given.numpy(), shuffled.numpy(), image_index.numpy())
        if share == 1:
            return PairAgreement(torch.zeros(len(given)), share, bounds, given.float())
        weights = torch.from_numpy(_probability(given.numpy(), shuffled.numpy(), share))
    return PairAgreement(weights.float(), share, bounds, given.float())


@torch.no_grad()
def predicted_text_features(
    image_features: Tensor,
    text_features: Tensor,
    image_index: Tensor,
    folds: int = 5,
    ridge: float = 1.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Map images into the text space by the regressions of :func:`pair_agreement`, each image by one that was not fitted to it.

    Args:
        image_features: (N, D_I), a row of each image.
        text_features: (C, D_T), a row of each caption.
        image_index: (C,) int64, row of the image of each pair.
        folds: see :func:`pair_agreement`.
        ridge: likewise.
        seed: likewise.

    Returns:
        (N, D_T) and (C, D_T) float32, L2-normalised: the joint space for detectors that need one. Images without pairs are 0.

    Raises:
        ValueError: as :func:`pair_agreement`.
    """
    _check(image_features, text_features, image_index, "caption", folds, 1, ridge)
    parts, weights = _folds(image_index, folds, seed), torch.ones(len(image_index), dtype=torch.float64)
    images, texts = torch.zeros(len(image_features), text_features.shape[1]), torch.empty(text_features.shape)
    for fold, fitted in zip(
        parts, _fitted_on_others(image_features, text_features, parts, weights, ridge), strict=True
    ):
        image, text = next(_directions(image_features, text_features, fold, fitted))
        images[fold.images], texts[fold.pairs] = image.float(), text.float()
    return images, texts


class _Fold(NamedTuple):
    """The images and pairs of a fold.

    Attributes:
        images: (n,) int64 rows of the images, in random order.
        pairs: (c,) int64 rows of their pairs.
        place: (c,) int64, place of the image of each pair in ``images``.
    """

    images: Tensor
    pairs: Tensor
    place: Tensor


def _folds(image_index: Tensor, folds: int, seed: int) -> list[_Fold]:
    images = torch.unique(image_index)
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]
    place = torch.empty(int(images.max()) + 1, dtype=torch.int64)
    place[images] = torch.arange(len(images))
    of_pair = place[image_index]
    found = []
    for fold in range(folds):
        pairs = torch.nonzero(of_pair % folds == fold)[:, 0]
        found.append(_Fold(images[fold::folds], pairs, of_pair[pairs] // folds))
    return found


class _Moments(NamedTuple):
    """Weighted sums over pairs: of features, of their outer products, and of the weights."""

    images: Tensor
    texts: Tensor
    image_image: Tensor
    text_text: Tensor
    image_text: Tensor
    weight: Tensor


def _rows(features: Tensor, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield normalised features in float64 by tiles."""
    for tile in chunks(len(rows), _TILE):
        yield tile, normalize(features[rows[tile]].double(), dim=1)


def _moments(image: Tensor, text: Tensor, fold: _Fold, weights: Tensor) -> _Moments:
    weight = weights[fold.pairs]
    of_image = torch.zeros(len(fold.images), dtype=torch.float64).index_add(0, fold.place, weight)
    texts_of_image = torch.zeros(len(fold.images), text.shape[1], dtype=torch.float64)
    text_text = torch.zeros(text.shape[1], text.shape[1], dtype=torch.float64)
    for tile, rows in _rows(text, fold.pairs):
        weighted = rows * weight[tile, None]
        text_text += rows.T @ weighted
        texts_of_image.index_add_(0, fold.place[tile], weighted)
    image_image = torch.zeros(image.shape[1], image.shape[1], dtype=torch.float64)
    image_text = torch.zeros(image.shape[1], text.shape[1], dtype=torch.float64)
    images = torch.zeros(image.shape[1], dtype=torch.float64)
    for tile, rows in _rows(image, fold.images):
        weighted = rows * of_image[tile, None]
        images += weighted.sum(dim=0)
        image_image += rows.T @ weighted
        image_text += rows.T @ texts_of_image[tile]
    return _Moments(images, texts_of_image.sum(dim=0), image_image, text_text, image_text, weight.sum())


class _Regressions(NamedTuple):
    """Means, and coefficients of centred features: text = image @ to_text, image = text @ to_image."""

    image_mean: Tensor
    text_mean: Tensor
    to_text: Tensor
    to_image: Tensor


def _fit(moments: _Moments, ridge: float) -> _Regressions:
    image, text = moments.images / moments.weight, moments.texts / moments.weight
    covariance = moments.image_text / moments.weight - torch.outer(image, text)
    of_images = _penalised(moments.image_image / moments.weight - torch.outer(image, image), ridge)
    of_texts = _penalised(moments.text_text / moments.weight - torch.outer(text, text), ridge)
    return _Regressions(
        image, text, torch.linalg.solve(of_images, covariance), torch.linalg.solve(of_texts, covariance.T)
    )


def _penalised(covariance: Tensor, ridge: float) -> Tensor:
    """Add the penalty to the diagonal."""
    penalty = ridge * covariance.diagonal().mean().clamp(min=1e-12)
    return covariance + penalty * torch.eye(len(covariance), dtype=covariance.dtype)


def _fitted_on_others(
    image: Tensor, text: Tensor, folds: list[_Fold], weights: Tensor, ridge: float
) -> Iterator[_Regressions]:
    """Yield the regressions for each fold, which are fitted on the others."""
    moments = [_moments(image, text, fold, weights) for fold in folds]
    total = _Moments(*(torch.stack(parts).sum(dim=0) for parts in zip(*moments, strict=True)))
    for own in moments:
        yield _fit(_Moments(*(all_folds - part for all_folds, part in zip(total, own, strict=True))), ridge)


def _scores(image: Tensor, text: Tensor, folds: list[_Fold], weights: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(C,) held-out scores of the given pairs, and (SHUFFLES, C) of each caption with the image of another."""
    given = torch.zeros(len(weights), dtype=torch.float64)
    shuffled = torch.zeros(SHUFFLES, len(weights), dtype=torch.float64)
    for fold, fitted in zip(folds, _fitted_on_others(image, text, folds, weights, ridge), strict=True):
        for images, texts in _directions(image, text, fold, fitted):
            cosines = _StandardisedCosines(images, texts)
            given[fold.pairs] += cosines(fold.place)
            for shuffle in range(SHUFFLES):
                shuffled[shuffle, fold.pairs] += cosines((fold.place + shuffle + 1) % len(fold.images))
    return given, shuffled


def _directions(image: Tensor, text: Tensor, fold: _Fold, fitted: _Regressions) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (n, D_T) of the images and (c, D_T) of the captions of a fold, whose inner products are the cosines.

    First those of the predicted with the given text features. Then those of the predicted with the given image features:
    ``x . (t B) = (x B^T) . t``, so that both are computed in the text space.
    """
    images = torch.cat([rows for _, rows in _rows(image, fold.images)]) - fitted.image_mean
    texts = torch.cat([rows for _, rows in _rows(text, fold.pairs)]) - fitted.text_mean
    yield normalize(images @ fitted.to_text, dim=1), normalize(texts, dim=1)
    lengths = torch.linalg.vecdot(texts @ (fitted.to_image @ fitted.to_image.T), texts).clamp(min=0).sqrt()
    yield normalize(images, dim=1) @ fitted.to_image.T, texts / lengths.clamp(min=1e-12)[:, None]


class _StandardisedCosines:
    """Inner products of images and captions, standardised by those of both with all others of the fold."""

    def __init__(self, images: Tensor, texts: Tensor) -> None:
        self.images, self.texts = images, texts
        self.of_images, self.of_texts = _mean_and_deviation(images, texts), _mean_and_deviation(texts, images)

    def __call__(self, place: Tensor) -> Tensor:
        """Score each caption with the image at a place: (c,) int64 -> (c,)."""
        cosines = torch.cat(
            [torch.linalg.vecdot(self.images[place[tile]], self.texts[tile]) for tile in chunks(len(place), _TILE)]
        )
        image_mean, image_deviation = (values[place] for values in self.of_images)
        text_mean, text_deviation = self.of_texts
        return (cosines - image_mean) / image_deviation + (cosines - text_mean) / text_deviation


def _mean_and_deviation(items: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """(n,) mean and standard deviation of the inner products of each item with all others, without computing them."""
    mean = others.mean(dim=0)
    centred = others - mean
    covariance = centred.T @ centred / len(others)
    deviation = torch.linalg.vecdot(items @ covariance, items).clamp(min=1e-24).sqrt()
    return items @ mean, deviation


def _mean_by_image(scores: Tensor, image_index: Tensor) -> Tensor:
    """(..., C) mean over the captions of each image."""
    images = int(image_index.max()) + 1
    count = torch.bincount(image_index, minlength=images).double()
    sums = scores.new_zeros(*scores.shape[:-1], images).index_add(-1, image_index, scores)
    return (sums / count.clamp(min=1))[..., image_index]


def _share(given: Floats, shuffled: Floats, image: NDArray[np.int64]) -> tuple[float, tuple[float, float]]:
    """Estimate the share of wrong pairs and its interval, see step 4 of :func:`pair_agreement`."""
    images = int(image.max()) + 1
    limits = np.quantile(shuffled, NULL_TAILS)

    def below(scores: Floats) -> Floats:
        """(N, tails) number of the scores of each image that are in a tail."""
        return np.stack([np.bincount(image, scores <= limit, minlength=images) for limit in limits], axis=1)

    found = below(given)
    expected = np.mean([below(scores) for scores in shuffled], axis=0)
    replicates = bootstrap_mean(found[None], expected[None], replicates=_REPLICATES)
    shares = found.sum(axis=0) / expected.sum(axis=0)
    bounds = shares + _STANDARD_ERRORS * np.nanstd(replicates, axis=0)
    best = int(np.flatnonzero(shares <= bounds.min())[-1])
    low, high = (min(1.0, float(end[0])) for end in interval(replicates[:, [best]]))
    return (float(shares[best]), (low, high)) if bounds[-1] < 1 else (1.0, (low, 1.0))


def _probability(given: Floats, shuffled: Floats, share: float) -> Floats:
    """(C,) probability of each pair to be right, see step 5 of :func:`pair_agreement`."""
    scores = np.concatenate([given, shuffled.ravel()])
    is_given = np.concatenate([np.ones(len(given)), np.zeros(shuffled.size)])
    weight = np.where(is_given, len(shuffled), 1)
    # The share of given pairs at a score is f / (f + f0).
    from sklearn.isotonic import IsotonicRegression  # slow to import

    among_all = IsotonicRegression(out_of_bounds="clip").fit(scores, is_given, sample_weight=weight).predict(given)
    ratio = np.divide(1 - among_all, among_all, out=np.full_like(among_all, np.inf), where=among_all > 0)
    probability: Floats = np.clip(1 - share * ratio, 0, 1) if share > 0 else np.ones(len(given))
    return probability


def _check(image: Tensor, text: Tensor, image_index: Tensor, level: str, folds: int, rounds: int, ridge: float) -> None:
    if level not in ("caption", "image"):
        raise ValueError(f"the level of agreement is caption or image, got {level!r}")
    if folds < 2 or rounds < 1 or not 0 < ridge < float("inf"):
        raise ValueError(
            f"agreement needs at least 2 folds, at least 1 round and a positive ridge, got {folds}, {rounds} and {ridge}"
        )
    if len(text) != len(image_index):
        raise ValueError(f"every pair needs an image and text features, got {len(image_index)} and {len(text)}")
    images = len(torch.unique(image_index))
    if images < folds * (SHUFFLES + 1):
        raise ValueError(
            f"agreement needs at least {SHUFFLES + 1} images in each of {folds} folds, {folds * (SHUFFLES + 1)} in all; got "
            f"{images}: take fewer folds or more data"
        )
    for name, features in (("image", image), ("text", text)):
        if not bool(torch.isfinite(features).all()):
            raise ValueError(f"the {name} features hold NaN or infinity")
