"""A small model, a folder of pictures, and indexes of both kinds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdr_lightning import Index, Retriever, load
from sdr_lightning.configure import build_data
from tests.retrieval.runs import write_fusion_run

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (220, 220, 40), (0, 0, 0), (255, 255, 255), (120, 10, 90)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures in folders, one that is broken, and files that are no pictures."""
    root = tmp_path_factory.mktemp("photos") / "photos"
    for number, colour in enumerate(COLOURS):
        path = root / ("deep/er" if number % 2 else ".") / f"p{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.tile(np.array(colour, np.uint8), (12 + number, 20, 1))
        picture[: 2 + number, :9] = 255 - picture[: 2 + number, :9]
        Image.fromarray(picture).save(path)
    (root / "deep/broken.jpg").write_bytes(b"no picture")
    (root / "notes.txt").write_text("no picture either")
    (root / ".hidden.png").write_bytes(b"")
    return root


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> Path:
    """A run with a fusion encoder on scenes."""
    path = tmp_path_factory.mktemp("runs") / "mine"
    write_fusion_run(path, experiments)
    return path


@pytest.fixture(scope="session")
def model(run: Path) -> Retriever:
    return load(run)


@pytest.fixture(scope="session")
def photos(model: Retriever, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of the pictures of a folder."""
    return Index.build(model, tmp_path_factory.mktemp("index") / "photos.index", images=folder, batch_size=3)


SIZES = [f"--data.init_args.source.init_args.num_{split}=20" for split in ("train", "val", "test")]


@pytest.fixture(scope="session")
def scenes(model: Retriever, experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """An index of images and captions, with graphs."""
    data = build_data(["--data", str(experiments / "data/scenes.yaml"), *SIZES])
    return Index.build(
        model, tmp_path_factory.mktemp("index") / "scenes.index", data=data, approximate=True, copy_pictures=True
    )
