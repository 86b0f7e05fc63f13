"""Generated scenes as a table of picture files, as a user has them."""

from pathlib import Path

from PIL import Image

from sdr_lightning.data import SceneSource


def write_scene_files(folder: Path, count: int, table: str, header: str) -> None:
    """Write scenes as PNG files, and a CSV table with the name of a file and a caption in each row.

    Args:
        folder: of the files; the table is written beside it.
        count: number of scenes.
        table: name of the table.
        header: its first line.
    """
    source = SceneSource(num_train=count, num_val=1, num_test=1)
    scenes, images = source.table("train"), source.images("train")
    folder.mkdir()
    for row in range(len(images)):
        Image.fromarray(images[row]).save(folder / f"{row}.png")
    rows = [f'{image}.png,"{text}"' for image, text in zip(scenes.caption_image, scenes.captions, strict=True)]
    (folder.parent / table).write_text("\n".join([header, *rows]) + "\n")
