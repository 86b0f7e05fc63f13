"""The model of the TIP 2024 paper's public code, written out from a state dict with that code's own names.

``vision_encoder`` is Microsoft's Swin, ``text_encoder`` X-VLM's BERT: layers below ``fusion_layer`` read the caption, the
others read it together with the image. Plain functions of a dict; every window and every head by itself; no dropout.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Architecture(NamedTuple):
    """Sizes; the defaults are the paper's."""

    image_size: int = 384
    patch: int = 4
    window: int = 12
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    image_heads: tuple[int, ...] = (4, 8, 16, 32)
    vocabulary: int = 30522
    positions: int = 512
    hidden: int = 768
    intermediate: int = 3072
    layers: int = 12
    fusion_layer: int = 6
    text_heads: int = 12
    embedding: int = 256
    image_teacher: int = 1024
    text_teacher: int = 768

    @property
    def image_width(self) -> int:
        return self.embed_dim * 2 ** (len(self.depths) - 1)

    def side(self, stage: int) -> int:
        """Return the number of tokens per image side in a stage."""
        return self.image_size // self.patch // 2**stage

    def windows(self, stage: int, block: int) -> tuple[int, int]:
        """Return the window side and the shift of a block."""
        side = self.side(stage)
        if side <= self.window:
            return side, 0
        return self.window, self.window // 2 if block % 2 == 1 else 0


# --- What is asked of it.


def image_tokens(state, sizes, images):
    """Return (B, 1 + N, width) tokens of uint8 images: the mean, then all tokens."""
    pixels = images.float() / 255
    pixels = torch.stack([(pixels[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    return swin(below(state, "vision_encoder"), sizes, pixels)


def image_embeddings(state, sizes, images):
    return F.normalize(linear(image_tokens(state, sizes, images)[:, 0], state, "vision_proj"), dim=-1)


def text_tokens(state, sizes, ids, mask):
    """Return (B, L, width) tokens of BERT's text mode."""
    bert = bert_of(state)
    hidden = bert["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + bert["embeddings.token_type_embeddings.weight"][0]
    hidden = hidden + bert["embeddings.position_embeddings.weight"][: ids.shape[1]]
    hidden = layer_norm(hidden, bert, "embeddings.LayerNorm", 1e-12)
    for number in range(sizes.fusion_layer):
        hidden = bert_layer(hidden, mask, None, below(bert, f"encoder.layer.{number}"), sizes.text_heads)
    return hidden


def text_embeddings(state, sizes, ids, mask):
    return F.normalize(linear(text_tokens(state, sizes, ids, mask)[:, 0], state, "text_proj"), dim=-1)


def matching_logits(state, sizes, images, ids, mask):
    """Return (B, 2) matching logits of pairs: BERT's fusion mode, and the head on its first token."""
    seen, hidden, bert = image_tokens(state, sizes, images), text_tokens(state, sizes, ids, mask), bert_of(state)
    for number in range(sizes.fusion_layer, sizes.layers):
        hidden = bert_layer(hidden, mask, seen, below(bert, f"encoder.layer.{number}"), sizes.text_heads)
    wide = gelu(layer_norm(linear(hidden[:, 0], state, "itm_head.0"), state, "itm_head.1", 1e-5))
    return linear(wide, state, "itm_head.3")


# --- Swin.


def swin(state, sizes, pixels):
    count = len(pixels)
    grid = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=sizes.patch)
    tokens = layer_norm(grid.permute(0, 2, 3, 1), state, "patch_embed.norm", 1e-5)  # (B, side, side, width)
    for stage, depth in enumerate(sizes.depths):
        for block in range(depth):
            part = below(state, f"layers.{stage}.blocks.{block}")
            tokens = swin_block(tokens, part, sizes.image_heads[stage], *sizes.windows(stage, block))
        if stage < len(sizes.depths) - 1:
            tokens = merged(tokens, below(state, f"layers.{stage}.downsample"))
    tokens = layer_norm(tokens, state, "norm", 1e-5).reshape(count, -1, sizes.image_width)
    return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


def swin_block(tokens, part, heads, window, shift):
    normal = layer_norm(tokens, part, "norm1", 1e-5)
    if shift:
        normal = torch.roll(normal, (-shift, -shift), (1, 2))
    side, seen, number = tokens.shape[1], torch.empty_like(normal), 0
    for top in range(0, side, window):
        for left in range(0, side, window):
            mask = part["attn_mask"][number] if shift else 0
            inside = normal[:, top : top + window, left : left + window].flatten(1, 2)
            inside = window_attention(inside, below(part, "attn"), heads, mask)
            seen[:, top : top + window, left : left + window] = inside.unflatten(1, (window, window))
            number += 1
    if shift:
        seen = torch.roll(seen, (shift, shift), (1, 2))
    tokens = tokens + seen
    wide = gelu(linear(layer_norm(tokens, part, "norm2", 1e-5), part, "mlp.fc1"))
    return tokens + linear(wide, part, "mlp.fc2")


def window_attention(tokens, part, heads, mask):
    """Attend within (B, N, width); queries, keys and values are consecutive thirds of ``qkv``."""
    query, key, value = linear(tokens, part, "qkv").chunk(3, dim=-1)
    width, outputs = query.shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(width)
        scores = scores + part["relative_position_bias_table"][part["relative_position_index"], head] + mask
        outputs.append(scores.softmax(dim=-1) @ value[..., own])
    return linear(torch.cat(outputs, dim=-1), part, "proj")


def merged(tokens, part):
    """Merge 2 x 2 neighbours into one token of twice the width."""
    four = [tokens[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    return layer_norm(torch.cat(four, dim=-1), part, "norm", 1e-5) @ part["reduction.weight"].T


def relative_position_index(window):
    """Return the (N, N) row indices into the bias table."""
    places = [(y, x) for y in range(window) for x in range(window)]
    return torch.tensor(
        [[(y - v + window - 1) * (2 * window - 1) + x - u + window - 1 for v, u in places] for y, x in places]
    )


def attention_mask(side, window, shift):
    """Return the (windows, N, N) mask: -100 between tokens that are neighbours only after the cyclic shift, else 0."""

    def region(place):
        return 0 if place < side - window else 1 if place < side - shift else 2

    masks = []
    for top in range(0, side, window):
        for left in range(0, side, window):
            where = torch.tensor([3 * region(top + y) + region(left + x) for y in range(window) for x in range(window)])
            masks.append(torch.where(where[:, None] == where[None, :], 0.0, -100.0))
    return torch.stack(masks)


# --- BERT.


def bert_of(state):
    """Return the part ``text_encoder``, or ``text_encoder.bert`` if there is a language modelling head."""
    return below(state, "text_encoder.bert") or below(state, "text_encoder")


def bert_layer(hidden, mask, image, part, heads):
    seen = bert_attention(hidden, hidden, mask, below(part, "attention.self"), heads)
    hidden = layer_norm(
        linear(seen, part, "attention.output.dense") + hidden, part, "attention.output.LayerNorm", 1e-12
    )
    if image is not None:
        everything = torch.ones(image.shape[:2])
        seen = bert_attention(hidden, image, everything, below(part, "crossattention.self"), heads)
        seen = linear(seen, part, "crossattention.output.dense")
        hidden = layer_norm(seen + hidden, part, "crossattention.output.LayerNorm", 1e-12)
    wide = gelu(linear(hidden, part, "intermediate.dense"))
    return layer_norm(linear(wide, part, "output.dense") + hidden, part, "output.LayerNorm", 1e-12)


def bert_attention(hidden, context, mask, part, heads):
    query, key, value = linear(hidden, part, "query"), linear(context, part, "key"), linear(context, part, "value")
    width, outputs = query.shape[-1] // heads, []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        scores = query[..., own] @ key[..., own].transpose(1, 2) / math.sqrt(width)
        scores = scores + (1 - mask[:, None, :].float()) * -10000.0
        outputs.append(scores.softmax(dim=-1) @ value[..., own])
    return torch.cat(outputs, dim=-1)


# --- Both.


def below(state, prefix):
    """Return the entries below a prefix, by the rest of their names."""
    return {name[len(prefix) + 1 :]: value for name, value in state.items() if name.startswith(f"{prefix}.")}


def linear(rows, state, name):
    return rows @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(rows, state, name, epsilon):
    centred = rows - rows.mean(dim=-1, keepdim=True)
    variance = (centred**2).mean(dim=-1, keepdim=True)
    return centred / torch.sqrt(variance + epsilon) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(rows):
    return rows * (1 + torch.erf(rows / math.sqrt(2))) / 2


# --- A checkpoint's state dict.


def random_state(sizes: Architecture, seed: int = 0, teacher_mlps: bool = False) -> dict[str, Tensor]:
    """Return random values for every key of a checkpoint of the public code, with buffers."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    def add_linear(name, inputs, outputs, bias=True):
        state[f"{name}.weight"] = noise(outputs, inputs) / math.sqrt(inputs)
        if bias:
            state[f"{name}.bias"] = 0.3 * noise(outputs)

    def add_norm(name, width):
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.3 * noise(width), 0.3 * noise(width)

    _add_swin(state, sizes, noise, add_linear, add_norm)
    _add_bert(state, sizes, noise, add_linear, add_norm)
    hidden = sizes.hidden
    add_linear("vision_proj", sizes.image_width, sizes.embedding)
    add_linear("text_proj", hidden, sizes.embedding)
    add_linear("itm_head.0", hidden, 2 * hidden)
    add_norm("itm_head.1", 2 * hidden)
    add_linear("itm_head.3", 2 * hidden, 2)
    add_linear("sig_vision_proj", sizes.image_teacher, sizes.embedding)
    add_linear("sig_text_proj", sizes.text_teacher, sizes.embedding)
    if teacher_mlps:
        for name, width in (("img_wd_proj", sizes.image_teacher), ("text_wd_proj", sizes.text_teacher)):
            add_linear(f"{name}.0", width, 1536)
            add_linear(f"{name}.2", 1536, 768)
    return state | {"temp": torch.tensor(0.0625), "temp2": torch.tensor(0.125), "lamba": torch.tensor([0.375])}


def first_stage(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the keys of a first-stage checkpoint, without those of distillation."""
    return {key: value for key, value in state.items() if not key.startswith(("sig_", "temp2", "lamba"))}


def _add_swin(state, sizes, noise, add_linear, add_norm):
    prefix, last = "vision_encoder", len(sizes.depths) - 1
    state[f"{prefix}.patch_embed.proj.weight"] = noise(sizes.embed_dim, 3, sizes.patch, sizes.patch) / sizes.patch
    state[f"{prefix}.patch_embed.proj.bias"] = 0.3 * noise(sizes.embed_dim)
    add_norm(f"{prefix}.patch_embed.norm", sizes.embed_dim)
    for stage, depth in enumerate(sizes.depths):
        width, heads = sizes.embed_dim * 2**stage, sizes.image_heads[stage]
        for block in range(depth):
            name, (window, shift) = f"{prefix}.layers.{stage}.blocks.{block}", sizes.windows(stage, block)
            if shift:
                state[f"{name}.attn_mask"] = attention_mask(sizes.side(stage), window, shift)
            add_norm(f"{name}.norm1", width)
            state[f"{name}.attn.relative_position_bias_table"] = noise((2 * window - 1) ** 2, heads)
            state[f"{name}.attn.relative_position_index"] = relative_position_index(window)
            add_linear(f"{name}.attn.qkv", width, 3 * width)
            add_linear(f"{name}.attn.proj", width, width)
            add_norm(f"{name}.norm2", width)
            add_linear(f"{name}.mlp.fc1", width, 4 * width)
            add_linear(f"{name}.mlp.fc2", 4 * width, width)
        if stage < last:
            add_linear(f"{prefix}.layers.{stage}.downsample.reduction", 4 * width, 2 * width, bias=False)
            add_norm(f"{prefix}.layers.{stage}.downsample.norm", 4 * width)
    add_norm(f"{prefix}.norm", sizes.image_width)


def _add_bert(state, sizes, noise, add_linear, add_norm):
    prefix, hidden = "text_encoder", sizes.hidden
    state[f"{prefix}.embeddings.position_ids"] = torch.arange(sizes.positions)[None]
    for name, count in (("word", sizes.vocabulary), ("position", sizes.positions), ("token_type", 2)):
        state[f"{prefix}.embeddings.{name}_embeddings.weight"] = noise(count, hidden)
    add_norm(f"{prefix}.embeddings.LayerNorm", hidden)
    for number in range(sizes.layers):
        layer = f"{prefix}.encoder.layer.{number}"
        attentions = {"attention": hidden} | (
            {"crossattention": sizes.image_width} if number >= sizes.fusion_layer else {}
        )
        for name, context in attentions.items():
            add_linear(f"{layer}.{name}.self.query", hidden, hidden)
            add_linear(f"{layer}.{name}.self.key", context, hidden)
            add_linear(f"{layer}.{name}.self.value", context, hidden)
            add_linear(f"{layer}.{name}.output.dense", hidden, hidden)
            add_norm(f"{layer}.{name}.output.LayerNorm", hidden)
        add_linear(f"{layer}.intermediate.dense", hidden, sizes.intermediate)
        add_linear(f"{layer}.output.dense", sizes.intermediate, hidden)
        add_norm(f"{layer}.output.LayerNorm", hidden)
