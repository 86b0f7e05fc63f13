"""The fusion encoder: cross-attention from caption tokens to image tokens, and the matching head.

References:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024, and its
        public code; after X-VLM (Zeng et al., ICML 2022) and ALBEF (Li et al., NeurIPS 2021): bidirectional layers 6-11 of
        BERT with cross-attention.
    [1] Devlin et al., "BERT", NAACL 2019: post-norm Transformer layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdr_lightning.encoders.transformer import model_config, pretrained_model
from sdr_lightning.paths import PathOrName
from sdr_lightning.types import Encoded

# Parameter names of FusionLayer, and those of BERT and the public code.
_BERT_NAMES = {
    "self_attention.query": "attention.self.query",
    "self_attention.key": "attention.self.key",
    "self_attention.value": "attention.self.value",
    "self_attention.output": "attention.output.dense",
    "self_norm": "attention.output.LayerNorm",
    "cross_attention.query": "crossattention.self.query",
    "cross_attention.key": "crossattention.self.key",
    "cross_attention.value": "crossattention.self.value",
    "cross_attention.output": "crossattention.output.dense",
    "cross_norm": "crossattention.output.LayerNorm",
    "widen": "intermediate.dense",
    "narrow": "output.dense",
    "norm": "output.LayerNorm",
}


class Context(NamedTuple):
    """Keys and values of N images for the cross-attention of one layer.

    Attributes:
        keys: (N, heads, T, width / heads).
        values: (N, heads, T, width / heads).
    """

    keys: Tensor
    values: Tensor


class FusionEncoder(nn.Module):
    """Transformer layers over caption tokens with cross-attention to image tokens, and a matching head ([0]).

    The layers are those of BERT from ``first_layer`` on, with its pretrained weights. Cross-attention and head, which BERT does
    not have, start from random weights. The fused token is the first one. Keys and values of an image are computed once for
    all its captions.

    Args:
        image_width: W, the width of the image tower's tokens.
        weights: BERT weights: a folder, a hub name, or ``package:NAME/FOLDER``; None for random weights. ``$NAME`` and
            ``${NAME:-default}`` are expanded from the environment.
        config: with random weights, the arguments of BERT's configuration and ``model_type: bert``.
        first_layer: first BERT layer of the fusion encoder; 6 in the paper.

    Attributes:
        width: width of the caption tokens and of the fused token.
        image_width: width of the image tokens.
        pretrained: whether the layers start from BERT weights.
        recompute: whether activations are recomputed, see :meth:`checkpoint_activations`.

    Raises:
        ValueError: neither weights nor config, a model other than BERT, a first layer out of range, or unavailable weights.
    """

    def __init__(
        self,
        image_width: int,
        weights: PathOrName | None = None,
        config: dict[str, Any] | None = None,
        first_layer: int = 6,
    ) -> None:
        super().__init__()
        reference, settings = model_config("fusion encoder", weights, config)
        if settings.model_type != "bert":
            raise ValueError(f"the fusion encoder is made of BERT layers, got model_type {settings.model_type}")
        if not 0 <= first_layer < settings.num_hidden_layers:
            raise ValueError(f"first_layer must be from 0 to {settings.num_hidden_layers - 1}, got {first_layer}")
        self.width, self.image_width = int(settings.hidden_size), image_width
        self.pretrained = reference is not None
        self.recompute = False
        self.layers = nn.ModuleList(
            FusionLayer(
                self.width,
                image_width,
                settings.num_attention_heads,
                settings.intermediate_size,
                settings.hidden_dropout_prob,
                settings.attention_probs_dropout_prob,
                settings.layer_norm_eps,
                settings.hidden_act,
            )
            for _ in range(first_layer, settings.num_hidden_layers)
        )
        self.apply(_bert_initialisation(settings.initializer_range))
        if reference is not None:
            self._load_bert(reference, settings, first_layer)
        self.head = nn.Sequential(  # architecture and initialisation of the public code
            nn.Linear(self.width, 2 * self.width), nn.LayerNorm(2 * self.width), nn.GELU(), nn.Linear(2 * self.width, 2)
        )

    def newly_initialized_parameters(self) -> list[str]:
        """Return the names of parameters without pretrained weights."""
        names = [name for name, _ in self.named_parameters()]
        return [n for n in names if not self.pretrained or "cross_" in n or n.startswith("head.")]

    def contexts(self, image_tokens: Tensor) -> list[Context]:
        """Compute the keys and values of images for each layer.

        Args:
            image_tokens: (N, T, W).

        Returns:
            One context per layer. Gradient flows to the tokens.
        """
        return [layer.cross_attention.context(image_tokens) for layer in self._stack()]

    def forward(self, text: Encoded, contexts: Sequence[Context], rows: Tensor | None = None) -> Tensor:
        """Fuse captions with images.

        Args:
            text: tokens (P, L, width) and mask of P captions.
            contexts: outputs of :meth:`contexts` for N images.
            rows: (P,) int64, image of each caption among the N; None if N is 1.

        Returns:
            (P, width) fused tokens. Gradient flows to captions and images.

        Raises:
            ValueError: the captions have no tokens, or tokens of another width.
        """
        hidden = text.tokens
        if hidden is None or hidden.shape[2] != self.width:
            found = "none" if hidden is None else f"a width of {hidden.shape[2]}"
            raise ValueError(f"the fusion encoder reads caption tokens of width {self.width}, found {found}")
        mask = None if text.mask is None else text.mask.bool()[:, None, None, :]  # (P, 1, 1, L)
        for number, (layer, context) in enumerate(zip(self._stack(), contexts, strict=True)):
            inputs = layer, hidden, mask, context, rows, number == len(self.layers) - 1
            if self.recompute and torch.is_grad_enabled():
                hidden = checkpoint(_fused, *inputs, use_reentrant=False)
            else:
                hidden = _fused(*inputs)
        return hidden[:, 0]

    def checkpoint_activations(self) -> None:
        """Recompute the activations within each layer in the backward pass; keys and values of images are kept."""
        self.recompute = True

    def _stack(self) -> Iterator[FusionLayer]:
        for layer in self.layers:
            assert isinstance(layer, FusionLayer)
            yield layer

    def _load_bert(self, reference: str, settings: Any, first_layer: int) -> None:
        found = pretrained_model("fusion encoder", reference, settings)
        bert = found.network.state_dict()
        for number, layer in enumerate(self._stack()):
            prefix = f"encoder.layer.{first_layer + number}."
            missing = [name for name in found.missing if prefix in name]
            if missing:
                raise ValueError(f"{reference} lacks {len(missing)} weights of the fusion encoder, first {missing[0]}")
            theirs = {name: bert[prefix + bert_name(name)] for name in layer.state_dict() if "cross_" not in name}
            layer.load_state_dict(theirs, strict=False)


def _fused(
    layer: FusionLayer, hidden: Tensor, mask: Tensor | None, context: Context, rows: Tensor | None, first_alone: bool
) -> Tensor:
    """Apply a layer to P captions, each with the context of its image."""
    chosen = Context(*(side.expand(len(hidden), -1, -1, -1) if rows is None else side[rows] for side in context))
    fused: Tensor = layer(hidden, mask, chosen, first_alone=first_alone)
    return fused


class FusionLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward network, each with residual connection and LayerNorm ([1]).

    Args:
        width: width of the caption tokens.
        image_width: width of the image tokens.
        heads: number of heads of both attentions.
        hidden_width: hidden width of the feed-forward network.
        dropout: dropout before each residual connection.
        attention_dropout: dropout of attention weights.
        epsilon: epsilon of the LayerNorms.
        activation: activation of the feed-forward network, by its name in transformers.
    """

    def __init__(
        self,
        width: int,
        image_width: int,
        heads: int,
        hidden_width: int,
        dropout: float,
        attention_dropout: float,
        epsilon: float,
        activation: str,
    ) -> None:
        from transformers.activations import ACT2FN

        super().__init__()
        self.self_attention = Attention(width, width, heads, attention_dropout)
        self.self_norm = nn.LayerNorm(width, epsilon)
        self.cross_attention = Attention(width, image_width, heads, attention_dropout)
        self.cross_norm = nn.LayerNorm(width, epsilon)
        self.widen, self.narrow = nn.Linear(width, hidden_width), nn.Linear(hidden_width, width)
        self.norm = nn.LayerNorm(width, epsilon)
        self.activation: nn.Module = ACT2FN[activation]
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, mask: Tensor | None, context: Context, first_alone: bool) -> Tensor:
        """One layer.

        Args:
            hidden: (P, L, width).
            mask: (P, 1, 1, L) bool, True on tokens; None where every token counts.
            context: keys and values of the image of each of the P captions.
            first_alone: what becomes of the first token is all that is wanted.

        Returns:
            (P, L, width), or (P, 1, width).
        """
        own = self.self_attention.context(hidden)
        hidden = hidden[:, :1] if first_alone else hidden
        hidden = self.self_norm(hidden + self.dropout(self.self_attention(hidden, own, mask)))
        hidden = self.cross_norm(hidden + self.dropout(self.cross_attention(hidden, context, None)))
        wide = self.activation(self.widen(hidden))
        result: Tensor = self.norm(hidden + self.dropout(self.narrow(wide)))
        return result


class Attention(nn.Module):
    """Multi-head scaled dot-product attention.

    Args:
        width: width of queries and outputs; a multiple of ``heads``.
        context_width: width of the tokens attended to.
        heads: number of heads.
        dropout: dropout of attention weights.

    Raises:
        ValueError: the width is not a multiple of the number of heads.
    """

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"a width of {width} cannot be divided over {heads} heads")
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key, self.value = nn.Linear(context_width, width), nn.Linear(context_width, width)
        self.output = nn.Linear(width, width)

    def context(self, tokens: Tensor) -> Context:
        """Compute keys and values of (N, T, context_width) tokens."""
        return Context(self._split(self.key(tokens)), self._split(self.value(tokens)))

    def forward(self, hidden: Tensor, context: Context, mask: Tensor | None) -> Tensor:
        """Attend from (P, L, width) to P contexts, at positions where the mask is True."""
        attended = F.scaled_dot_product_attention(
            self._split(self.query(hidden)),
            context.keys,
            context.values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (P, heads, L, width / heads)
        result: Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return result

    def _split(self, projected: Tensor) -> Tensor:
        """Reshape (N, T, width) to (N, heads, T, width / heads)."""
        return projected.view(*projected.shape[:2], self.heads, -1).transpose(1, 2)


def bert_name(name: str) -> str:
    """Return the name of a parameter of :class:`FusionLayer` in BERT and in the public code.

    >>> bert_name("cross_attention.key.weight")
    'crossattention.self.key.weight'
    """
    module, _, kind = name.rpartition(".")
    return f"{_BERT_NAMES[module]}.{kind}"


def _bert_initialisation(deviation: float) -> Callable[[nn.Module], None]:
    def initialise(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=deviation)
            nn.init.zeros_(module.bias)

    return initialise
