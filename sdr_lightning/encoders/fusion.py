"""The fusion encoder: caption tokens that look at image tokens, and the head that tells whether the two belong together.

References:
    [0] Yang et al., "Rebalanced Vision-Language Retrieval Considering Structure-Aware Distillation", TIP 2024, and its
        public code; after X-VLM (Zeng et al., ICML 2022) and ALBEF (Li et al., NeurIPS 2021): layers 6-11 of BERT with
        cross-attention, bidirectional.
    [1] Devlin et al., "BERT", NAACL 2019: the layer, normalised after each residual sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from sdr_lightning.encoders.transformer import model_config, pretrained_model
from sdr_lightning.paths import PathOrName
from sdr_lightning.types import Encoded

# A layer's own names, and BERT's, which the public code's checkpoints share.
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
    """What one layer's cross-attention reads of N images.

    Attributes:
        keys: (N, heads, T, width / heads).
        values: (N, heads, T, width / heads).
    """

    keys: Tensor
    values: Tensor


class FusionEncoder(nn.Module):
    """Transformer layers over a caption's tokens with cross-attention to an image's tokens, and a matching head ([0]).

    The layers are those of a BERT from ``first_layer`` on, with its weights where it has them; cross-attention, which BERT
    lacks, starts from random weights, and so does the head. The fused token is the first one. Keys and values of an image
    are computed once, however many captions look at it.

    Args:
        image_width: W, the width of the image tower's tokens.
        weights: BERT's: a folder, a hub name, or ``package:NAME/FOLDER``; None for random weights. ``$NAME`` and
            ``${NAME:-default}`` are filled in from the environment.
        config: with random weights, the arguments of BERT's configuration (and ``model_type: bert``).
        first_layer: the first of BERT's layers that fuses; 6 in the paper.

    Attributes:
        width: of the caption's tokens, and of the fused token.
        image_width: of the image's tokens.
        pretrained: whether the layers start from BERT's weights.

    Raises:
        ValueError: neither weights nor config, a model that is not a BERT, no layer left, or weights that cannot be had.
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
            raise ValueError(f"the fusion encoder is made of a BERT's layers, got a {settings.model_type}")
        if not 0 <= first_layer < settings.num_hidden_layers:
            raise ValueError(f"first_layer must be from 0 to {settings.num_hidden_layers - 1}, got {first_layer}")
        self.width, self.image_width = int(settings.hidden_size), image_width
        self.pretrained = reference is not None
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
        self.head = nn.Sequential(  # of the public code, as it initialises it
            nn.Linear(self.width, 2 * self.width), nn.LayerNorm(2 * self.width), nn.GELU(), nn.Linear(2 * self.width, 2)
        )

    def newly_initialized_parameters(self) -> list[str]:
        """Names of the parameters that no pretrained weights were loaded into."""
        names = [name for name, _ in self.named_parameters()]
        return [n for n in names if not self.pretrained or "cross_" in n or n.startswith("head.")]

    def contexts(self, image_tokens: Tensor) -> list[Context]:
        """Keys and values of images, for each layer.

        Args:
            image_tokens: (N, T, W).

        Returns:
            One context a layer; gradient flows to the tokens.
        """
        return [layer.cross_attention.context(image_tokens) for layer in self._stack()]

    def forward(self, text: Encoded, contexts: Sequence[Context], rows: Tensor | None = None) -> Tensor:
        """Fuse captions with images.

        Args:
            text: tokens (P, L, width) and mask of P captions.
            contexts: of N images.
            rows: (P,) int64, which of the N images each caption looks at; None where all look at the only one.

        Returns:
            (P, width), the fused tokens. Gradient flows to both sides.

        Raises:
            ValueError: captions without tokens, or tokens of another width.
        """
        hidden = text.tokens
        if hidden is None or hidden.shape[2] != self.width:
            found = "none" if hidden is None else f"a width of {hidden.shape[2]}"
            raise ValueError(f"the fusion encoder reads caption tokens of width {self.width}, found {found}")
        mask = None if text.mask is None else text.mask.bool()[:, None, None, :]  # (P, 1, 1, L)
        for number, (layer, context) in enumerate(zip(self._stack(), contexts, strict=True)):
            chosen = Context(
                *(side.expand(len(hidden), -1, -1, -1) if rows is None else side[rows] for side in context)
            )
            hidden = layer(hidden, mask, chosen, first_alone=number == len(self.layers) - 1)
        return hidden[:, 0]

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


class FusionLayer(nn.Module):
    """Self-attention, cross-attention and two linear maps, each followed by a residual sum and a LayerNorm ([1]).

    Args:
        width: of the caption's tokens.
        image_width: of the image's tokens.
        heads: of both attentions.
        hidden_width: between the two linear maps.
        dropout: of what is added to the residual.
        attention_dropout: of attention weights.
        epsilon: of the LayerNorms.
        activation: between the two linear maps, by transformers' name for it.
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
    """Scaled dot-product attention with several heads.

    Args:
        width: of the queries and of the result.
        context_width: of what is attended to.
        heads: number of heads, which divides the width.
        dropout: of attention weights.
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
        """Keys and values of (N, T, context_width) tokens."""
        return Context(self._split(self.key(tokens)), self._split(self.value(tokens)))

    def forward(self, hidden: Tensor, context: Context, mask: Tensor | None) -> Tensor:
        """Attend from (P, L, width) to P contexts, where the mask is True."""
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
        """(N, T, width) to (N, heads, T, width / heads)."""
        return projected.view(*projected.shape[:2], self.heads, -1).transpose(1, 2)


def bert_name(name: str) -> str:
    """The name that BERT, and the public code, give to a layer's parameter.

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
