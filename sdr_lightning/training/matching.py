"""Matched pairs and hard negatives through the fusion encoder."""

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
    """Where negatives are drawn from: a rank's own pairs, or those of all ranks.

    Attributes:
        image: of G images.
        text: of G captions.
        image_index: (G,) int64 image rows, or (G, K), see :func:`~sdr_lightning.functional.contrastive.positives`.
        first: the row of this rank's first pair.
    """

    image: Encoded
    text: Encoded
    image_index: Tensor
    first: int = 0


class Matched(NamedTuple):
    """What the fusion encoder says.

    Attributes:
        fused: (B, W) fused tokens of the matched pairs; None where nothing asks for them.
        logits: (3 B, 2) of the matched pairs, of each caption with a hard-negative image, and of each image with a
            hard-negative caption; None where nothing asks for them.
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
    """Fuse this rank's pairs, and the hard negatives drawn for them.

    Args:
        fusion: the fusion encoder.
        pool: holds this rank's pairs.
        pairs: B, how many are this rank's.
        temperature: tau, that negatives are drawn with.
        with_negatives: whether the matching head is asked.
        micro_batch: how many are fused at a time, see :mod:`~sdr_lightning.training.gradient_caching`; None for all.

    Returns:
        Gradient flows to the tokens of the pool. A pair that has no negative in the pool, because all of it are
        positives, is labelled as not counted.

    Raises:
        ValueError: a tower's features were cached, so that there are no tokens.
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
    """(P, W), caption by caption with the image of the same place; each image's keys and values are made once."""
    assert image.tokens is not None
    assert text.tokens is not None
    needed, rows = torch.unique(image_rows, return_inverse=True)
    mask = None if text.mask is None else text.mask[text_rows]
    captions = Encoded(text.embedding[text_rows], text.tokens[text_rows], mask)
    fused: Tensor = fusion(captions, fusion.contexts(image.tokens[needed]), rows)
    return fused
