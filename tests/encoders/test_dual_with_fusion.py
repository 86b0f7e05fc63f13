"""A dual encoder with a fusion encoder: gradients, caching, new parameters and errors."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from sdr_lightning.encoders import (
    DualEncoder,
    FusionEncoder,
    PrecomputedImageTower,
    TimmImageTower,
    TransformersImageTower,
    TransformersTextTower,
)
from sdr_lightning.types import CachedFeatures
from tests.encoders.tiny import BERT, image_tower, images, text_tower, tokens

DEEP = BERT | {"num_hidden_layers": 3}
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLIP_TEXT = SIZES | {"vocab_size": 50, "max_position_embeddings": 32, "eos_token_id": 49, "bos_token_id": 0}
CLIP_VISION = SIZES | {"hidden_size": 24, "image_size": 32, "patch_size": 16}
CLIP = {"model_type": "clip", "text_config": CLIP_TEXT, "vision_config": CLIP_VISION, "projection_dim": 12}
PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
VIT = {"img_size": 32, "embed_dim": 20, "depth": 1, "num_heads": 2}
SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2)}

IMAGE_TOWERS = {
    "cnn": image_tower,
    "cnn, widened": lambda: TimmImageTower("mobilenetv3_small_050"),
    "vit": lambda: TimmImageTower("vit_tiny_patch16_224", model_args=dict(VIT)),
    "swin": lambda: TimmImageTower("swin_base_patch4_window12_384", model_args=dict(SWIN)),
    "regions": lambda: PrecomputedImageTower(6, 8),
    "clip": lambda: TransformersImageTower(config=dict(CLIP), **PIXELS),
    "clip, projected": lambda: TransformersImageTower(config=dict(CLIP), projected=True, **PIXELS),
}
TEXT_TOWERS = {
    "bert, mean": text_tower,
    "bert, cls": lambda: text_tower(pooling="cls"),
    "bert, own": lambda: text_tower(pooling="own"),
    "bert, first layers": lambda: TransformersTextTower(config=dict(DEEP), layers=2),
    "clip": lambda: TransformersTextTower(config=dict(CLIP), pooling="own"),
    "clip, projected": lambda: TransformersTextTower(config=dict(CLIP), pooling="own", projected=True),
}


def fusion_encoder(image_width=16, **config):
    return FusionEncoder(image_width, config=DEEP | config, first_layer=1)


def forward_all(encoder, pixels):
    """Compute embeddings, fused tokens and logits of the matching head."""
    image, text = encoder.image(pixels), encoder.text(tokens())
    contexts = encoder.fusion.contexts(image.tokens)
    fused = encoder.fusion(text, contexts, torch.tensor([0, 2, 1]))
    return image, text, fused, encoder.fusion.head(fused)


PAIRS = [(image, "bert, mean") for image in IMAGE_TOWERS] + [("cnn", text) for text in TEXT_TOWERS]


@pytest.mark.parametrize(
    ("image", "text", "embedding_width"),
    [*((*names, 6) for names in dict.fromkeys(PAIRS)), ("clip, projected", "clip, projected", None)],
)
def test_every_parameter_gets_a_gradient(image, text, embedding_width):
    towers = IMAGE_TOWERS[image](), TEXT_TOWERS[text]()
    fusion = fusion_encoder(towers[0].tokens_width)
    encoder = DualEncoder(*towers, embedding_width, fusion=fusion).train()
    pixels = torch.rand(3, 4, 6) if image == "regions" else images()
    embedded, captions, fused, logits = forward_all(encoder, pixels)
    assert embedded.embedding.shape == captions.embedding.shape == (3, embedding_width or 12)
    assert fused.shape == (3, 16)
    assert logits.shape == (3, 2)
    loss = (embedded.embedding @ captions.embedding.T).square().sum() + logits.log_softmax(1)[:, 1].sum()
    loss.backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("image_frozen", "text_frozen", "names"),
    [(True, False, ["image_tower"]), (False, True, ["text_tower"])],
)
def test_frozen_towers_are_cached_unless_fusion_reads_their_tokens(image_frozen, text_frozen, names):
    towers = image_tower(frozen=image_frozen), text_tower(frozen=text_frozen)
    alone = DualEncoder(*towers)
    assert alone.cached_towers() == alone.frozen_towers()
    assert list(alone.cached_towers()) == names
    assert all(alone.get_submodule(name) is tower for name, tower in alone.frozen_towers().items())
    fused = DualEncoder(*towers, fusion=fusion_encoder())
    assert fused.cached_towers() == {}
    assert list(fused.frozen_towers()) == names
    (forward_all(fused, images())[3].square().sum()).backward()
    for name, parameter in fused.named_parameters():
        if name.startswith(tuple(names)):
            assert parameter.grad is None, name
        elif not name.startswith(("image_projection", "text_projection")):
            assert parameter.grad is not None, name


def test_encoder_returns_the_tokens_of_its_towers():
    encoder = DualEncoder(image_tower(), text_tower(), 6, fusion=fusion_encoder()).eval()
    without = DualEncoder(encoder.image_tower, encoder.text_tower, 6).eval()
    without.load_state_dict(encoder.state_dict(), strict=False)
    for side, inputs in (("image", images()), ("text", tokens())):
        result = getattr(encoder, side)(inputs)
        tower = getattr(encoder, f"{side}_tower").encode(inputs)
        torch.testing.assert_close(result.embedding.norm(dim=1), torch.ones(3))
        assert torch.equal(result.tokens, tower.tokens)
        assert result.mask is tower.mask
        assert torch.equal(getattr(encoder, f"encode_{side}")(inputs), result.embedding)
        assert torch.equal(getattr(without, side)(inputs).embedding, result.embedding)  # fusion changes no embedding
        assert getattr(encoder, side)(CachedFeatures(torch.randn(3, 16)))[1:] == (None, None)
    assert not any(name.startswith("fusion") for name in without.state_dict())


def test_no_projection_without_embedding_width():
    encoder = DualEncoder(image_tower(), text_tower(), None).eval()
    for side, inputs in (("image", images()), ("text", tokens())):
        features = getattr(encoder, f"{side}_tower")(inputs)
        expected = features / features.norm(dim=1, keepdim=True)
        torch.testing.assert_close(getattr(encoder, f"encode_{side}")(inputs), expected)
        assert isinstance(getattr(encoder, f"{side}_projection"), nn.Identity)
    with pytest.raises(ValueError, match="towers of widths 16 and 20 share no space: set embedding_width"):
        DualEncoder(image_tower(), TransformersTextTower(config=BERT | {"hidden_size": 20}), None)


@pytest.mark.parametrize(
    ("image", "fusion", "message"),
    [
        ("cnn", {"image_width": 24}, "16 wide and .* reads 24: set fusion.init_args.image_width to 16"),
        ("cnn, widened", {"image_width": 1024}, "288 wide and .* reads 1024: set fusion.init_args.image_width to 288"),
        ("clip, projected", {"image_width": 12}, "24 wide and .* reads 12: set fusion.init_args.image_width to 24"),
        ("cnn", {"hidden_size": 20}, "text tower's tokens are 16 wide and the fusion encoder's 20: .* hidden_size"),
    ],
)
def test_mismatched_fusion_widths_are_rejected(image, fusion, message):
    with pytest.raises(ValueError, match=message):
        DualEncoder(IMAGE_TOWERS[image](), text_tower(), fusion=fusion_encoder(**fusion))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights")
    BertModel(BertConfig(**{key: value for key, value in DEEP.items() if key != "model_type"})).save_pretrained(path)
    torch.save(image_tower().model.state_dict(), path / "cnn.pth")
    return path


@pytest.mark.parametrize(
    ("image", "text", "fusion"),
    [(False, False, None), (True, False, False), (False, True, True), (True, True, False), (True, False, True)],
)
def test_newly_initialized_parameters(folder, image, text, fusion):
    fused = {None: lambda: None, False: fusion_encoder, True: lambda: FusionEncoder(16, str(folder), first_layer=1)}
    encoder = DualEncoder(
        image_tower(weights=str(folder / "cnn.pth")) if image else image_tower(),
        TransformersTextTower(str(folder), layers=1) if text else text_tower(),
        fusion=fused[fusion](),
    )
    new = encoder.newly_initialized_parameters()
    names = [name for name, _ in encoder.named_parameters()]
    assert len(new) == len(set(new))
    assert set(new) <= set(names)

    def expected(name):
        part = name.split(".")[0]
        if part == "fusion":
            return not fusion or "cross" in name or ".head." in name
        return not {"image_tower": image, "text_tower": text}.get(part, False)

    assert set(new) == {name for name in names if expected(name)}
    assert not fusion or len([name for name in new if name.startswith("fusion.")]) == 2 * 10 + 6


def test_mixed_precision_is_close_to_float32():
    encoder = DualEncoder(image_tower(), text_tower(), 6, fusion=fusion_encoder()).eval()
    expected = forward_all(encoder, images())[2]
    with torch.autocast("cpu", torch.bfloat16):
        fused = forward_all(encoder, images())[2]
    torch.testing.assert_close(fused.float(), expected, rtol=0.1, atol=0.1)
