"""Pictures that tell their number by their size, and a ragged collection of them that every reader is tested on."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from sdr_lightning.data.images import Images
from sdr_lightning.data.source import Source
from sdr_lightning.data.table import Split

RAGGED = {"a.png": 2, "b.png": 1, "bare.png": 0, "c.png": 20}  # captions of each picture
TOLD = ["a.png", "b.png", "c.png"]


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (10 + number, 8), (40 * number % 256, 0, 200))


def write_pictures(folder: Path, names: Iterable[str]) -> None:
    """The first name is picture 0, the next one picture 1 ..."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)


def numbers(images: Images) -> list[int]:
    """The number of the picture in every row, in the order of the rows."""
    found = {row: image.shape[1] - 10 for row, image in images.stream()}
    return [found[row] for row in range(len(images))]


def captions_of(name: str) -> list[str]:
    """What a file says of a picture; readers drop what is too much of the blanks."""
    return [f" {name}  is\nseen {k} times" for k in range(RAGGED[name])]


def numbered_ids(image_ids: Sequence[str]) -> list[str]:
    return [f"{i}#{k}" for i, name in zip(image_ids, TOLD, strict=True) for k in range(RAGGED[name])]


def check_ragged(
    source: Source, image_ids: Sequence[str], caption_ids: Sequence[str], bare: str, split: Split = "train"
) -> None:
    """A source holds the ragged collection, without the picture that has no caption, and says so."""
    table = source.table(split)
    assert table.name == source.name
    assert table.split == split
    assert table.image_ids == image_ids
    assert table.captions == [f"{name} is seen {k} times" for name in TOLD for k in range(RAGGED[name])]
    assert table.caption_ids == caption_ids
    assert table.caption_image.tolist() == [0] * 2 + [1] + [2] * 20
    assert numbers(source.images(split)) == [0, 1, 3]
    (problem,) = source.problems(split)
    assert (problem.what, problem.first, problem.fatal) == ("images have no caption", (bare,), False)
