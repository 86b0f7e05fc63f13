import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from sdr_lightning.data.images import ImageFiles, InMemory, Pixels, decode
from sdr_lightning.strings import Strings
from tests.data.pictures import numbers, write_pictures

PICTURE = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Pixels:
    image.save(path, **options)
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2:] == (3,)
    return pixels


def test_rgb_is_exact(tmp_path: Path) -> None:
    np.testing.assert_array_equal(saved(tmp_path / "p.png", Image.fromarray(PICTURE)), PICTURE)


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(PICTURE).quantize(8)
    np.testing.assert_array_equal(saved(tmp_path / "p.png", image), np.asarray(image.convert("RGB")))
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert saved(tmp_path / "q.gif", image)[0, 0].tolist() == [0, 0, 255]


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    pixels = saved(tmp_path / "p.jpg", image, quality=95)
    assert np.abs(pixels.astype(int) - (200, 30, 60)).max() < 12


def test_grey(tmp_path: Path) -> None:
    for mode in ["L", "1", "LA"]:
        grey = np.zeros((6, 6), dtype=np.uint8)
        grey[:, 3:] = 255
        pixels = saved(tmp_path / "p.png", Image.fromarray(grey).convert(mode))
        np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_is_blended_with_white(tmp_path: Path, mode: str) -> None:
    black = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    black.paste((0, 0, 0, 255), (0, 0, 3, 4))
    black.putpixel((5, 3), (0, 0, 0, 128))
    pixels = saved(tmp_path / ("p.tif" if mode == "PA" else "p.png"), black.convert(mode))
    assert (pixels[:, :3] == 0).all()
    assert (pixels[:3, 3:] == 255).all()
    assert mode == "PA" or pixels[3, 5].tolist() == [127] * 3


def test_palette_transparency_is_blended_with_white(tmp_path: Path) -> None:
    for transparency, expected in [(0, [255, 200]), (bytes([255, 128]), [100, 227])]:
        image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "L").convert("P")
        image.putpalette([100] * 3 + [200] * 3)
        pixels = saved(tmp_path / "p.png", image, transparency=transparency)
        assert pixels[0, :, 0].tolist() == expected


def test_16_bits_keep_their_upper_eight(tmp_path: Path) -> None:
    grey = np.random.default_rng(0).integers(0, 65536, (12, 20), dtype=np.uint16)
    pixels = saved(tmp_path / "p.png", Image.fromarray(grey))
    np.testing.assert_array_equal(pixels, np.stack([grey >> 8] * 3, axis=2))


def test_floats_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    grey = np.array([[0, 0.25, 1]], dtype=np.float32)
    assert saved(tmp_path / "p.tif", Image.fromarray(grey))[0, :, 0].tolist() == [0, 64, 255]


def test_values_of_unknown_range_are_refused(tmp_path: Path) -> None:
    for values in [np.int32(-1000), np.int32(70000), np.float32(1.5), np.float32(np.nan)]:
        Image.fromarray(np.full((4, 4), values)).save(tmp_path / "p.tif")
        with pytest.raises(ValueError, match=r"p.tif: it has .*: convert it to 8 or 16 bits; replace the file"):
            decode(tmp_path / "p.tif")


@pytest.mark.parametrize("kind", ["tif", "png", "webp"])
def test_every_orientation_is_applied_once(tmp_path: Path, kind: str) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(PICTURE).save(
            tmp_path / f"p.{kind}", exif=exif, **({"lossless": True} if kind == "webp" else {})
        )
        with Image.open(tmp_path / f"p.{kind}") as image:
            np.testing.assert_array_equal(decode(tmp_path / f"p.{kind}"), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x02\x00"
        + b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
        + b"\x0f\x01\x05\x00\x01\x00\x00\x00\xff\xff\x00\x00",
        b"Exif\x00\x00II*\x00\xff\xff",
    ],
    ids=["a tag out of bounds", "cut short"],
)
def test_a_malformed_exif_block_leaves_the_pixels(tmp_path: Path, block: bytes) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "p.jpg", exif=block)
    assert sorted(decode(tmp_path / "p.jpg").shape) == [3, 12, 20]


def test_rotation_in_exif_is_applied(tmp_path: Path) -> None:
    for orientation, upright in [
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (6, np.rot90(PICTURE, -1)),
        (8, np.rot90(PICTURE, 1)),
    ]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        np.testing.assert_array_equal(saved(tmp_path / "p.png", Image.fromarray(PICTURE), exif=exif), upright)


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp", "ppm"])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str) -> None:
    for kept in [0.5, 0.0]:
        path = tmp_path / f"cut.{suffix}"
        Image.fromarray(np.tile(PICTURE, (10, 10, 1))).save(path)
        path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"cannot read the image {path}: .*; replace the file, or name its id"):
            decode(path)


def html(path: Path) -> None:
    path.write_text("<html>not found</html>")


def bomb(path: Path) -> None:
    path.write_bytes(b"P6 100000 100000 255 ")


def broken_header(path: Path) -> None:
    path.write_bytes(b"P6 ten 10 255 " + bytes(300))


@pytest.mark.parametrize("write", [html, bomb, broken_header, Path.mkdir])
def test_undecodable_file_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "p.jpg"
    write(path)
    with pytest.raises(ValueError, match=f"cannot read the image {path}"):
        decode(path)


def test_files_are_read_by_row(tmp_path: Path) -> None:
    names = ["a.png", "below/b.jpg", "c.gif"]
    write_pictures(tmp_path, names)
    images = ImageFiles(tmp_path, Strings([names[2], names[0], names[1]]))
    assert len(images) == 3
    assert numbers(images) == [2, 0, 1]
    assert images.path(2) == tmp_path / "below/b.jpg"
    with pytest.raises(IndexError):
        images[3]


def test_identity_changes_with_the_file(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    images = ImageFiles(tmp_path, Strings(["a.png", "b.png", "a.png"]))
    before = [images.identity(row) for row in range(3)]
    assert before[0] == before[2] != before[1]
    write_pictures(tmp_path, ["b.png"])
    assert images.identity(0) == before[0]
    assert images.identity(1) != before[1]


def test_equal_files_in_two_folders_have_two_identities(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_pictures(tmp_path / folder, ["a.png"])
        os.utime(tmp_path / folder / "a.png", (0, 0))
    one, two = (ImageFiles(tmp_path / folder, Strings(["a.png"])).identity(0) for folder in ("one", "two"))
    assert one != two
    assert one == ImageFiles(tmp_path / "two" / ".." / "one", Strings(["a.png"])).identity(0)


def test_images_in_memory_are_told_apart_by_their_pixels() -> None:
    images = InMemory([PICTURE, PICTURE.copy(), PICTURE[::-1]])
    assert images.identity(0) == images.identity(1) != images.identity(2)
    assert [row for row, _ in images.stream()] == [0, 1, 2]
