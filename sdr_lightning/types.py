"""The values that travel between the parts: batches and embeddings.

They are NamedTuples because Lightning moves those between devices as they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Modality = Literal["image", "text"]


class Tokens(NamedTuple):
    """A batch of tokenised captions.

    Attributes:
        input_ids: (B, L) int64 vocabulary indices, padded on the right.
        attention_mask: (B, L) int64, 1 on tokens and 0 on padding.
    """

    input_ids: Tensor
    attention_mask: Tensor


class RetrievalBatch(NamedTuple):
    """Image-caption pairs as they are matched under the configured imbalance.

    Attributes:
        images: (B, 3, H, W) pixels, or (B, D) cached features of a frozen image tower.
        texts: tokens of B captions, or (B, D) cached features of a frozen text tower.
        image_index: (B,) int64, row of the image in its split.
        pair_index: (B,) int64, row of the caption in its split.
        image_teacher: (B, D_I) features of the image teacher, or None where no bank is configured.
        text_teacher: (B, D_T) features of the text teacher, or None where no bank is configured.
    """

    images: Tensor
    texts: Tokens | Tensor
    image_index: Tensor
    pair_index: Tensor
    image_teacher: Tensor | None = None
    text_teacher: Tensor | None = None


class UnimodalBatch(NamedTuple):
    """Items of one modality, for evaluation, feature extraction and the training of teachers.

    Attributes:
        inputs: (B, 3, H, W) pixels, tokens of B captions, or (B, D) cached tower features.
        rows: (B,) int64, row of the item in its split (rows of images, or rows of captions).
        group: (B,) int64, row of the image that the item shows or describes; equal groups are positives.
    """

    inputs: Tensor | Tokens
    rows: Tensor
    group: Tensor


class Encoded(NamedTuple):
    """What a tower or a dual encoder says of a batch of one modality.

    Attributes:
        embedding: (B, D) pooled features of a tower, or (B, d) L2-normalised embeddings of a dual encoder.
        tokens: (B, L, W) features of the tower's tokens: words, patches, regions; None where features were cached.
        mask: (B, L) int64, 1 on tokens and 0 on padding; None where every token counts.
    """

    embedding: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Pairs(NamedTuple):
    """What a method sees of B pairs, over all ranks.

    Attributes:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) int64; pairs with equal values are positives of one another, by default those of the same image. Or
            (B, K) for K ways to be a positive: pairs with an equal value in any column.
        image_teacher: (B, D_I) image-teacher features or None; constants, never given a gradient.
        text_teacher: (B, D_T) text-teacher features or None; constants, never given a gradient.
        fused: (B, W) tokens of the matched pairs out of the fusion encoder, or None without one.
        match_logits: (P, 2) of matched and unmatched pairs out of the matching head, or None without one.
        match_labels: (P,) int64: 1 matched, 0 unmatched, -100 not counted.
    """

    image: Tensor
    text: Tensor
    image_index: Tensor
    image_teacher: Tensor | None = None
    text_teacher: Tensor | None = None
    fused: Tensor | None = None
    match_logits: Tensor | None = None
    match_labels: Tensor | None = None
