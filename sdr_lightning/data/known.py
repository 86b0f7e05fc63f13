"""How large the known splits are."""

from __future__ import annotations

from sdr_lightning.data.table import Split

KNOWN_SIZES: dict[str, dict[Split, tuple[int, int | None]]] = {
    "flickr8k": {"train": (6_000, 30_000), "val": (1_000, 5_000), "test": (1_000, 5_000)},
    "flickr30k": {"train": (29_000, 145_000), "val": (1_014, 5_070), "test": (1_000, 5_000)},
    "coco": {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)},
    "vizwiz": {"test": (7_750, None)},
}
"""Images and captions of Karpathy's splits, by the name of the collection; captions where every copy has the same. VizWiz is
tested on its published validation images, because the captions of its test images are hidden."""
