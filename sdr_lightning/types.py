"""The values that travel between the parts: batches, encoder outputs and pairs.

They are NamedTuples because Lightning moves those between devices as they are.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Modality = Literal["image", "text"]


class Tokens(NamedTuple):
    """Tokenised captions.

    Attributes:
        input_ids: (B, L) int64 vocabulary indices, padded on the right.
        attention_mask: (B, L) int64, 1 on tokens and 0 on padding.
    """

    input_ids: Tensor
    attention_mask: Tensor


class CachedFeatures(NamedTuple):
    """Features of a frozen tower, computed before training. They replace its inputs.

    Attributes:
        values: (B, D) float32.
    """

    values: Tensor


ImageInputs = Tensor | CachedFeatures
"""(B, 3, H, W) uint8 pixels or (B, R, D) float32 region features; or cached features."""
TextInputs = Tokens | CachedFeatures
"""Tokens; or cached features."""


class RetrievalBatch(NamedTuple):
    """Image-caption pairs under the configured imbalance.

    Attributes:
        images: B images, see :data:`ImageInputs`.
        texts: B captions, see :data:`TextInputs`.
        image_index: (B,) int64, row of the image in its split.
        pair_index: (B,) int64, row of the caption in its split. It identifies the pair.
        image_teacher: (B, D_I) features of the image teacher, or None without one.
        text_teacher: (B, D_T) features of the text teacher, or None without one.
    """

    images: ImageInputs
    texts: TextInputs
    image_index: Tensor
    pair_index: Tensor
    image_teacher: Tensor | None = None
    text_teacher: Tensor | None = None


class UnimodalBatch(NamedTuple):
    """Items of one modality, for evaluation, feature extraction and the training of teachers.

    Attributes:
        inputs: B images or captions, see :data:`ImageInputs` and :data:`TextInputs`.
        rows: (B,) int64, row of the item in its split (rows of images, or rows of captions).
        group: (B,) int64, row of the image that the item shows or describes; equal groups are positives.
    """

    inputs: ImageInputs | TextInputs
    rows: Tensor
    group: Tensor


class Encoded(NamedTuple):
    """Encoder outputs for one modality.

    Attributes:
        embedding: (B, D) pooled features of a tower, or (B, d) L2-normalised embeddings of a dual encoder.
        tokens: (B, L, W) features of the tower's tokens: words, patches, regions; None where features were cached.
        mask: (B, L) int64, 1 on tokens and 0 on padding; None where every token counts.
    """

    embedding: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class Pairs(NamedTuple):
    """Encoded pairs over all processes, the input of a training method.

    Attributes:
        image: (B, d) L2-normalised image embeddings.
        text: (B, d) L2-normalised text embeddings.
        image_index: (B,) int64; pairs with equal values are positives of one another, by default those of the same image. Or
            (B, K) for K ways to be a positive: pairs with an equal value in any column.
        pair_index: (B,) int64, the pair's row in the training split; None outside training.
        image_teacher: (B, D_I) image-teacher features or None; constants without gradient.
        text_teacher: (B, D_T) text-teacher features or None; constants without gradient.
        fused: (B, W) fused tokens of the matched pairs, or None without a fusion encoder.
        match_logits: (P, 2) logits of the matching head on matched and unmatched pairs, or None.
        match_labels: (P,) int64: 1 matched, 0 unmatched, -100 ignored.
    """

    image: Tensor
    text: Tensor
    image_index: Tensor
    pair_index: Tensor | None = None
    image_teacher: Tensor | None = None
    text_teacher: Tensor | None = None
    fused: Tensor | None = None
    match_logits: Tensor | None = None
    match_labels: Tensor | None = None


class TrainingPairs(NamedTuple):
    """The training data as a method sees it before training, see :meth:`sdr_lightning.methods.Method.setup`.

    Attributes:
        image_index: (C,) int64, row of the image of each pair, by pair index.
        is_original: (C,) bool, whether the corruptions left image, caption and pairing of a pair as they were. This is the truth
            that training is not given: for oracles and for measuring detection.
        image_teacher: (N, D_I) features of the image teacher by image row, or None without one; constants.
        text_teacher: (C, D_T) features of the text teacher by pair index, or None without one; constants.
    """

    image_index: Tensor
    is_original: Tensor
    image_teacher: Tensor | None = None
    text_teacher: Tensor | None = None

    @property
    def num_pairs(self) -> int:
        """C, the number of pairs."""
        return len(self.image_index)
