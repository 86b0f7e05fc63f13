"""Feature banks keyed by item id."""

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
from sdr_lightning.strings import Strings
from sdr_lightning.types import Modality

_FORMAT = "sdr-feature-bank-2"
_IDS_IN_HEADER = "sdr-feature-bank-1"  # the earlier format: safetensors limits the header to 100 MB


@dataclass(frozen=True)
class FeatureBank:
    """Features of images or captions, with the id and a content hash of each item.

    Features are looked up by id, and content hashes are compared. A bank of other data, or of the same data with another
    corruption, therefore raises an error.

    Attributes:
        modality: modality of the items.
        ids: N unique ids.
        content: (N,) int64 hashes of the items' content, as returned by the data module.
        features: (N, D) float32, finite.
        source: fingerprint of the tower that computed the features.
        is_placebo: whether the features are random.

    Raises:
        ValueError: the lengths differ, an id is repeated, or a feature is not finite.
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
        """SHA-256 of tower, ids and content hashes."""
        return sha256(self.source, "\n".join(self.ids), self.content.tobytes())

    def rows(self, ids: Sequence[str], content: NDArray[np.int64]) -> Tensor:
        """Return the features of some items, (n, D) in the order of the ids; see :meth:`positions`."""
        return self.features[self.positions(ids, content)]

    def positions(self, ids: Sequence[str], content: NDArray[np.int64]) -> Tensor:
        """Look up items.

        Args:
            ids: n ids.
            content: (n,) int64 current content hashes of the items.

        Returns:
            (n,) int64 rows of :attr:`features`, in the order of the ids.

        Raises:
            ValueError: an id is missing, or the features were computed from other content.
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

    def unchanged(self, ids: Sequence[str], content: NDArray[np.int64]) -> FeatureBank:
        """Select the features of items whose content has not changed.

        Args:
            ids: n ids.
            content: (n,) int64 current content hashes of the items.

        Returns:
            A bank of those items of this bank whose id and content are among the given ones.
        """
        current = dict(zip(ids, content.tolist(), strict=True))
        stored = zip(self.ids, self.content.tolist(), strict=True)
        rows = [row for row, (name, content_hash) in enumerate(stored) if current.get(name) == content_hash]
        kept = np.array(rows, dtype=np.int64)
        features = self.features[torch.from_numpy(kept)]
        return FeatureBank(self.modality, [self.ids[row] for row in rows], self.content[kept], features, self.source)

    @classmethod
    def union(cls, banks: Sequence[FeatureBank]) -> FeatureBank:
        """Concatenate banks of the same tower with disjoint ids."""
        first = banks[0]
        return cls(
            first.modality,
            [item for bank in banks for item in bank.ids],
            np.concatenate([bank.content for bank in banks]),
            torch.cat([bank.features for bank in banks]),
            first.source,
        )

    def placebo(self, seed: int = 0) -> FeatureBank:
        """Replace the features by random ones, as an uninformative teacher for control experiments.

        Args:
            seed: random seed of the standard normal features; each depends on seed, modality, id and width only.

        Returns:
            A bank of the same items.
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
        """Write the bank atomically as a safetensors file."""
        text, offsets = Strings(self.ids).arrays
        tensors = {
            "features": self.features.float().contiguous(),
            "content": torch.from_numpy(self.content),
            "ids": torch.from_numpy(text.copy()),
            "id_offsets": torch.from_numpy(offsets),
        }
        metadata = {
            "format": _FORMAT,
            "modality": self.modality,
            "source": self.source,
            "placebo": str(self.is_placebo),
        }
        write_atomically(path, lambda part: save_file(tensors, part, metadata))

    @classmethod
    def load(cls, path: Path, modality: Modality | None = None) -> FeatureBank:
        """Read a bank; its features are memory-mapped, so processes share them.

        Args:
            path: a file written by :meth:`save`.
            modality: expected modality; not checked when None.

        Raises:
            ValueError: the file is missing, not a bank, or of the other modality.
        """
        if not path.is_file():
            raise ValueError(f"no feature bank at {path}: write one with sdr extract")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") not in (_FORMAT, _IDS_IN_HEADER):
                    raise ValueError(f"{path} is not a feature bank: expected one that sdr extract wrote")
                if modality is not None and metadata["modality"] != modality:
                    raise ValueError(f"{path} is a bank of the {metadata['modality']} modality, expected {modality}")
                if metadata["format"] == _IDS_IN_HEADER:
                    ids = json.loads(metadata["ids"])
                else:
                    ids = list(Strings.packed(*(file.get_tensor(name).numpy() for name in ("ids", "id_offsets"))))
                return cls(
                    metadata["modality"],
                    ids,
                    file.get_tensor("content").numpy(),
                    file.get_tensor("features"),
                    metadata["source"],
                    metadata.get("placebo") == "True",
                )
        except SafetensorError as error:
            raise ValueError(f"{path} is not a feature bank: {error}") from error


def is_bank(path: Path) -> bool:
    """Whether a file was written by :meth:`FeatureBank.save`."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") in (_FORMAT, _IDS_IN_HEADER)
    except (SafetensorError, OSError):
        return False
