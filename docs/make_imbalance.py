"""Write docs/imbalance.md, from its template, and its pictures: every kind of imbalance, shown on a generated scene.

python docs/make_imbalance.py
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sdr_lightning.data.imbalance import KINDS, PARTNERS, Imbalance, NoiseTable, imbalanced
from sdr_lightning.data.imbalance.pictures import IMAGE_KINDS
from sdr_lightning.data.imbalance.texts import TEXT_KINDS
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.table import CaptionTable
from sdr_lightning.paths import write_atomically, write_text

DOCS = Path(__file__).parent
SIDE, GAP, HEADING, LABEL = 112, 6, 18, 116
CAPTION = "A brown dog runs through the shallow water while two children watch it from the shore."
SEVERITIES = (1, 3, 5)
OTHERS = (
    "A black dog jumps over a fallen tree.",
    "Two brown dogs run along the shore of a lake.",
    "A man in a red jacket climbs a snowy mountain.",
    "A woman sells fruit at a market.",
    "Children play in the water near the shore.",
    "A white dog runs through deep water.",
    "A football player kicks the ball.",
)

TEMPLATE = DOCS / "imbalance.template.md"


def pictures() -> Image.Image:
    """A row a kind: the clean image, then severities 1 to 5."""
    kinds = [kind for kind in IMAGE_KINDS if kind != "missing"]
    scene = SceneSource(size=SIDE, num_train=8, num_val=1, num_test=1).images("train")[5]
    smooth = np.linspace(0, 60, SIDE, dtype=np.uint8)  # a gradient behind it, for blur and JPEG to work on
    clean = np.clip(scene.astype(int) + smooth[:, None, None], 0, 255).astype(np.uint8)
    width, height = LABEL + 6 * (SIDE + GAP), HEADING + len(kinds) * (SIDE + GAP)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(("clean", *map(str, range(1, 6)))):
        draw.text((LABEL + column * (SIDE + GAP) + 4, 3), heading, fill="black")
    for row, kind in enumerate(kinds):
        top = HEADING + row * (SIDE + GAP)
        draw.text((4, top + SIDE // 2 - 6), kind, fill="black")
        sheet.paste(Image.fromarray(clean), (LABEL, top))
        for severity in range(1, 6):
            generator = Imbalance(kind, 1.0, severity=severity).generator("example")
            poor = IMAGE_KINDS[kind](clean, severity, generator)
            sheet.paste(Image.fromarray(poor), (LABEL + severity * (SIDE + GAP), top))
    return sheet


def texts() -> str:
    """A row a kind and severity."""
    rows = []
    for kind in TEXT_KINDS:
        for severity in SEVERITIES if KINDS[kind].has_degrees else (5,):
            imbalance = Imbalance(kind, 1.0, modality="text", severity=severity)
            table = CaptionTable("example", "train", ["image"], [CAPTION], ["caption"], np.zeros(1, dtype=np.int64))
            left = imbalanced(table, [imbalance]).table.captions[0]
            rows.append(f"| `{kind}` | {severity if KINDS[kind].has_degrees else ''} | {left or '(nothing)'} |")
    return "\n".join(rows)


def wrong_captions() -> str:
    """A row a kind of partner: the caption that the image of the first caption gets."""
    captions = [CAPTION, *OTHERS]
    table = CaptionTable("example", "train", captions, captions, captions, np.arange(len(captions)))
    rows = []
    for partner in PARTNERS:
        imbalance = Imbalance("mismatch", 1.0, level="caption", partner=partner, seed=15)
        paired = NoiseTable.draw(table, imbalance).caption_image
        rows.append(f"| `{partner}` | {captions[int(np.flatnonzero(paired == 0)[0])]} |")
    return "\n".join(rows)


def histogram(level: str, images: int) -> str:
    """Images with 0 to 5 wrong captions at 40 %, as cells."""
    ids = [str(i) for i in range(images)]
    captions = [f"{i}.{k}" for i in ids for k in range(5)]
    table = CaptionTable("example", "train", ids, captions, captions, np.repeat(np.arange(images), 5))
    counts = NoiseTable.draw(table, Imbalance("mismatch", 0.4, level=level)).wrong_captions_per_image
    return " | ".join(f"{counts.get(wrong, 0):,}" for wrong in range(6))


def main() -> None:
    """Fill the template in and draw the pictures."""
    images = 29_000
    kinds = "\n".join(
        f"| `{kind}` | {' or '.join(entry.modalities)} | {entry.description} |"
        for kind, entry in KINDS.items()
        if kind != "none"
    )
    page = TEMPLATE.read_text(encoding="utf-8").format(
        kinds=kinds,
        images=images,
        partners="\n".join(f"| `{partner}` | {description} |" for partner, description in PARTNERS.items()),
        right=CAPTION,
        wrong=wrong_captions(),
        by_image=histogram("image", images),
        by_caption=histogram("caption", images),
        caption=CAPTION,
        texts=texts(),
    )
    sheet = pictures()
    write_atomically(DOCS / "images" / "imbalance.png", lambda part: sheet.save(part, optimize=True))
    write_text(DOCS / "imbalance.md", page)
    print("docs/imbalance.md and docs/images/imbalance.png are written")


if __name__ == "__main__":
    main()
