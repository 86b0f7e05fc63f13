"""sdr evaluate of a trained model on a split of data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning import Retriever
from sdr_lightning.cli.main import main
from sdr_lightning.configure import build_data
from sdr_lightning.metrics import evaluate
from tests.retrieval.conftest import SIZES


def test_a_trained_model_is_evaluated(
    run: Path, model: Retriever, experiments: Path, tmp_path: Path, capsys: Any
) -> None:
    options = ["--data", str(experiments / "data/scenes.yaml"), *SIZES]
    output = tmp_path / "metrics.json"
    assert main(["evaluate", "--model", str(run), *options, "--split", "val", "--output", str(output)]) == 0
    data = build_data(options)
    table, pictures = data.source.table("val"), data.source.images("val")
    images = torch.from_numpy(model.encode_images([pictures[row] for row in range(len(pictures))]))
    texts = torch.from_numpy(model.encode_texts(list(table.captions)))
    expected = evaluate(images, texts, torch.from_numpy(table.caption_image.copy()))
    found = json.loads(output.read_text())
    assert found["rsum"] == pytest.approx(expected["rsum"])
    assert found["i2t_MnR"] == pytest.approx(expected["i2t_MnR"])
    assert found["meta"]["split"] == "val"
    assert found["meta"]["model"] == {"source": str(run), "fingerprint": model.fingerprint()}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "a"], "--model and --data go together"),
        (["--scores", "a", "b", "--split", "val"], "--split is a split of --annotations or of --data"),
        (["--scores", "a", "b", "--data.init_args.x", "1"], "is an option of --data, which is not given"),
        (["--data", "a"], "--model and --data go together"),
        (["--model", "a", "--data", "b", "--scores", "c"], "--model computes what --scores gives"),
        (["--model", "a.pt", "--data", "b"], "no model at a.pt"),
        (["--scores", "a", "--diagnostics"], "--image-teacher and --text-teacher need embeddings, not scores"),
        (["--scores", "a", "--judgements", "b"], "--judgements and --extended need embeddings and --annotations"),
    ],
)
def test_unusable_options_give_one_line(arguments: list[str], complaint: str, capsys: Any) -> None:
    assert main(["evaluate", *arguments]) == 2
    assert complaint in capsys.readouterr().err.splitlines()[0]
