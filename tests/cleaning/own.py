"""A user's table with mismatched captions, duplicates, leakage and captions that say little or nothing."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sdr_lightning.data import RetrievalDataModule, SceneTokenizer, TabularSource
from sdr_lightning.data.images import Pixels

COLOURS = {"red": (220, 20, 20), "green": (20, 180, 40), "blue": (30, 60, 230), "yellow": (240, 220, 30)}
PLACES = ("top left", "top right", "bottom left", "bottom right")
FORMULA, SCRIPT, FILE = "=1+1 a red circle", "<script>x", "IMG_1234.jpg"
TRAIN, COPIED, LEAKED = 160, 100, 105


class Own(NamedTuple):
    """The table.

    Attributes:
        folder: holds captions.csv and images/.
        wrong: ids of captions that were exchanged.
    """

    folder: Path
    wrong: set[str]


def colours(number: int) -> list[str]:
    """Colours of the quarters of a picture."""
    return [list(COLOURS)[int(k)] for k in np.random.default_rng(number).integers(0, 4, 4)]


def picture(number: int) -> Pixels:
    """A picture of four coloured quarters."""
    found = [COLOURS[name] for name in colours(number)]
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    for place, colour in enumerate(found):
        pixels[8 * (place // 2) : 8 * (place // 2) + 8, 8 * (place % 2) : 8 * (place % 2) + 8] = colour
    pixels[0, 0] = (number % 256, number // 256, 7)  # so that pictures of the same colours differ
    return pixels


def caption(number: int, order: Sequence[int] = (0, 1, 2, 3)) -> str:
    """A caption that names the colours of a picture."""
    found = colours(number)
    return " and ".join(f"{found[k]} at the {PLACES[k]}" for k in order)


def write_own(folder: Path, wrong: int = 30) -> Own:
    """Write pictures and captions, two for each, of which some of the first ``2 * wrong`` are exchanged.

    Train holds ``0.png`` ... and ``copy.bmp``, whose pixels are those of ``100.png``; test holds ``leak.png``, those of
    ``105.png``.
    """
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for number in range(TRAIN + 20):
        Image.fromarray(picture(number)).save(images / f"{number}.png")
        split = "train" if number < TRAIN else "val"
        rows += [[f"{number}.png", caption(number), split], [f"{number}.png", caption(number, (3, 1, 0, 2)), split]]
    for row in range(wrong):  # a caption moves to the next picture
        rows[4 * row][1], rows[4 * row + 2][1] = rows[4 * row + 2][1], rows[4 * row][1]
    Image.fromarray(picture(COPIED)).save(images / "copy.bmp")
    Image.fromarray(picture(LEAKED)).save(images / "leak.png")
    rows += [["copy.bmp", caption(COPIED), "train"], ["leak.png", caption(LEAKED), "test"]]
    rows += [["70.png", text, "train"] for text in (FORMULA, SCRIPT, FILE, "", "...", "red")]
    with (folder / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "part", "remark"])
        writer.writerows([*row, "=kept"] for row in rows)
    exchanged = [k for k in range(2 * wrong) if colours(k) != colours(k ^ 1)]
    return Own(folder, {f"{number}.png#0" for number in exchanged})


def own_data(own: Own, cache: Path, table: str | Path | None = None, batch: int = 64) -> RetrievalDataModule:
    """The data module of the table, or of another with its columns."""
    source = TabularSource(
        "own", str(table or own.folder / "captions.csv"), str(own.folder / "images"), split_column="part"
    )
    return RetrievalDataModule(source, SceneTokenizer(), 32, 32, cache=str(cache), evaluation_batch_size=batch)
