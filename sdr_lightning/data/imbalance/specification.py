"""Specification of a corruption (imbalance): its kind, and the share of the data it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdr_lightning.data.table import SPLITS, CaptionTable, Split
from sdr_lightning.identity import stable_hash, stable_hashes
from sdr_lightning.paths import FilePath

Level = Literal["image", "caption"]
Partner = Literal["random", "shared_word", "nearest"]
Kind = Literal[
    "none",
    "mismatch",
    "drop_words",
    "mask_words",
    "truncate",
    "content_words",
    "typos",
    "gaussian_noise",
    "blur",
    "occlusion",
    "low_resolution",
    "low_light",
    "jpeg",
    "missing",
]


class KindOf(NamedTuple):
    """Properties of a kind of corruption.

    Attributes:
        modalities: modalities it can be applied to.
        has_degrees: whether it depends on the severity.
        description: one sentence.
    """

    modalities: tuple[str, ...]
    has_degrees: bool
    description: str


KINDS: dict[Kind, KindOf] = {
    "none": KindOf(("pair",), False, "clean data"),
    "mismatch": KindOf(
        ("pair",),
        False,
        "chosen images lose all their captions to one another (level image), or chosen captions go to images of one "
        "another (level caption)",
    ),
    "drop_words": KindOf(
        ("text",), True, "each word of a chosen caption is dropped with probability 0.15 x severity, one always stays"
    ),
    "mask_words": KindOf(
        ("text",),
        True,
        "each word of a chosen caption becomes [MASK] with probability 0.15 x severity, one always stays",
    ),
    "truncate": KindOf(
        ("text",), True, "a chosen caption keeps the first 1 - 0.15 x severity of its words, rounded up, at least one"
    ),
    "content_words": KindOf(
        ("text",),
        False,
        "a chosen caption loses its function words (articles, prepositions, pronouns, auxiliaries ...)",
    ),
    "typos": KindOf(
        ("text",),
        True,
        "each character of a chosen caption is, with probability 0.03 x severity, dropped, doubled, replaced or swapped",
    ),
    "gaussian_noise": KindOf(
        ("image",), True, "Gaussian noise on chosen images, sigma 0.08/0.12/0.18/0.26/0.38 of the range by severity"
    ),
    "blur": KindOf(
        ("image",), True, "Gaussian blur of chosen images, sigma 1/2/3/4/6 pixels per 224 of the side by severity"
    ),
    "occlusion": KindOf(
        ("image",), True, "a grey rectangle covers 10/20/30/45/60 % of a chosen image, at a place of its own"
    ),
    "low_resolution": KindOf(
        ("image",), True, "chosen images are shrunk to 0.6/0.5/0.4/0.3/0.25 of the side and enlarged again"
    ),
    "low_light": KindOf(
        ("image",),
        True,
        "chosen images are dark (0.6/0.45/0.3/0.2/0.1 of the light) and grainy (60/25/12/5/3 photons a pixel)",
    ),
    "jpeg": KindOf(("image",), True, "chosen images are saved as JPEG with quality 25/18/15/10/7"),
    "missing": KindOf(("image", "text"), False, "chosen captions are empty, or chosen images are blank"),
}


PARTNERS: dict[Partner, str] = {
    "random": "a random chosen item",
    "shared_word": "a random chosen item whose captions share a word of at least three letters that is no function word, no "
    "number and does not end in -ing, -ed or -ly",
    "nearest": "one of the 10 chosen items with the most similar captions: cosine of TF-IDF vectors",
}
"""Kinds of partners of a mismatched item, with descriptions."""


@dataclass(frozen=True)
class Imbalance:
    """Corruption of a share of the data.

    Chosen items are nested: items chosen at a ratio are also chosen at every higher ratio with the same seed.

    Attributes:
        kind: kind of corruption, see :data:`KINDS`.
        ratio: share of chosen items, in [0, 1].
        modality: ``image``, ``text`` or ``pair``; determined by the kind, except for ``missing``, where it is required.
        level: ``image`` chooses images (with all their captions), ``caption`` chooses captions. By default ``caption`` for
            texts, otherwise ``image``.
        severity: 1 (mild) to 5, for kinds that depend on it.
        seed: random seed of the choice and of the noise.
        splits: splits to corrupt; the training split by default.
        file: a noise table from ``sdr noise make`` (``.npz``) or a published index (``.npy``) that replaces all fields except
            the splits; requires ratio 0. ``$NAME`` and ``${NAME:-default}`` are expanded.
        partner: which chosen item a mismatched item exchanges captions with, see :data:`PARTNERS`. Other than ``random``, the
            wrong captions resemble the right ones (hard mismatch), as far as the chosen items allow.

    Raises:
        ValueError: a value is out of range, or values are incompatible.
    """

    kind: Kind = "none"
    ratio: float = 0.0
    modality: Literal["image", "text", "pair"] | None = None
    level: Level | None = None
    severity: int = 5
    seed: int = 0
    splits: tuple[Split, ...] = ("train",)
    file: FilePath | None = None
    partner: Partner = "random"

    def __post_init__(self) -> None:
        object.__setattr__(self, "splits", tuple(self.splits))
        if self.kind not in KINDS:
            raise ValueError(f"unknown imbalance {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"the imbalance ratio must lie in [0, 1], got {self.ratio}")
        if not isinstance(self.severity, int) or self.severity not in range(1, 6):
            raise ValueError(f"the imbalance severity must be 1, 2, 3, 4 or 5, got {self.severity}")
        if not self.splits or not set(self.splits) <= set(SPLITS):
            raise ValueError(f"the imbalance's splits must be some of {', '.join(SPLITS)}, got {list(self.splits)}")
        if self.kind == "none" and self.ratio and self.file is None:
            raise ValueError(
                f"the imbalance ratio {self.ratio} without a kind corrupts nothing: set data.init_args.imbalance.kind, for "
                "example mismatch"
            )
        if self.file is not None and self.ratio:
            raise ValueError(f"the file {self.file} decides the imbalance: drop the ratio, or drop the file")
        possible = KINDS[self.kind].modalities
        if self.modality is None and len(possible) > 1:
            raise ValueError(f"which modality is {self.kind}? expected modality {' or '.join(possible)}")
        if self.modality is not None and self.modality not in possible:
            raise ValueError(f"{self.kind} is done to {' or '.join(possible)}, got modality {self.modality}")
        object.__setattr__(self, "modality", self.modality or possible[0])
        if self.level not in (None, "image", "caption"):
            raise ValueError(f"the imbalance level must be image or caption, got {self.level}")
        if self.level == "caption" and self.modality == "image":
            raise ValueError(f"{self.kind} is done to images: its level is image, got caption")
        object.__setattr__(self, "level", self.level or ("caption" if self.modality == "text" else "image"))
        if self.partner not in PARTNERS:
            raise ValueError(f"the imbalance partner must be one of {', '.join(PARTNERS)}, got {self.partner!r}")
        if self.partner != "random" and self.kind != "mismatch":
            raise ValueError(f"partner {self.partner} is of kind mismatch, got kind {self.kind}: leave partner out")
        if self.kind == "mismatch" and "test" in self.splits:
            raise ValueError("a mismatched test split has no truth to measure against: leave test out of the splits")

    @property
    def active(self) -> bool:
        """Whether anything is changed."""
        return self.file is not None or (self.kind != "none" and self.ratio > 0)

    @property
    def meaning(self) -> str:
        """Description in words."""
        if self.file is not None:
            return f"as the file {self.file} says"
        if self.kind != "mismatch":
            return KINDS[self.kind].description
        if self.level == "image":
            meaning = "chosen images lose all their captions to one another (as in RCL, DECL, L2RM)"
        else:
            meaning = "chosen captions go, one by one, to images of one another (as in NCR, BiCro)"
        return meaning if self.partner == "random" else f"{meaning}; partner: {PARTNERS[self.partner]}"

    @property
    def content_key(self) -> tuple[str, int, int]:
        """What determines the noise of an item, besides its id: kind, severity and seed."""
        name = f"missing {self.modality}" if self.kind == "missing" else self.kind
        return name, self.severity if KINDS[self.kind].has_degrees else 0, self.seed

    def choose(self, table: CaptionTable) -> NDArray[np.int64]:
        """Choose the items to change: those whose ids have the smallest hashes.

        Args:
            table: a split.

        Returns:
            (round(ratio n),) int64 rows of images or captions, depending on the level, in order of their hashes.
        """
        ids = table.image_ids if self.level == "image" else table.caption_ids
        name, _, seed = self.content_key
        order = np.argsort(stable_hashes((name, seed), ids), kind="stable")
        return order[: round(self.ratio * len(ids))]

    def generator(self, item: str) -> np.random.Generator:
        """Return the random generator of one item."""
        return np.random.default_rng(stable_hash(*self.content_key, item) & 0xFFFFFFFFFFFFFFFF)
