"""``sdr export`` and ``sdr push``: files, model card, ONNX graphs, and the hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr_lightning import load
from sdr_lightning.cli import export as command
from sdr_lightning.cli.main import main
from sdr_lightning.metrics.evaluation import evaluate_queries
from sdr_lightning.metrics.files import save_evaluation
from sdr_lightning.paths import write_json
from sdr_lightning.retrieval.onnx import FUSION, IMAGE, TEXT
from tests.retrieval.runs import write_fusion_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> Path:
    """A run on mismatched scenes, with its record."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_fusion_run(folder, experiments)
    part = {"kind": "mismatch", "modality": "text", "ratio": 0.4}
    write_json(folder / "run.json", {"data": {"train": {"imbalances": [part]}}})
    write_json(
        folder / "results.json", {"training": {"kept": {"val/rsum": 123.4}, "checkpoint": "checkpoints/best.ckpt"}}
    )
    return folder


def write_metrics(path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, texts, pairing = (
        torch.randn(6, 4, generator=generator),
        torch.randn(12, 4, generator=generator),
        torch.arange(12) // 2,
    )
    found = evaluate_queries(images, texts, pairing)
    meta = {"protocol": "clean", "split": "test", "images": 6, "texts": 12, "ties": "index", "siblings": "keep"}
    meta |= {"folds": None, "data": "x", "notes": [], "code": {"version": "0", "commit": None, "dirty": False}}
    save_evaluation(path, found.metrics, found.queries, pairing, meta)


def test_the_card_is_made_from_the_record(run: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        write_metrics(tmp_path / f"{seed}/metrics.json", seed)
    metrics = [str(tmp_path / f"{seed}/metrics.json") for seed in (0, 1)]
    assert command.run([str(run), "--output", str(tmp_path / "mine"), "--metrics", *metrics]) == 0
    card = (tmp_path / "mine/README.md").read_text()
    assert card.startswith("---\nlibrary_name: sdr_lightning\n")
    assert "| corruption of the training data | mismatch of text, ratio 0.4 |" in card
    assert "| rsum on the validation split, at the selected epoch | 123.4 |" in card
    assert "6 images and 12 captions, protocol clean, 2 seeds, 95 % bootstrap intervals over images and seeds." in card
    assert "| rsum | " in card
    assert str(run.parent) not in card


@pytest.mark.slow
def test_onnx_graphs_agree_with_torch(
    run: Path, experiments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    sizes = ("--data.init_args.source.init_args.num_test=20", "--data.init_args.source.init_args.num_train=20")
    output = tmp_path / "mine"
    options = ["--format", "onnx", "--int8", "--data", str(experiments / "data/scenes.yaml"), *sizes]
    assert command.run([str(run), "--output", str(output), *options]) == 0
    printed = capsys.readouterr().out
    assert all(graph in printed for graph in (IMAGE, TEXT, FUSION, "rsum"))
    model = load(output)
    texts = ["a red cube", "a large blue cylinder right of a small green cone"]
    tokens = model.preprocessing.texts(texts)
    images = model.preprocessing.images([np.full((9, 9, 3), value, dtype=np.uint8) for value in (0, 200)])
    graphs = {name: onnxruntime.InferenceSession(output / "onnx" / name) for name in (IMAGE, TEXT, FUSION)}
    image, image_tokens = graphs[IMAGE].run(None, {"pixels": images.numpy()})
    ids, mask = (part.numpy() for part in tokens)
    text, text_tokens = graphs[TEXT].run(None, {"input_ids": ids, "attention_mask": mask})
    assert image @ text.T == pytest.approx(model.score(list(np.moveaxis(images.numpy(), 1, 3)), texts), abs=1e-5)
    fed = {"image_tokens": image_tokens, "text_tokens": text_tokens, "attention_mask": mask}
    logits = graphs[FUSION].run(None, fed)[0]
    pictures = list(np.moveaxis(images.numpy(), 1, 3))
    expected = [model.match(picture, [caption])[0] for picture, caption in zip(pictures, texts, strict=True)]
    assert logits == pytest.approx(np.array(expected), abs=1e-4)
    # Padding has no effect, which an export without attention mask would get wrong.
    alone = model.preprocessing.texts(texts[:1])
    one = graphs[TEXT].run(
        None, {"input_ids": alone.input_ids.numpy(), "attention_mask": alone.attention_mask.numpy()}
    )[0]
    assert one == pytest.approx(text[:1], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["export", "RUN", "--output", "TMP"], "exists already: choose a new folder"),
        (["export", "RUN", "--output", "TMP/new", "--int8"], "--int8 and --data are for --format onnx"),
        (["export", "TMP", "--output", "TMP/new"], "is no run of sdr fit: there is no config.yaml"),
        (["fit", "--config", "sdr:scenes/sdr.yaml", "--export", "TMP"], "exists already: choose a new folder"),
        (["test", "--config", "RUN/config.yaml", "--export", "TMP/new"], "is an option of sdr fit, not of sdr test"),
        (["push", "TMP", "me/mine"], "was not written by sdr export"),
    ],
)
def test_mistakes_give_one_line_and_write_nothing(
    run: Path, tmp_path: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(run)).replace("TMP", str(tmp_path)) for word in arguments]
    assert main(words) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_export_that_fails_leaves_nothing(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("disk full")

    monkeypatch.setattr("sdr_lightning.retrieval.onnx.export_onnx", fail)
    with pytest.raises(ValueError, match="disk full"):
        command.run([str(run), "--output", str(tmp_path / "mine"), "--format", "onnx"])
    assert not list(tmp_path.iterdir())
    assert json.loads((run / "results.json").read_text())
