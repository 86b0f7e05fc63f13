"""Tokens of image towers, their order, and the layouts that image weights come in."""

import re

import pytest
import timm
import torch

from sdr_lightning.encoders import PrecomputedImageTower, TimmImageTower
from sdr_lightning.types import CachedFeatures
from tests.encoders.tiny import RESNET, image_tower, images, randomise, text_tower, tokens

SWIN = {"window_size": 2, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
VIT = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# name: architecture, arguments, height and width of images, rows and columns of the grid, width, tokens' width
ARCHITECTURES = {
    "swin": ("swin_base_patch4_window12_384", SWIN | {"img_size": (32, 64)}, (32, 64), (4, 8), 32, 32),
    "vit": ("vit_tiny_patch16_224", VIT | {"img_size": (32, 48)}, (32, 48), (2, 3), 16, 16),
    "vit, mean": ("vit_tiny_patch16_224", VIT | {"img_size": 32, "global_pool": "avg"}, (32, 32), (2, 2), 16, 16),
    "vit, registers": ("vit_tiny_patch16_224", VIT | {"img_size": 32, "reg_tokens": 3}, (32, 32), (2, 2), 16, 16),
    "vit, no class": (
        "vit_tiny_patch16_224",
        VIT | {"img_size": 32, "class_token": False, "global_pool": "avg"},
        (32, 32),
        (2, 2),
        16,
        16,
    ),
    "cnn": ("resnet10t", RESNET, (64, 96), (2, 3), 16, 16),
    "cnn, widened": ("mobilenetv3_small_050", {}, (64, 96), (2, 3), 1024, 288),
}


def timm_tower(kind, seed=0, **options):
    name, arguments, *_ = ARCHITECTURES[kind]
    torch.manual_seed(seed)
    return TimmImageTower(name, model_args=dict(arguments), **options)


def pictures(kind, count=2):
    height, width = ARCHITECTURES[kind][2]
    return torch.randint(
        0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def by_hand(tower, pixels):
    return (pixels / 255 - tower.mean) / tower.std


@pytest.fixture(params=ARCHITECTURES)
def kind(request):
    return request.param


def test_the_pooled_vector_and_then_the_grid_row_by_row(kind):
    *_, (rows, columns), width, tokens_width = ARCHITECTURES[kind]
    tower, pixels = timm_tower(kind).eval(), pictures(kind)
    assert (tower.width, tower.tokens_width) == (width, tokens_width)
    encoded = tower.encode(pixels)
    assert encoded.mask is None
    first = int(width == tokens_width)
    assert encoded.tokens.shape == (2, first + rows * columns, tokens_width)
    assert encoded.embedding.shape == (2, width)
    if first:
        assert torch.equal(encoded.tokens[:, 0], encoded.embedding)
    features = tower.model.forward_features(by_hand(tower, pixels))
    for row in range(rows):
        for column in range(columns):
            if kind.startswith("vit"):
                expected = features[:, features.shape[1] - rows * columns + row * columns + column]
            else:
                expected = features[:, row, column] if kind == "swin" else features[:, :, row, column]
            torch.testing.assert_close(encoded.tokens[:, first + row * columns + column], expected)


def test_the_vector_is_what_the_model_gives_without_a_classifier(kind):
    tower, pixels = timm_tower(kind).eval(), pictures(kind)
    encoded = tower.encode(pixels)
    assert torch.equal(encoded.embedding, tower(pixels))
    torch.testing.assert_close(encoded.embedding, tower.model(by_hand(tower, pixels)))


@pytest.mark.parametrize(
    ("name", "arguments", "reach"),
    [
        ("vit_tiny_patch16_224", VIT | {"img_size": (32, 64), "depth": 0}, 1),  # each token knows its own patch
        ("swin_base_patch4_window12_384", SWIN | {"img_size": (32, 64)}, 2),  # 2 x 2 tokens share a window of 16 x 16
    ],
)
@pytest.mark.parametrize("block", [(0, 0), (0, 2), (1, 3)])
def test_a_patch_of_the_image_moves_its_own_tokens(name, arguments, reach, block):
    tower = TimmImageTower(name, model_args=arguments).eval()
    before = pictures("swin", 1) // 2
    after = before.clone()
    row, column = block
    after[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 100
    moved = (tower.encode(after).tokens - tower.encode(before).tokens)[0, 1:].abs().amax(1) > 1e-6
    expected = torch.zeros(2 * reach, 4 * reach, dtype=torch.bool)
    expected[reach * row : reach * row + reach, reach * column : reach * column + reach] = True
    assert torch.equal(moved, expected.flatten())


def test_bytes_and_floats_have_the_same_tokens(kind):
    tower, pixels = timm_tower(kind).eval(), pictures(kind)
    assert torch.equal(tower.encode(pixels).tokens, tower.encode(pixels.float() / 255).tokens)


def test_gradient_flows_through_tokens_and_through_vectors(kind):
    tower, pixels = timm_tower(kind), pictures(kind)
    for part in ("embedding", "tokens"):
        tower.zero_grad()
        getattr(tower.encode(pixels), part).square().sum().backward()
        first = next(tower.parameters())
        assert first.grad is not None
        assert first.grad.abs().sum() > 0


@pytest.mark.parametrize("make", [image_tower, text_tower])
def test_frozen_towers_give_tokens_without_gradient_and_cached_features_none(make):
    inputs = images() if make is image_tower else tokens()
    encoded = make(frozen=True).encode(inputs)
    assert not encoded.tokens.requires_grad
    assert not encoded.embedding.requires_grad
    encoded = make().encode(inputs)
    assert encoded.tokens.requires_grad
    cached = torch.randn(3, 16)
    again = make().encode(CachedFeatures(cached))
    assert again.embedding is cached
    assert again.tokens is None
    assert again.mask is None


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_tokens_of_precomputed_regions_are_those_that_are_pooled(pooling):
    tower = PrecomputedImageTower(6, 8, pooling=pooling).eval()
    regions = torch.randn(3, 5, 6)
    encoded = tower.encode(regions)
    assert encoded.tokens.shape == (3, 5, tower.tokens_width)
    pooled = encoded.tokens.mean(1) if pooling == "mean" else encoded.tokens.max(1).values
    torch.testing.assert_close(encoded.embedding, pooled)
    torch.testing.assert_close(encoded.tokens[:, 2:3], tower.encode(regions[:, 2:3]).tokens)


def test_tokens_of_a_caption_are_its_words():
    tower, captions = text_tower().eval(), tokens()
    encoded = tower.encode(captions)
    assert torch.equal(encoded.mask, captions.attention_mask)
    assert encoded.tokens.shape == (3, 7, tower.tokens_width)
    torch.testing.assert_close(encoded.tokens[0, :4].mean(0), encoded.embedding[0])


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "coat_tiny"])
def test_networks_of_several_scales_still_give_a_vector(name):
    tower = TimmImageTower(name).eval()
    with torch.no_grad():
        assert tower(images(1, tower.model.pretrained_cfg["input_size"][1])).shape == (1, tower.width)


def test_the_grid_is_free_of_class_tokens_that_timm_does_not_count():
    tower = TimmImageTower("volo_d1_224", model_args={"img_size": 64}).eval()
    with torch.no_grad():
        assert tower.encode(images(1, 64)).tokens.shape[1] == 1 + 4 * 4


# --- Published layouts.

NAME = "swin_base_patch4_window12_384"
ARGUMENTS = SWIN | {"img_size": 64}


def swin(**changes):
    return randomise(timm.create_model(NAME, num_classes=5, **ARGUMENTS | changes), seed=3)


def published(model):
    """The layout of Swin's authors: a stage ends, not starts, with its downsampling, and buffers are kept."""
    state = {
        re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in model.state_dict().items()
    }
    state = {name.replace("head.fc.", "head."): tensor for name, tensor in state.items()}
    for number, stage in enumerate(model.layers):
        for block in range(len(stage.blocks)):
            place = f"layers.{number}.blocks.{block}"
            state[f"{place}.attn.relative_position_index"] = torch.zeros(4, 4, dtype=torch.int64)
            state[f"{place}.attn_mask"] = torch.zeros(4, 4)
    assert "layers.0.downsample.reduction.weight" in state
    assert f"layers.{len(model.layers) - 1}.downsample.reduction.weight" not in state
    return {"model": state}


def load(path, content):
    torch.save(content, path)
    return TimmImageTower(NAME, str(path), dict(ARGUMENTS)).eval()


def test_the_published_layout_is_the_same_model(tmp_path):
    model, pixels = swin(), images(2, 64)
    own, theirs = (load(tmp_path / "swin.pth", content) for content in (model.state_dict(), published(model)))
    assert torch.equal(theirs(pixels), own(pixels))
    assert theirs.fingerprint() == own.fingerprint()
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"lacks 1 of 35 keys, first 'norm\.weight'"),
        (lambda s: s.pop("layers.0.downsample.norm.bias"), r"lacks 1 of 35 keys, first 'layers\.1\.downsample\.norm"),
        (lambda s: s.update(extra=torch.ones(1)), "has unknown 1 of 35 keys, first 'extra'"),
        (lambda s: s.update({"norm.bias": torch.ones(3)}), r"has other shapes for 1 of 35 keys, first 'norm\.bias'"),
        (lambda s: s.pop("layers.0.downsample.reduction.weight"), r"lacks \d of 35 keys, first 'layers"),
    ],
)
def test_published_keys_that_do_not_fit_are_named(tmp_path, change, message):
    content = published(swin())
    change(content["model"])
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "swin.pth", content)
    assert str(tmp_path / "swin.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["timm", "published"])
@pytest.mark.parametrize(
    "change", [{"depths": (2, 1)}, {"depths": (1, 1, 1), "num_heads": (2, 2, 2)}, {"embed_dim": 8}]
)
def test_another_swin_does_not_fit(tmp_path, layout, change):
    model = swin(**change)
    content = model.state_dict() if layout == "timm" else published(model)
    with pytest.raises(ValueError, match=r"does not fit: it (has unknown|has other shapes for|lacks) \d+ of 35 keys"):
        load(tmp_path / "swin.pth", content)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NAME, ARGUMENTS),
        ("vit_tiny_patch16_224", VIT | {"img_size": 32}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
        ("poolformerv2_s12", {}),
    ],
)
def test_the_file_of_another_architecture_does_not_fit(tmp_path, name, arguments):
    torch.save(timm.create_model("resnet10t", **RESNET).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit: it lacks \d+ of \d+ keys") as caught:
        TimmImageTower(name, str(tmp_path / "resnet.pth"), arguments)
    assert "\n" not in str(caught.value)
