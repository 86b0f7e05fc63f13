"""Tiny real models with random weights."""

import torch

from sdr_lightning.encoders import TimmImageTower, TransformersTextTower
from sdr_lightning.types import Tokens

RESNET = {"channels": [8, 8, 16, 16], "stem_width": 8}
BERT = {
    "model_type": "bert",
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}


def image_tower(seed=0, **kwargs):
    torch.manual_seed(seed)
    return TimmImageTower("resnet10t", model_args=dict(RESNET), **kwargs)


def text_tower(seed=0, **kwargs):
    torch.manual_seed(seed)
    return TransformersTextTower(config=dict(BERT), **kwargs)


def images(count=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def tokens(lengths=(4, 7, 2), padded_to=None, seed=0, padding=0):
    """Return random captions of the given lengths, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), padded_to or max(lengths)), padding)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 50, (length,), generator=generator)
        mask[row, :length] = 1
    return Tokens(ids, mask)


def randomise(module, seed=0, scale=0.3):
    """Set all parameters to random values, including biases and norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=scale, generator=generator)
    return module
