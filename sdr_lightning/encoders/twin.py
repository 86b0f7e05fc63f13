"""Two dual encoders side by side, for methods in which two networks teach each other."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.projection import Projection
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import Encoded, ImageInputs, TextInputs

_TOLERANCE = 0.02


class TwinEncoder(DualEncoder):
    """Two dual encoders a and b with the same inputs, whose cosine is the mean of both cosines.

    An embedding is ``cat(a, b) / sqrt(2)``, where a and b are the L2-normalised embeddings of the two networks, so it has norm
    1, and the cosine of two such embeddings is the mean of the cosines of both networks: the ensemble that NCR evaluates ([0]).
    Nothing else needs to know of the second network. :func:`split_embedding` returns a and b.

    The projections of both networks start from different random weights. A frozen tower is shared: it encodes once. A trained
    tower is copied, so both copies start from the same weights. The outputs hold no tokens.

    Arguments are those of :class:`~sdr_lightning.encoders.DualEncoder`, each for both networks.

    Args:
        image_tower: encodes images.
        text_tower: encodes captions.
        embedding_width: d of each network; embeddings are 2 d wide.
        hidden_width: width of the hidden layer of the projections; None for linear projections.
        dropout: dropout of the projections' inputs and hidden units, in [0, 1).
        normalise_features: apply a LayerNorm before each projection.
        fusion: must be None.
        compile: compile the towers with ``torch.compile``.
        activation_checkpointing: recompute the activations within each layer of the towers in the backward pass.

    Raises:
        ValueError: a fusion encoder, no projections, or a tower without activation checkpointing.

    References:
        [0] Huang et al., "Learning with Noisy Correspondence for Cross-modal Matching", NeurIPS 2021;
            XLearning-SCU/2021-NeurIPS-NCR: NCR/co_train.py, ``validate``.
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
        if fusion is not None:
            raise ValueError(
                "TwinEncoder has two sets of tokens and a fusion encoder reads one: set encoder.fusion to null"
            )
        if embedding_width is None:
            raise ValueError("the networks of TwinEncoder start apart by their projections: set embedding_width")
        # Copies come first: a compiled tower would be copied with a reference to the weights of the original.
        copies = [None if tower.frozen else deepcopy(tower) for tower in (image_tower, text_tower)]
        how = (embedding_width, hidden_width, dropout, normalise_features)
        super().__init__(
            image_tower, text_tower, *how, compile=compile, activation_checkpointing=activation_checkpointing
        )
        self.second_image_tower, self.second_text_tower = copies
        self.second_image_projection = Projection(image_tower.width, *how)
        self.second_text_projection = Projection(text_tower.width, *how)
        for tower in copies:
            if tower is not None and activation_checkpointing:
                tower.checkpoint_activations()
            if tower is not None and compile:
                tower.compile()

    def image(self, images: ImageInputs) -> Encoded:
        """Embed images.

        Args:
            images: see :meth:`DualEncoder.image`; cached features are those of a frozen, and so shared, image tower.

        Returns:
            (B, 2 d) L2-normalised embeddings; no tokens.
        """
        first = self.image_tower(images)
        second = first if self.second_image_tower is None else self.second_image_tower(images)
        return _joined(self.image_projection(first), self.second_image_projection(second))

    def text(self, texts: TextInputs) -> Encoded:
        """Embed captions.

        Args:
            texts: see :meth:`DualEncoder.text`; cached features are those of a frozen, and so shared, text tower.

        Returns:
            (B, 2 d) L2-normalised embeddings; no tokens.
        """
        first = self.text_tower(texts)
        second = first if self.second_text_tower is None else self.second_text_tower(texts)
        return _joined(self.text_projection(first), self.second_text_projection(second))

    def newly_initialized_parameters(self) -> list[str]:
        """Return the names of parameters without pretrained weights, of both networks."""
        towers = {"second_image_tower.": self.image_tower, "second_text_tower.": self.text_tower}
        pretrained = tuple(prefix for prefix, tower in towers.items() if tower.pretrained)
        return [name for name in super().newly_initialized_parameters() if not name.startswith(pretrained)]


def _joined(first: Tensor, second: Tensor) -> Encoded:
    return Encoded(torch.cat([F.normalize(first, dim=1), F.normalize(second, dim=1)], dim=1) / math.sqrt(2))


def split_embedding(embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Split the embeddings of a :class:`TwinEncoder` into those of its two networks.

    Args:
        embedding: (B, 2 d).

    Returns:
        (B, d) and (B, d), both L2-normalised; gradient flows to the embeddings.

    Raises:
        ValueError: the halves do not have the same norm, so these are the embeddings of one network.

    Example:
        >>> first, second = split_embedding(torch.tensor([[0.6, 0.8, 0.0, 1.0]]) / 2**0.5)
        >>> first, second
        (tensor([[0.6000, 0.8000]]), tensor([[0., 1.]]))
    """
    halves = embedding.chunk(2, dim=1)
    norms = torch.stack([half.detach().norm(dim=1) for half in halves])  # (2, B)
    if embedding.shape[1] % 2 or bool(((norms - math.sqrt(0.5)).abs() > _TOLERANCE).any()):  # not a number passes on
        raise ValueError(
            f"the embeddings, {tuple(embedding.shape)}, are not those of two networks: set model.init_args.encoder.class_path "
            "to sdr_lightning.encoders.TwinEncoder"
        )
    first, second = (F.normalize(half, dim=1) for half in halves)
    return first, second
