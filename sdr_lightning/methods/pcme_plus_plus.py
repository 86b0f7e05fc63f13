"""PCME++: probabilistic embeddings with a closed-form distance."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.encoders.probabilistic import split_gaussians
from sdr_lightning.functional.contrastive import positives
from sdr_lightning.functional.gaussian import sampled_distance, standard_normal_divergence, with_pseudo_positives
from sdr_lightning.methods.base import Method
from sdr_lightning.types import Pairs


class PCMEPlusPlus(Method):
    """Embed images and captions as Gaussians, and classify every image-caption pair as matched or unmatched ([0]).

    It needs a :class:`~sdr_lightning.encoders.ProbabilisticEncoder`. With means mu and log-variances of images and captions,
    ``d_ij = |mu_i - mu'_j|^2 + sum_k (sigma_ik^2 + sigma'_jk^2)``, the expected squared distance of their samples, and
    ``z_ij = -a d_ij + b``:

    - ``match``: the binary cross-entropy of ``sigmoid(z_ij)`` with ``y_ij`` (1 for positives), averaged over all i and j, summed
      over both directions.
    - ``pseudo_match``: the same where also every j with ``z_ij >= z_ii`` is a positive of the query i: items that fit at least as
      well as its own pair are taken for missing annotations.
    - ``vib``: the KL divergence from a standard normal, averaged over items and dimensions, of the images plus that of the
      captions. It keeps variances from vanishing.

    The loss is ``match + 0.1 pseudo_match + 0.0001 vib`` by default. Evaluation ranks by ``-d_ij``, as the public code does, so
    there are no single-modal and mixed tasks, no re-ranking and no paper protocol. To have them for the means alone, test the
    checkpoint under a method that ranks by cosine.

    Differences from the public code: images are not mixed (mixup, CutMix) and labels are not smoothed, which is
    augmentation of inputs; z of the query's own pair is the reference of pseudo-positives, where the public code takes the
    first positive; a divergence above 10,000 is not ignored; there is no average of weights (SWA). Differences of the encoder
    are described there.

    Args:
        scale: a at the start; learned, as it is.
        shift: b at the start; learned.
        pseudo_weight: weight of ``pseudo_match``; 0 leaves it out.
        vib_weight: weight of ``vib``; 0 leaves it out.

    Attributes:
        image_variance: total variance ``sum_k sigma_ik^2`` of an image, averaged over the last batch.
        text_variance: the same of a caption.
        pseudo_positives: pseudo-positives per query, averaged over the last batch and both directions.

    Raises:
        ValueError: a scale that is not positive, a negative weight; or, in :meth:`terms` and :meth:`similarity`, embeddings of
            another encoder.

    References:
        [0] Chun, "Improved Probabilistic Image-Text Representations" (PCME++), ICLR 2024; naver-ai/pcmepp:
            pcmepp/criterions/pcmepp.py, pcmepp/evaluation.py (compute_csd_sims), configs/pcmepp.yaml.
    """

    supports_local_loss = True
    image_variance: Tensor
    text_variance: Tensor
    pseudo_positives: Tensor

    def __init__(
        self, scale: float = 5.0, shift: float = 5.0, pseudo_weight: float = 0.1, vib_weight: float = 1e-4
    ) -> None:
        if not scale > 0:
            raise ValueError(f"PCME++'s scale must be positive, got {scale}")
        if min(pseudo_weight, vib_weight) < 0:
            raise ValueError(f"PCME++'s weights must be at least 0, got {pseudo_weight} and {vib_weight}")
        optional = {"pseudo_match": pseudo_weight, "vib": vib_weight}
        super().__init__({"match": 1.0} | {name: weight for name, weight in optional.items() if weight > 0})
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.shift = nn.Parameter(torch.tensor(float(shift)))
        for name in ("image_variance", "text_variance", "pseudo_positives"):
            self.register_buffer(name, torch.tensor(0.0))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute the terms; gradient flows to both embeddings, a and b, not to the choice of pseudo-positives.

        Raises:
            ValueError: embeddings of another encoder.
        """
        image, text = split_gaussians(pairs.image), split_gaussians(pairs.text)
        matched = positives(pairs.image_index[local_rows], pairs.image_index)  # (Q, B)
        own = torch.arange(len(pairs.image), device=pairs.image.device)[local_rows]
        directions = []
        for queries, gallery in ((image, text), (text, image)):
            distance = sampled_distance(queries.mean[local_rows], queries.log_variance[local_rows], *gallery)
            directions.append(self.shift - self.scale * distance)
        terms = {"match": _both(directions, matched, matched)}
        if "pseudo_match" in self.weights:
            labels = [with_pseudo_positives(logits.detach(), matched, own) for logits in directions]
            terms["pseudo_match"] = _both(directions, *labels)
            added = torch.stack([each & ~matched for each in labels])  # (2, Q, B)
            self.pseudo_positives.copy_(added.sum(dim=2).double().mean())
        if "vib" in self.weights:
            terms["vib"] = sum(
                (
                    standard_normal_divergence(each.mean[local_rows], each.log_variance[local_rows])
                    for each in (image, text)
                ),
                start=terms["match"].new_zeros(()),
            )
        for variance, each in ((self.image_variance, image), (self.text_variance, text)):
            variance.copy_(each.log_variance.detach().exp().sum(dim=1).mean())
        return terms

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Return (q, g) ``-d_ij`` of (q, 2d) images and (g, 2d) captions."""
        return -sampled_distance(*split_gaussians(images), *split_gaussians(texts))

    def scalars(self) -> dict[str, Tensor]:
        """Return a and b, and the total variances and pseudo-positives of the last batch."""
        names = ("scale", "shift", "image_variance", "text_variance")
        optional = ("pseudo_positives",) if "pseudo_match" in self.weights else ()
        return {name: getattr(self, name).detach() for name in (*names, *optional)}


def _both(directions: list[Tensor], to_text: Tensor, to_image: Tensor) -> Tensor:
    """Binary cross-entropy of (Q, B) logits of both directions with their (Q, B) labels, summed over the directions."""
    losses = [
        F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        for logits, labels in zip(directions, (to_text, to_image), strict=True)
    ]
    return losses[0] + losses[1]
