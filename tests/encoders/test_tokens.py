"""Tokens of image towers, their order, and layouts of image weights."""

import re

import pytest
import timm
import torch

from sdr_lightning.encoders import TimmImageTower
from tests.encoders.tiny import RESNET, images, randomise, text_tower, tokens

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


def test_tokens_are_the_pooled_features_and_the_grid_row_by_row(kind):
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
    assert torch.equal(encoded.embedding, tower(pixels))
    torch.testing.assert_close(encoded.embedding, tower.model(by_hand(tower, pixels)))
    assert torch.equal(encoded.tokens, tower.encode(pixels.float() / 255).tokens)
    features = tower.model.forward_features(by_hand(tower, pixels))
    for row in range(rows):
        for column in range(columns):
            if kind.startswith("vit"):
                expected = features[:, features.shape[1] - rows * columns + row * columns + column]
            else:
                expected = features[:, row, column] if kind == "swin" else features[:, :, row, column]
            torch.testing.assert_close(encoded.tokens[:, first + row * columns + column], expected)


@pytest.mark.parametrize(
    ("name", "arguments", "reach"),
    [
        ("vit_tiny_patch16_224", VIT | {"img_size": (32, 64), "depth": 0}, 1),  # each token depends on its own patch
        ("swin_base_patch4_window12_384", SWIN | {"img_size": (32, 64)}, 2),  # 2 x 2 tokens share a window of 16 x 16
    ],
)
def test_tokens_are_in_the_order_of_image_patches(name, arguments, reach):
    tower = TimmImageTower(name, model_args=arguments).eval()
    before = pictures("swin", 1) // 2
    after = before.clone()
    row, column = 1, 2
    after[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 100
    moved = (tower.encode(after).tokens - tower.encode(before).tokens)[0, 1:].abs().amax(1) > 1e-6
    expected = torch.zeros(2 * reach, 4 * reach, dtype=torch.bool)
    expected[reach * row : reach * row + reach, reach * column : reach * column + reach] = True
    assert torch.equal(moved, expected.flatten())


def test_caption_tokens_are_its_words():
    tower, captions = text_tower().eval(), tokens()
    encoded = tower.encode(captions)
    assert torch.equal(encoded.mask, captions.attention_mask)
    assert encoded.tokens.shape == (3, 7, tower.tokens_width)
    torch.testing.assert_close(encoded.tokens[0, :4].mean(0), encoded.embedding[0])


def test_multi_scale_networks_have_pooled_features():
    tower = TimmImageTower("crossvit_tiny_240").eval()
    with torch.no_grad():
        assert tower(images(1, tower.model.pretrained_cfg["input_size"][1])).shape == (1, tower.width)


def test_grid_excludes_class_tokens():
    tower = TimmImageTower("volo_d1_224", model_args={"img_size": 64}).eval()
    with torch.no_grad():
        assert tower.encode(images(1, 64)).tokens.shape[1] == 1 + 4 * 4


# --- Layout of the original Swin release.

NAME = "swin_base_patch4_window12_384"
ARGUMENTS = SWIN | {"img_size": 64}


def swin(**changes):
    return randomise(timm.create_model(NAME, num_classes=5, **ARGUMENTS | changes), seed=3)


def original_layout(model):
    """Convert to the layout of Swin's authors: stages end with downsampling, and buffers are included."""
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


def test_original_swin_layout_is_converted(tmp_path):
    model, pixels = swin(), images(2, 64)
    own, theirs = (load(tmp_path / "swin.pth", content) for content in (model.state_dict(), original_layout(model)))
    assert torch.equal(theirs(pixels), own(pixels))
    assert theirs.fingerprint() == own.fingerprint()
    for name, tensor in own.model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layers.0.downsample.norm.bias"), r"lacks 1 of 35 keys, first 'layers\.1\.downsample\.norm"),
        (lambda s: s.update(extra=torch.ones(1)), "has unknown 1 of 35 keys, first 'extra'"),
        (lambda s: s.pop("layers.0.downsample.reduction.weight"), r"lacks \d of 35 keys, first 'layers"),
    ],
)
def test_keys_of_the_original_layout_that_do_not_fit_are_named(tmp_path, change, message):
    content = original_layout(swin())
    change(content["model"])
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "swin.pth", content)
    assert str(tmp_path / "swin.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("timm", {"depths": (2, 1)}),
        ("original", {"depths": (1, 1, 1), "num_heads": (2, 2, 2)}),
        ("original", {"embed_dim": 8}),
    ],
)
def test_weights_of_another_swin_are_rejected(tmp_path, layout, change):
    model = swin(**change)
    content = model.state_dict() if layout == "timm" else original_layout(model)
    with pytest.raises(ValueError, match=r"does not fit: it (has unknown|has other shapes for|lacks) \d+ of 35 keys"):
        load(tmp_path / "swin.pth", content)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        (NAME, ARGUMENTS),
        ("vit_tiny_patch16_224", VIT | {"img_size": 32}),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}),
    ],
)
def test_weights_of_another_architecture_are_rejected(tmp_path, name, arguments):
    torch.save(timm.create_model("resnet10t", **RESNET).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth does not fit: it lacks \d+ of \d+ keys") as caught:
        TimmImageTower(name, str(tmp_path / "resnet.pth"), arguments)
    assert "\n" not in str(caught.value)
