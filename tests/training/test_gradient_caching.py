"""Gradient caching against the whole batch: gradients, random numbers, memory and errors."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sdr_lightning.encoders import TimmImageTower, TransformersTextTower
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.methods import SDR
from sdr_lightning.training import matching
from sdr_lightning.training.gradient_caching import encode_in_chunks
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Encoded, RetrievalBatch
from tests.training.ranks import Gradients
from tests.training.student import (
    ALL,
    EMBEDDING,
    IMAGE_TEACHER,
    LIGHTNINGS_OWN_WARNINGS,
    TEXT_TEACHER,
    WITH_MATCHING,
    FixedBatches,
    hardest,
    pairs,
    student,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS
IDS, LENGTHS = (0, 1, 1, 3, 5, 8, 2), (3, 5, 2, 4, 1, 7, 2)
BERT = {"model_type": "bert", "vocab_size": 80, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 32, "max_position_embeddings": 64}


def gradients(module: RetrievalModule, batch: RetrievalBatch, precision: Any = "32-true") -> dict[str, Tensor]:
    """Return the gradients of one training step."""
    found = Gradients()
    with patch.object(matching, "draw_negatives", hardest):
        fit = trainer(precision=precision, max_steps=1, limit_val_batches=0, callbacks=[found])
        fit.fit(module, datamodule=FixedBatches([batch]))
    return found.found


def towers(dropout: float = 0.0, **options: Any) -> RetrievalModule:
    """Build a student with a timm ViT and a BERT."""
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_rate": dropout}
    image = TimmImageTower("vit_tiny_patch16_224", model_args=size)
    bert = {**BERT, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder = DualEncoder(image, TransformersTextTower(config=bert), EMBEDDING)
    method = SDR(ALL, EMBEDDING, IMAGE_TEACHER, TEXT_TEACHER)
    return RetrievalModule(encoder, method, **options)


@pytest.mark.parametrize(("size", "relation"), [(1, "fused"), (3, "averaged"), (6, "fused"), (100, "averaged")])
def test_chunks_have_the_gradient_of_the_whole_batch(size: int, relation: str) -> None:
    batch, options = pairs(IDS, LENGTHS), {"weights": WITH_MATCHING, "relation": relation}
    whole = gradients(student(**options), batch, "64-true")
    chunks = gradients(student(**options, micro_batch=size), batch, "64-true")
    assert whole.keys() == chunks.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(chunks[name], gradient, rtol=1e-10, atol=1e-13, msg=lambda m, n=name: f"{n}: {m}")


def test_real_towers_in_float32() -> None:
    batch = pairs(IDS, LENGTHS)
    whole, chunks = gradients(towers(), batch), gradients(towers(micro_batch=2), batch)
    for name, gradient in whole.items():
        apart = (chunks[name] - gradient).norm() / max(gradient.norm().item(), 1e-4)  # zero for biases of keys
        assert apart < 1e-5, name


def test_real_towers_in_bf16() -> None:
    batch = pairs(IDS, LENGTHS)
    whole, chunks = (gradients(towers(micro_batch=size), batch, "bf16-mixed") for size in (None, 2))
    flat = [torch.cat([gradient.flatten() for gradient in found.values()]) for found in (whole, chunks)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.999


def test_recomputation_uses_the_same_dropout() -> None:
    """Compare with chunks encoded one after another without recomputation."""
    batch = pairs(IDS, LENGTHS)
    module = towers(0.3)
    inputs = batch.images

    def gradient(kept: bool) -> Tensor:
        torch.manual_seed(1)
        if kept:
            vectors = torch.cat([module.encoder.encode_image(chunk) for chunk in inputs.split(3)])
        else:
            vectors = encode_in_chunks(module.encoder.image, inputs, 3).embedding
        torch.rand(5)  # advance the generator before recomputation
        (found,) = torch.autograd.grad(
            vectors.mul(torch.arange(42).view(7, 6)).sum(), [next(module.encoder.image_tower.parameters())]
        )
        return found

    module.train()
    assert torch.equal(gradient(kept=False), gradient(kept=True))
    torch.manual_seed(2)
    first = encode_in_chunks(module.encoder.image, inputs, 3).embedding
    assert not torch.equal(first, encode_in_chunks(module.encoder.image, inputs, 3).embedding)


class Deep(nn.Module):
    """Ten layers with activations far larger than the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(10)), nn.Linear(64, 1))

    def encode(self, inputs: Tensor) -> Encoded:
        return Encoded(self.layers(inputs))


def saved_bytes(size: int | None) -> int:
    """Return the bytes saved for the backward pass."""
    deep, kept = Deep(), set[tuple[int, int]]()

    def keep(tensor: Tensor) -> Tensor:
        kept.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoded = encode_in_chunks(deep.encode, torch.ones(512, 64), size)
    assert encoded.embedding.shape == (512, 1)
    return sum(size for _, size in kept)


def test_chunks_save_memory() -> None:
    whole = saved_bytes(None)
    assert whole > 10 * 512 * 64 * 4
    assert saved_bytes(32) < whole / 10


def test_batch_norm_and_empty_chunks_are_rejected() -> None:
    torch.manual_seed(0)
    text, method = TransformersTextTower(config=BERT), SDR({"itc": 1})
    with pytest.raises(ValueError, match="image tower's batch norm the statistics of 4 pairs: freeze"):
        RetrievalModule(DualEncoder(TimmImageTower("mobilenetv2_050"), text, 8), method, micro_batch=4)
    frozen = DualEncoder(TimmImageTower("mobilenetv2_050", frozen=True), text, 8)
    assert RetrievalModule(frozen, method, micro_batch=4).micro_batch == 4
    with pytest.raises(ValueError, match="micro_batch must be at least 1 pair, got 0"):
        RetrievalModule(frozen, method, micro_batch=0)


def test_local_loss_requires_exact_gathering() -> None:
    with pytest.raises(ValueError, match="set gather to exact"):
        student(fusion=False, gather="albef", local_loss=True)
