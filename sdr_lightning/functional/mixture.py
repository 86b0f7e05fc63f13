"""Which of two groups a value belongs to: mixtures over per-pair losses."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def low_component_posterior(values: Tensor) -> Tensor:
    """Compute the probability that each value belongs to the lower of two Gaussians.

    Values are scaled to [0, 1]; the mixture is fitted by scikit-learn with the settings of NCR's public code (at most 10
    iterations, tolerance 0.01, 0.0005 added to variances; XLearning-SCU/2021-NeurIPS-NCR: NCR/co_train.py).

    Args:
        values: (n,) finite, for example the loss of each pair.

    Returns:
        (n,) float32 on the CPU, in [0, 1]; all 1 if the values are equal.

    Raises:
        ValueError: fewer than two values, or values that are not finite.

    Example:
        >>> low_component_posterior(torch.tensor([0.0, 0.1, 0.05, 5.0, 5.1])).round()
        tensor([1., 1., 1., 0., 0.])
    """
    found = values.detach().cpu().double().numpy()
    if len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(
            f"a mixture needs at least two finite values, got {len(found)} of which {np.isfinite(found).sum()} are"
        )
    low, high = found.min(), found.max()
    if low == high:
        return torch.ones(len(found))
    scaled = ((found - low) / (high - low))[:, None]
    from sklearn.mixture import GaussianMixture  # slow to import

    mixture = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(scaled)
    return torch.from_numpy(mixture.predict_proba(scaled)[:, mixture.means_.argmin()]).float()
