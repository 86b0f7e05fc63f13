"""Published sizes of known splits."""

from __future__ import annotations

from sdr_lightning.data.table import Split

KNOWN_SIZES: dict[str, dict[Split, tuple[int, int | None]]] = {
    "flickr8k": {"train": (6_000, 30_000), "val": (1_000, 5_000), "test": (1_000, 5_000)},
    "flickr30k": {"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)},
    "coco": {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)},
    "vizwiz": {"test": (7_750, None)},
}
"""Numbers of images and captions of Karpathy's splits by collection; None if the number of captions differs between copies.
The VizWiz test split is the published validation split, because the captions of the published test split are hidden."""
