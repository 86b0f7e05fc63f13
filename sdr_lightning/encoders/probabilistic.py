"""A dual encoder of Gaussians: a mean and a log-variance for each image and caption."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded, ImageInputs, TextInputs

# A power of two, so scaling rounds nothing. Its square times |log variance|^2 is below float32's rounding of 1.
_UNIT = 2.0**-24
_INITIAL_VARIANCE = 0.1  # sum over the dimensions
_NORM_TOLERANCE = 0.05  # half precision


class Gaussians(NamedTuple):
    """Diagonal Gaussians in the common space.

    Attributes:
        mean: (B, d), L2-normalised.
        log_variance: (B, d), the logarithm of the variance of each dimension.
    """

    mean: Tensor
    log_variance: Tensor


class ProbabilisticEncoder(DualEncoder):
    """A dual encoder whose embeddings hold Gaussians, for PCME++ ([0]).

    Beside each projection, a second one of the same shape maps the tower's pooled features to the log-variance. An
    embedding is (B, 2d): the L2-normalised mean, then the log-variance times 2^-24, see :func:`join_gaussians`. The factor
    makes it a unit vector, whose cosines with others are those of the means to the precision of float32. Whatever compares
    embeddings by cosine (preserved structure, retrieved examples, evaluation under a method that ranks by cosine) thus compares
    the means.

    The variances of an item sum to about 0.1 at the start, which compares with a squared distance of means of about 2. In the
    public code log-variances start around 0, a sum of d per item: all pairs then count as unmatched with certainty, and the
    first steps only shrink the variances.

    Further differences from the public code: there, the log-variance has its own last transformer layer and its own pooling;
    here both projections read the same pooled features.

    Args:
        image_tower: encodes images.
        text_tower: encodes captions.
        embedding_width: d; None for no projection of the mean, if the towers share a space already.
        hidden_width: width of the hidden layer of the projections; None for linear projections.
        dropout: dropout of the projections' inputs and hidden units, in [0, 1).
        normalise_features: apply a LayerNorm before each projection.
        fusion: see :class:`~sdr_lightning.encoders.DualEncoder`.
        compile: see :class:`~sdr_lightning.encoders.DualEncoder`.
        activation_checkpointing: see :class:`~sdr_lightning.encoders.DualEncoder`.

    Raises:
        ValueError: as :class:`~sdr_lightning.encoders.DualEncoder`.

    References:
        [0] Chun, "Improved Probabilistic Image-Text Representations" (PCME++), ICLR 2024; naver-ai/pcmepp:
            pcmepp/models/img_encoder.py, pcmepp/models/txt_encoder.py.
    """

    def __init__(
        self,
        image_tower: Tower,
        text_tower: Tower,
        embedding_width: int | None = 256,
        hidden_width: int | None = None,
        dropout: float = 0.0,
        normalise_features: bool = False,
        fusion: FusionEncoder | None = None,
        compile: bool = False,
        activation_checkpointing: bool = False,
    ) -> None:
        how = hidden_width, dropout, normalise_features
        super().__init__(image_tower, text_tower, embedding_width, *how, fusion, compile, activation_checkpointing)
        width = image_tower.width if embedding_width is None else embedding_width
        self.image_log_variance, self.text_log_variance = (
            _log_variance_head(tower.width, width, *how) for tower in (image_tower, text_tower)
        )

    def image(self, images: ImageInputs) -> Encoded:
        """Embed images.

        Args:
            images: see :meth:`DualEncoder.image`.

        Returns:
            (B, 2d) embeddings, see the class, and the tokens of the image tower.
        """
        encoded = self.image_tower.encode(images)
        return _with_gaussians(encoded, self.image_projection, self.image_log_variance)

    def text(self, texts: TextInputs) -> Encoded:
        """Embed captions.

        Args:
            texts: see :meth:`DualEncoder.text`.

        Returns:
            (B, 2d) embeddings, see the class, and the tokens of the text tower with their mask.
        """
        encoded = self.text_tower.encode(texts)
        return _with_gaussians(encoded, self.text_projection, self.text_log_variance)


def join_gaussians(gaussians: Gaussians) -> Tensor:
    """Concatenate the mean and the log-variance times 2^-24.

    Returns:
        (B, 2d), float32 at least; gradient flows to both.

    >>> join_gaussians(Gaussians(torch.tensor([[0.6, 0.8]]), torch.tensor([[-4.0, -8.0]]))).norm()
    tensor(1.)
    """
    mean, log_variance = (part if part.dtype.itemsize >= 4 else part.float() for part in gaussians)
    return torch.cat([mean, log_variance * _UNIT], dim=1)


def split_gaussians(embeddings: Tensor) -> Gaussians:
    """Invert :func:`join_gaussians`, without rounding.

    Args:
        embeddings: (B, 2d) of a :class:`ProbabilisticEncoder`.

    Returns:
        (B, d) means and (B, d) log-variances; gradient flows to the embeddings.

    Raises:
        ValueError: the width is odd, or the first halves are no unit vectors, as in embeddings of another encoder.

    >>> split_gaussians(join_gaussians(Gaussians(torch.tensor([[0.6, 0.8]]), torch.tensor([[-4.0, -8.0]])))).log_variance
    tensor([[-4., -8.]])
    """
    width = embeddings.shape[1]
    mean, log_variance = embeddings[:, : width // 2], embeddings[:, width // 2 :] / _UNIT
    furthest = (mean.detach().norm(dim=1) - 1).abs().max() if len(mean) else torch.zeros(())
    if width % 2 or not bool(furthest < _NORM_TOLERANCE):
        raise ValueError(
            f"embeddings of width {width} hold no Gaussians (a unit mean, then a log-variance): set the encoder's class_path to "
            "sdr_lightning.encoders.ProbabilisticEncoder"
        )
    return Gaussians(mean, log_variance)


def _log_variance_head(
    input_width: int, width: int, hidden_width: int | None, dropout: float, normalise_input: bool
) -> Projection:
    head = Projection(input_width, width, hidden_width, dropout, normalise_input)
    last = head[-1]
    assert isinstance(last, nn.Linear)
    nn.init.constant_(last.bias, math.log(_INITIAL_VARIANCE / width))
    return head


def _with_gaussians(encoded: Encoded, projection: nn.Module, log_variance_head: nn.Module) -> Encoded:
    mean = F.normalize(projection(encoded.embedding), dim=1)
    return encoded._replace(embedding=join_gaussians(Gaussians(mean, log_variance_head(encoded.embedding))))
