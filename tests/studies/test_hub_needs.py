"""What studies need from the hub."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from sdr_lightning.studies.hub_needs import check_hub

HINT = "make reproduce-flickr FLICKR30K_ROOT=/folder TOWERS=pip"


@pytest.fixture(autouse=True)
def _nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("IMAGE_WEIGHTS", "TEXT_WEIGHTS", "FLICKR30K_HUB", "FLICKR30K_ROOT"):
        monkeypatch.delenv(name, raising=False)


def test_the_missing_repositories_and_the_way_without_them_are_named(experiments: Path) -> None:
    with pytest.raises(ValueError, match=r"needs timm/swin_base_patch4_window12_384\.ms_in22k, ") as caught:
        check_hub(experiments / "flickr30k/study_hub.yaml")
    message = str(caught.value)
    assert "bert-base-uncased, umaru97/flickr30k_train_val_test from the hub, and HF_HUB_OFFLINE is set" in message
    assert "set IMAGE_WEIGHTS, TEXT_WEIGHTS, FLICKR30K_HUB to local copies" in message
    assert message.endswith(HINT)


def test_local_copies_are_enough(experiments: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = experiments / "flickr30k/study.yaml"
    monkeypatch.setenv("IMAGE_WEIGHTS", str(tmp_path / "swin.pth"))
    with pytest.raises(ValueError, match=r"study\.yaml needs bert-base-uncased from the hub.*: set TEXT_WEIGHTS to"):
        check_hub(study)
    (tmp_path / "models--bert-base-uncased").mkdir()
    check_hub(study)
    with pytest.raises(ValueError, match="needs umaru97/flickr30k_train_val_test from the hub"):
        check_hub(experiments / "flickr30k/study_hub.yaml")


def test_overlays_count(tmp_path: Path, experiments: Path) -> None:
    student = f"[{experiments}/flickr30k/sdr.yaml, {experiments}/_base/random_weights.yaml]"
    study = tmp_path / "study.yaml"
    study.write_text(f"student: {student}")
    with pytest.raises(ValueError, match="needs bert-base-uncased from the hub"):  # for the tokenizer
        check_hub(study)


@pytest.mark.parametrize("study", ["flickr30k/study_frozen", "flickr8k/study", "scenes/study"])
def test_studies_that_need_no_hub(study: str, experiments: Path) -> None:
    check_hub(experiments / f"{study}.yaml")
