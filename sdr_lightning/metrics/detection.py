"""Detection of corrupted training pairs: how well estimated probabilities tell them from clean ones."""

from __future__ import annotations

from torch import Tensor


def detection(clean_probability: Tensor, is_original: Tensor) -> dict[str, float]:
    """Compare the estimated probability of each training pair to be clean with the truth.

    Args:
        clean_probability: (C,) floating point in [0, 1].
        is_original: (C,) bool, whether a pair is clean.

    Returns:
        In percent: ``detection_AUC``, the area under the ROC curve: the probability that a random clean pair has a greater
        estimate than a random corrupted one, where equal estimates count half; absent unless there are pairs of both kinds.
        ``detection_estimated_share``, the mean of one minus the estimate. ``detection_true_share``, the share of corrupted pairs.

    Raises:
        ValueError: other shapes, or estimates outside [0, 1].

    >>> import torch
    >>> detection(torch.tensor([0.75, 0.5, 0.5, 0.25]), torch.tensor([True, True, False, False]))
    {'detection_estimated_share': 50.0, 'detection_true_share': 50.0, 'detection_AUC': 87.5}
    """
    if clean_probability.shape != is_original.shape or is_original.ndim != 1:
        raise ValueError(
            f"clean_probability has shape {tuple(clean_probability.shape)}, expected one value for each of the "
            f"{len(is_original)} training pairs"
        )
    estimate, original = clean_probability.detach().double().cpu(), is_original.cpu()
    if not bool(((estimate >= 0) & (estimate <= 1)).all()):
        raise ValueError(
            f"clean_probability must be in [0, 1], found {estimate.min().item():.4g} to {estimate.max().item():.4g}"
        )
    found = {
        "detection_estimated_share": 100 * (1 - estimate).mean().item(),
        "detection_true_share": 100 * (~original).double().mean().item(),
    }
    if bool(original.any()) and not bool(original.all()):
        from torchmetrics.functional.classification import binary_auroc  # slow to import

        found["detection_AUC"] = 100 * binary_auroc(estimate, original.long()).item()
    return found
