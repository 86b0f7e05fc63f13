"""Modal imbalance: what is done to a share of the training data, as a pure function of ids and specification.

The protocols are this project's own; the paper's are not published. Sources of the definitions:
    [0] Qin et al., "Deep Evidential Learning with Noisy Correspondence" (DECL), 2022, and the RCL and L2RM lines of work:
        mismatch at image level: whole images lose all their captions.
    [1] Hendrycks and Dietterich, "Benchmarking Neural Network Robustness" (ImageNet-C), ICLR 2019: Gaussian noise.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.table import CaptionTable
from sdr_lightning.identity import sha256, stable_hash, stable_hashes

Kind = Literal["none", "mismatch", "missing_words", "gaussian_noise"]

KINDS: dict[Kind, str] = {
    "none": "clean data",
    "mismatch": "pair: the chosen images lose all their captions and get those of another chosen image",
    "missing_words": "text: each word of a chosen caption is dropped with probability 0.15 x severity, one always stays",
    "gaussian_noise": "image: Gaussian noise on the chosen images, sigma 0.08/0.12/0.18/0.26/0.38 of the range by severity",
}
_SIGMAS = (0.08, 0.12, 0.18, 0.26, 0.38)  # [1]
_DROP_STEP = 0.15


@dataclass(frozen=True)
class Imbalance:
    """What is wrong with how much of the training data.

    The choice of items is nested: what is chosen at a ratio is chosen at every greater one with the same seed.

    Attributes:
        kind: see :data:`KINDS`.
        ratio: share of the images (``mismatch``, ``gaussian_noise``) or captions (``missing_words``), in [0, 1].
        severity: of ``missing_words`` and ``gaussian_noise``, 1 (mild) to 5; a mismatch has no degrees.
        seed: of the choice and of the noise.
    """

    kind: Kind = "none"
    ratio: float = 0.0
    severity: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown imbalance {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"the imbalance ratio must lie in [0, 1], got {self.ratio}")
        if self.severity not in range(1, 6):
            raise ValueError(f"the imbalance severity must be 1, 2, 3, 4 or 5, got {self.severity}")

    @property
    def has_degrees(self) -> bool:
        """Whether the severity means anything."""
        return self.kind in ("missing_words", "gaussian_noise")

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return self.kind != "none" and self.ratio > 0


@dataclass(frozen=True)
class Realised:
    """What an imbalance came to on a table.

    Attributes:
        imbalance: the specification.
        affected: number of items changed.
        of: number of items that could have been.
        sha256: of the changed table, so that two runs can be seen to share it.
        wrong_captions_per_image: how many images have 0, 1, 2 ... captions of another image.
    """

    imbalance: Imbalance
    affected: int
    of: int
    sha256: str
    wrong_captions_per_image: dict[int, int]

    @property
    def ratio(self) -> float:
        """Share of the items that were changed."""
        return self.affected / self.of

    def record(self) -> dict[str, Any]:
        """Plain values for a run's record."""
        histogram = {str(wrong): images for wrong, images in self.wrong_captions_per_image.items()}
        return {
            **asdict(self.imbalance),
            "asked_ratio": self.imbalance.ratio,
            "ratio": self.ratio,
            "affected": self.affected,
            "of": self.of,
            "sha256": self.sha256,
            "wrong_captions_per_image": histogram,
        }


def chosen(ids: list[str] | tuple[str, ...], imbalance: Imbalance) -> NDArray[np.int64]:
    """The rows that an imbalance changes, in an order of its own.

    Args:
        ids: N unique ids.
        imbalance: the specification.

    Returns:
        (round(ratio N),) int64 rows: the ids with the smallest hashes of (kind, seed, id).
    """
    order = np.argsort(stable_hashes((imbalance.kind, imbalance.seed), ids), kind="stable")
    return order[: round(imbalance.ratio * len(ids))]


def imbalanced(table: CaptionTable, imbalance: Imbalance) -> tuple[CaptionTable, Realised]:
    """Apply what an imbalance does to pairing and captions; noise on pixels is :func:`noisy_pixels`.

    Args:
        table: a clean split.
        imbalance: the specification.

    Returns:
        The changed table (the same ids), and what was done.

    Raises:
        ValueError: a mismatch of a single image, which has no other to swap captions with.
    """
    changed, affected, of = table, 0, len(table.image_ids)
    if imbalance.kind == "missing_words":
        of = len(table.captions)
    if imbalance.active:
        rows = chosen(list(table.caption_ids if imbalance.kind == "missing_words" else table.image_ids), imbalance)
        affected = len(rows)
        if imbalance.kind == "mismatch":
            changed = _mismatched(table, rows)
        elif imbalance.kind == "missing_words":
            changed = _shortened(table, rows, imbalance)
    wrong = np.bincount(
        changed.caption_image[changed.caption_image != table.caption_image], minlength=len(table.image_ids)
    )
    histogram = {int(k): int(n) for k, n in enumerate(np.bincount(wrong)) if n}
    pixels = imbalance if imbalance.kind == "gaussian_noise" else ""
    return changed, Realised(imbalance, affected, of, sha256(changed.fingerprint, str(pixels)), histogram)


def noisy_images(table: CaptionTable, imbalance: Imbalance) -> NDArray[np.bool_]:
    """(N,) which images carry noise."""
    noisy = np.zeros(len(table.image_ids), dtype=bool)
    if imbalance.active and imbalance.kind == "gaussian_noise":
        noisy[chosen(list(table.image_ids), imbalance)] = True
    return noisy


def noisy_pixels(pixels: NDArray[np.uint8], image_id: str, imbalance: Imbalance) -> NDArray[np.uint8]:
    """Gaussian noise on one image, a function of its id and the specification.

    Args:
        pixels: (H, W, 3) uint8.
        image_id: of the image.
        imbalance: of kind ``gaussian_noise``.

    Returns:
        (H, W, 3) uint8.
    """
    generator = _generator(imbalance, image_id)
    noise = generator.standard_normal(pixels.shape, dtype=np.float32) * (255 * _SIGMAS[imbalance.severity - 1])
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def _mismatched(table: CaptionTable, rows: NDArray[np.int64]) -> CaptionTable:
    if len(rows) == 1:
        raise ValueError(
            f"{table.name} {table.split}: a mismatch needs at least two chosen images, the ratio gives one"
        )
    # Each chosen image hands its captions to the next in the hash's order: nobody keeps its own.
    receiver = np.arange(len(table.image_ids))
    receiver[rows] = np.roll(rows, -1)
    return replace(table, caption_image=receiver[table.caption_image])


def _shortened(table: CaptionTable, rows: NDArray[np.int64], imbalance: Imbalance) -> CaptionTable:
    captions = list(table.captions)
    for row in rows:
        generator = _generator(imbalance, table.caption_ids[row])
        words = captions[row].split()
        if not words:
            continue
        keep = generator.random(len(words)) >= _DROP_STEP * imbalance.severity
        if not keep.any():
            keep[generator.integers(len(words))] = True
        captions[row] = " ".join(word for word, kept in zip(words, keep, strict=True) if kept)
    return replace(table, captions=captions)


def _generator(imbalance: Imbalance, item: str) -> np.random.Generator:
    key = stable_hash(imbalance.kind, imbalance.severity, imbalance.seed, item)
    return np.random.default_rng(key & 0xFFFFFFFFFFFFFFFF)
