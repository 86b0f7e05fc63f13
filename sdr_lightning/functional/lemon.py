"""LEMoN: how far a pair is from its neighbours in a joint space, to compare other detectors of wrong pairs with.

References:
    [0] Zhang et al., "LEMoN: Label Error Detection using Multimodal Neighbors", ICML 2025; MLforHealth/LEMoN: run_lemon.py,
        lib/metrics/utils.py, and notebooks/hparam_drop.ipynb for the fixed values of the defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdr_lightning.functional.search import chunks, paired_similarity, top_k

_CHUNK = 1024


@torch.no_grad()
def lemon_distance(
    image: Tensor,
    text: Tensor,
    image_index: Tensor,
    neighbours: int = 30,
    beta: float = 5.0,
    gamma: float = 5.0,
    tau1: float = 0.1,
    tau2: float = 5.0,
    reference: int = 50_000,
    seed: int = 0,
) -> Tensor:
    """Compute LEMoN's distance of each pair, ``d(x_i, t_i) + beta s_n + gamma s_m`` ([0]).

    With d the cosine distance and N_i the k reference pairs whose images are nearest to x_i,
    ``s_n = sum_{j in N_i} d(t_i, t_j) exp(-tau1 d(x_i, x_j)) exp(-tau2 d(x_j, t_j)) / k``. ``s_m`` is the same with images and
    captions exchanged. Pairs of the same image are no neighbours of each other, because a mismatch can move all captions of an
    image together; the public code leaves out the pair itself only. Its cosine weight ``exp(tau1 cosine)`` differs by a factor.

    Args:
        image: (N, d) embeddings of the images in a space that they share with the captions.
        text: (C, d) embeddings of the captions.
        image_index: (C,) int64, row of the image of each pair.
        neighbours: k.
        beta: weight of s_n.
        gamma: weight of s_m.
        tau1: discount of a neighbour by its distance.
        tau2: discount of a neighbour by the distance between its own image and caption.
        reference: maximum number of pairs among which neighbours are sought, chosen at random.
        seed: random seed of this choice.

    Returns:
        (C,) float32, greater for pairs that are more likely wrong. No gradient.

    Raises:
        ValueError: fewer than two images have pairs, or k is below 1.
    """
    if neighbours < 1:
        raise ValueError(f"LEMoN needs at least 1 neighbour, got {neighbours}")
    if len(torch.unique(image_index)) < 2:
        raise ValueError("LEMoN compares pairs of different images, and all pairs are of one image")
    image, text = normalize(image.float(), dim=1), normalize(text.float(), dim=1)
    pairs = torch.arange(len(image_index))
    own = 1 - paired_similarity(image, text, image_index, pairs)  # (C,)
    chosen = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))[:reference].sort().values
    per_image = int(torch.bincount(image_index[chosen]).max())
    of_images = top_k(image, image[image_index[chosen]], neighbours + per_image)
    distance = torch.empty_like(own)
    for rows in chunks(len(pairs), _CHUNK):
        here = pairs[rows]
        of_texts = top_k(text[rows], text[chosen], neighbours + per_image)
        total = own[rows]
        for weight, found, items, other, other_row in (
            (beta, (of_images.scores[image_index[rows]], of_images.items[image_index[rows]]), text, text[rows], pairs),
            (gamma, (of_texts.scores, of_texts.items), image, image[image_index[rows]], image_index),
        ):
            near, pair = found[0], chosen[found[1]]  # (b, k + per_image), nearest first
            is_other = image_index[pair] != image_index[here][:, None]
            kept = is_other & (is_other.cumsum(dim=1) <= neighbours)
            across = 1 - torch.einsum("bd,bkd->bk", other, items[other_row[pair]])
            discounted = across * torch.exp(-tau1 * (1 - near) - tau2 * own[pair])
            total = total + weight * (discounted * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        distance[rows] = total
    return distance
