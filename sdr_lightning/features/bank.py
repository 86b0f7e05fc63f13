"""A bank of features keyed by sample id."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sdr_lightning.identity import sha256, stable_hash
from sdr_lightning.paths import write_atomically
from sdr_lightning.types import Modality

_FORMAT = "sdr-feature-bank-1"


@dataclass(frozen=True)
class FeatureBank:
    """Features of images or captions, each kept with the id and the content of the item it was computed from.

    Rows are looked up by id, never by position, and the content is compared, so a bank of other data, or of the same
    data under another imbalance, is refused instead of used.

    Attributes:
        modality: what the items are.
        ids: N ids, unique.
        content: (N,) int64 hash of each item's content, as the data module gives it.
        features: (N, D) float32.
        source: fingerprint of the tower that computed the features.
        is_placebo: the features are random, and say nothing of the items.
    """

    modality: Modality
    ids: Sequence[str]
    content: NDArray[np.int64]
    features: Tensor
    source: str
    is_placebo: bool = False

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.features) or len(self.ids) != len(self.content):
            raise ValueError(
                f"a bank needs one id and one content hash for each feature, got {len(self.ids)} ids, "
                f"{len(self.content)} hashes, {len(self.features)} features"
            )
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"a bank needs unique ids, got {len(self.ids) - len(set(self.ids))} repeated ones")
        if not bool(torch.isfinite(self.features).all()):
            raise ValueError(f"a bank needs finite features; the {self.modality} tower gave NaN or infinity")

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return int(self.features.shape[1])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tower, ids and contents."""
        return sha256(self.source, "\n".join(self.ids), self.content.tobytes())

    def rows(self, ids: Sequence[str], content: NDArray[np.int64]) -> Tensor:
        """The features of some items, (n, D) in the order of the ids; see :meth:`positions`."""
        return self.features[self.positions(ids, content)]

    def positions(self, ids: Sequence[str], content: NDArray[np.int64]) -> Tensor:
        """Find some items in this bank.

        Args:
            ids: n ids.
            content: (n,) int64 hash of each item's content now.

        Returns:
            (n,) int64 rows of :attr:`features`, in the order of the ids.

        Raises:
            ValueError: ids that the bank lacks, or items whose content is not what the features were computed from.
        """
        if len(ids) != len(content):
            raise ValueError(f"every id needs a content hash, got {len(ids)} ids and {len(content)} hashes")
        position = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in ids if name not in position]
        if missing:
            raise ValueError(
                f"the {self.modality} bank lacks {len(missing)} of {len(ids)} ids, first {missing[0]!r}: "
                "it was extracted from other data; run sdr extract on this data"
            )
        rows = np.fromiter((position[name] for name in ids), dtype=np.int64, count=len(ids))
        changed = np.flatnonzero(self.content[rows] != content)
        if len(changed):
            raise ValueError(
                f"the {self.modality} bank was extracted from other content for {len(changed)} of {len(ids)} ids, "
                f"first {ids[int(changed[0])]!r}: other data or another imbalance; run sdr extract on this data"
            )
        return torch.from_numpy(rows)

    def having(self, ids: Sequence[str], content: NDArray[np.int64]) -> FeatureBank:
        """The part of this bank that holds features of some items as they are now.

        Args:
            ids: n ids.
            content: (n,) int64 hash of each item's content now.
        """
        now = dict(zip(ids, content.tolist(), strict=True))
        rows = [
            row
            for row, (name, was) in enumerate(zip(self.ids, self.content.tolist(), strict=True))
            if now.get(name) == was
        ]
        kept = np.array(rows, dtype=np.int64)
        features = self.features[torch.from_numpy(kept)]
        return FeatureBank(self.modality, [self.ids[row] for row in rows], self.content[kept], features, self.source)

    @classmethod
    def union(cls, banks: Sequence[FeatureBank]) -> FeatureBank:
        """One bank of several of the same tower, whose ids are disjoint."""
        first = banks[0]
        return cls(
            first.modality,
            [item for bank in banks for item in bank.ids],
            np.concatenate([bank.content for bank in banks]),
            torch.cat([bank.features for bank in banks]),
            first.source,
        )

    def placebo(self, seed: int = 0) -> FeatureBank:
        """The same bank with random features: a teacher that knows nothing, for the study's control.

        Args:
            seed: of the standard normal features; each is a function of seed, modality, id and width.
        """
        rows = [
            np.random.default_rng(
                [seed & 0xFFFFFFFF, stable_hash(self.modality, name) & 0xFFFFFFFFFFFFFFFF]
            ).standard_normal(self.width)
            for name in self.ids
        ]
        features = torch.from_numpy(np.stack(rows)).float()
        return FeatureBank(
            self.modality, self.ids, self.content, features, sha256("placebo", str(seed), self.source), True
        )

    def save(self, path: Path) -> None:
        """Write the bank as one safetensors file, atomically."""
        tensors = {"features": self.features.float().contiguous(), "content": torch.from_numpy(self.content)}
        metadata = {
            "format": _FORMAT,
            "modality": self.modality,
            "source": self.source,
            "placebo": str(self.is_placebo),
            "ids": json.dumps(list(self.ids), ensure_ascii=False),
        }
        write_atomically(path, lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: Path, modality: Modality | None = None) -> FeatureBank:
        """Read a bank; its features stay in the file, which all processes of a machine map into their memory.

        Args:
            path: the file that :meth:`save` wrote.
            modality: the modality the caller expects; not checked when None.

        Raises:
            ValueError: no such file, not a bank, or a bank of the other modality.
        """
        if not path.is_file():
            raise ValueError(f"no feature bank at {path}: write one with sdr extract")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"{path} is not a feature bank: expected one that sdr extract wrote")
                if modality is not None and metadata["modality"] != modality:
                    raise ValueError(f"{path} is a bank of the {metadata['modality']} modality, expected {modality}")
                return cls(
                    metadata["modality"],
                    json.loads(metadata["ids"]),
                    file.get_tensor("content").numpy(),
                    file.get_tensor("features"),
                    metadata["source"],
                    metadata.get("placebo") == "True",
                )
        except SafetensorError as error:
            raise ValueError(f"{path} is not a feature bank: {error}") from error


def is_bank(path: Path) -> bool:
    """Whether :meth:`FeatureBank.save` wrote a file."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == _FORMAT
    except (SafetensorError, OSError):
        return False
