"""Fingerprints of tower settings, and errors of invalid settings and files."""

import pytest
import torch
from torch import nn

from sdr_lightning.encoders import TimmImageTower, TransformersTextTower
from sdr_lightning.encoders.weights import load_state
from tests.encoders.tiny import BERT, RESNET, images, text_tower, tokens


def test_fingerprint_changes_with_the_number_of_text_heads() -> None:
    torch.manual_seed(0)
    other = TransformersTextTower(config=BERT | {"num_attention_heads": 4}).eval()
    assert not torch.equal(other(tokens()), text_tower().eval()(tokens()))
    assert other.fingerprint() != text_tower().fingerprint()


@pytest.mark.parametrize("change", [{"num_heads": 4}, {"global_pool": "max"}])
def test_fingerprint_changes_with_timm_arguments(change) -> None:
    base = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "global_pool": "avg"}
    prints = set()
    for arguments in (base, base | change):
        torch.manual_seed(0)
        prints.add(TimmImageTower("vit_tiny_patch16_224", model_args=arguments).fingerprint())
    assert len(prints) == 2


def test_classifier_weights_are_ignored(tmp_path) -> None:
    import timm

    arguments = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.save(timm.create_model("vit_tiny_patch16_224", **arguments).state_dict(), tmp_path / "vit.pth")
    TimmImageTower("vit_tiny_patch16_224", str(tmp_path / "vit.pth"), arguments)


@pytest.mark.parametrize("content", [[1, 2], {"weight": 3, "bias": torch.ones(2)}, {"state_dict": 3}])
def test_files_without_state_dict_are_rejected(tmp_path, content) -> None:
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match="state dict"):
        load_state(nn.Linear(2, 2), path)


def test_unknown_pretrained_tag_is_rejected() -> None:
    with pytest.raises(ValueError, match="nonsense"):
        TimmImageTower("resnet10t.nonsense")


@pytest.mark.parametrize("change", [{"num_classes": 7}, {"global_pool": ""}])
def test_arguments_that_change_the_output_are_rejected(change) -> None:
    try:
        tower = TimmImageTower("resnet10t", model_args=RESNET | change).eval()
    except ValueError:
        return
    assert tower(images()).shape == (3, tower.width)


def test_invalid_model_type_is_rejected() -> None:
    with pytest.raises(ValueError, match="model_type") as caught:
        TransformersTextTower(config={"model_type": "bertt"})
    assert len(str(caught.value)) < 400
    with pytest.raises(ValueError, match="model_type"):
        TransformersTextTower(config={"vocab_size": 50})


def test_pretrained_tower_starts_in_training_mode_unless_frozen(tmp_path) -> None:
    text_tower().encoder.model.save_pretrained(tmp_path)
    assert all(module.training for module in TransformersTextTower(str(tmp_path)).modules())
    assert not any(module.training for module in TransformersTextTower(str(tmp_path), frozen=True).modules())
