"""Fusion of matched pairs and hard negatives."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.functional.matching import UNLABELLED, draw_negatives, negative_weights
from sdr_lightning.training.gradient_caching import map_in_chunks
from sdr_lightning.types import Encoded


class Pool(NamedTuple):
    """The pairs that negatives are drawn from: those of this process, or those of all processes.

    Attributes:
        image: encoder outputs of G images.
        text: encoder outputs of G captions.
        image_index: (G,) int64 image rows, or (G, K), see :func:`~sdr_lightning.functional.contrastive.positives`.
        first: row of the first pair of this process.
    """

    image: Encoded
    text: Encoded
    image_index: Tensor
    first: int = 0


class Matched(NamedTuple):
    """Outputs of the fusion encoder; None where the method does not need them.

    Attributes:
        fused: (B, W) fused tokens of the matched pairs.
        logits: (3 B, 2) matching logits of the matched pairs, of each caption with a hard-negative image, and of each image
            with a hard-negative caption.
        labels: (3 B,) int64, see :class:`~sdr_lightning.types.Pairs`.
    """

    fused: Tensor | None
    logits: Tensor | None = None
    labels: Tensor | None = None


def match(
    fusion: FusionEncoder,
    pool: Pool,
    pairs: int,
    temperature: Tensor | float,
    with_negatives: bool,
    micro_batch: int | None = None,
) -> Matched:
    """Fuse the pairs of this process and the hard negatives drawn for them.

    Args:
        fusion: the fusion encoder.
        pool: contains the pairs of this process.
        pairs: B, the number of pairs of this process.
        temperature: temperature of the draw of negatives.
        with_negatives: draw negatives and compute matching logits.
        micro_batch: pairs fused at a time, see :mod:`~sdr_lightning.training.gradient_caching`; None for all.

    Returns:
        Outputs with gradient to the tokens of the pool. A pair without any negative in the pool gets the label -100.

    Raises:
        ValueError: the batch holds cached features, which have no tokens.
    """
    image, text = pool.image, pool.text
    if image.tokens is None or text.tokens is None:
        raise ValueError("the fusion encoder reads tokens, and this batch holds cached features alone")
    own = torch.arange(pool.first, pool.first + pairs, device=pool.image_index.device)
    image_rows, text_rows, labels = own, own, torch.ones_like(own)
    if with_negatives:
        index = pool.image_index[own]
        to_image = negative_weights(text.embedding[own], image.embedding, index, pool.image_index, temperature)
        to_text = negative_weights(image.embedding[own], text.embedding, index, pool.image_index, temperature)
        images, texts = draw_negatives(to_image), draw_negatives(to_text)
        image_rows, text_rows = torch.cat([own, images.rows, own]), torch.cat([own, own, texts.rows])
        exist = torch.cat([images.exist, texts.exist])
        labels = torch.cat([labels, torch.where(exist, 0, UNLABELLED)])
    fused = map_in_chunks(partial(_fuse, fusion, image, text), image_rows, text_rows, micro_batch)
    if not with_negatives:
        return Matched(fused)
    return Matched(fused[:pairs], fusion.head(fused), labels)


def _fuse(fusion: FusionEncoder, image: Encoded, text: Encoded, image_rows: Tensor, text_rows: Tensor) -> Tensor:
    """Fuse P captions with P images to (P, W); compute the keys and values of each distinct image once."""
    assert image.tokens is not None
    assert text.tokens is not None
    needed, rows = torch.unique(image_rows, return_inverse=True)
    mask = None if text.mask is None else text.mask[text_rows]
    captions = Encoded(text.embedding[text_rows], text.tokens[text_rows], mask)
    fused: Tensor = fusion(captions, fusion.contexts(image.tokens[needed]), rows)
    return fused
