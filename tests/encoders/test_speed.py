"""Compilation, activation checkpointing and memory format change no values."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdr_lightning.encoders import PrecomputedImageTower, TimmImageTower, TransformersTextTower
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.types import Tokens

BERT = {"model_type": "bert", "vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def encoder(**options: Any) -> DualEncoder:
    torch.manual_seed(0)
    image = TimmImageTower("vit_tiny_patch16_224", model_args=dict(VIT))
    return DualEncoder(image, TransformersTextTower(config=dict(BERT)), 8, **options)


def learn(module: DualEncoder) -> tuple[float, dict[str, torch.Tensor]]:
    """Return a loss and its gradients."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=generator)
    ids = torch.randint(1, 80, (6, 5), generator=generator)
    loss = (
        -(module.encode_image(images) @ module.encode_text(Tokens(ids, torch.ones_like(ids))).T).log_softmax(1).trace()
    )
    loss.backward()
    return loss.item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def saved_bytes(module: DualEncoder) -> int:
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module.encode_image(torch.zeros(64, 3, 16, 16))
    return sum(size for pointer, size in kept.items() if pointer not in own)


@pytest.mark.parametrize("option", ["activation_checkpointing", pytest.param("compile", marks=pytest.mark.slow)])
def test_values_gradients_and_names_are_unchanged(option: str) -> None:
    plain, other = encoder(), encoder(**{option: True})
    assert plain.state_dict().keys() == other.state_dict().keys()
    assert plain.image_tower.fingerprint() == other.image_tower.fingerprint()
    assert plain.text_tower.fingerprint() == other.text_tower.fingerprint()
    (loss, gradients), (found, theirs) = learn(plain), learn(other)
    assert found == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_activation_checkpointing_saves_memory() -> None:
    assert saved_bytes(encoder(activation_checkpointing=True)) < saved_bytes(encoder()) / 2


def test_unsupported_activation_checkpointing_is_rejected() -> None:
    text = TransformersTextTower(config=dict(BERT))
    with pytest.raises(ValueError, match="PrecomputedImageTower has no activation checkpointing"):
        DualEncoder(PrecomputedImageTower(4, 8), text, 8, activation_checkpointing=True)


def test_channels_last_changes_only_the_memory_format() -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    towers = []
    for channels_last in (True, False):
        torch.manual_seed(0)
        towers.append(TimmImageTower("mobilenetv3_small_050", channels_last=channels_last).eval())
    for tower, layout in zip(towers, (torch.channels_last, torch.contiguous_format), strict=True):
        kernels = [p for p in tower.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
        assert all(kernel.is_contiguous(memory_format=layout) for kernel in kernels)
    torch.testing.assert_close(towers[0](images), towers[1](images), rtol=1e-4, atol=1e-5)
    assert towers[0].fingerprint() == towers[1].fingerprint()
