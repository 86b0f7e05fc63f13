"""Feature extraction over whole splits, for teachers and frozen towers, with an on-disk cache."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.head import HeadTower
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import extract
from sdr_lightning.identity import sha256
from sdr_lightning.paths import locked
from sdr_lightning.training.checkpoints.interruption import Interruption, Stopped
from sdr_lightning.types import Modality

_PART_SECONDS = 60.0


def split_bank(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device) -> FeatureBank:
    """Return the features of one split, with its corruption applied, from the cache or computed.

    The cache file is named by the tower's fingerprint and the contents of the items. For a frozen tower, features cached
    under another corruption, or for other images of the split, are reused for all items whose content is the same. A
    :class:`~sdr_lightning.encoders.HeadTower` is applied to the features of its backbone, which are found in this way.

    Partial results are written every minute and on SIGTERM and Ctrl-C. The next call computes only the missing batches, and
    the features equal those of an uninterrupted call. A second process that needs the same file waits for the first.

    Args:
        tower: image or text tower.
        data: the data module.
        name: the split.
        device: device to compute on.

    Returns:
        A bank over the images or captions of the split, in row order.

    Raises:
        ValueError: the tokenizer does not fit the text tower.
        Stopped: on SIGTERM or Ctrl-C.
    """
    modality, file = tower.modality, _bank_file(tower, data, name)
    if modality == "text":
        check_tokens(tower, data.tokenizer.vocabulary_size, data.tokenizer.max_tokens)
    if tower.frozen and file.is_file():
        return FeatureBank.load(file, modality)
    with _locked(file):
        if not file.is_file():
            _compute(tower, data, name, device, file)
        return FeatureBank.load(file, modality)


def extract_bank(tower: Tower, data: RetrievalDataModule, splits: Sequence[Split], device: torch.device) -> FeatureBank:
    """Extract the features of a teacher over a student's splits, with their corruption applied.

    Args:
        tower: the teacher.
        data: the data module of the *student*.
        splits: the splits.
        device: device to compute on.

    Returns:
        One bank over the items of all splits.
    """
    bank = FeatureBank.union([split_bank(tower, data, name, device) for name in splits])
    if not tower.frozen:  # trained weights differ in every run, so the cached features would never be reused
        for name in splits:
            _bank_file(tower, data, name).unlink(missing_ok=True)
    return bank


def _bank_file(tower: Tower, data: RetrievalDataModule, name: Split) -> Path:
    """Return the cache file of a split's features: :func:`_bank_prefix` and a hash of the items' contents."""
    split = data.split(name)
    ids, content = split.ids(tower.modality), split.content(tower.modality)
    digest = sha256(chr(10).join(ids), content.tobytes())[:24]
    return data.cache / f"{_bank_prefix(tower, data, name)}-{digest}.safetensors"


def _bank_prefix(tower: Tower, data: RetrievalDataModule, name: Split) -> str:
    """Return the file name prefix shared by all corruptions of a split."""
    inputs = data.split(name).input_description(tower.modality)
    return f"{tower.modality}-{sha256(tower.fingerprint(), data.source.name, name, inputs)[:24]}"


def _compute(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device, file: Path) -> None:
    split, modality = data.split(name), tower.modality
    ids, content = split.ids(modality), split.content(modality)
    if isinstance(tower, HeadTower):
        features = tower.head_features(split_bank(tower.backbone, data, name, device).rows(ids, content))
        FeatureBank(modality, list(ids), content, features, tower.fingerprint()).save(file)
        return
    files = sorted(data.cache.glob(f"{file.stem}.*.part"))
    if tower.frozen:
        files += sorted(data.cache.glob(f"{file.stem.rpartition('-')[0]}-*.safetensors"))
    found = list(_cached_items(files, modality, ids, content))
    known = {item for bank in found for item in bank.ids}
    rows = np.array([row for row, item in enumerate(ids) if item not in known], dtype=np.int64)
    if len(rows):
        with Interruption() as interruption:
            writer = _PartWriter(file, modality, ids, content, tower.fingerprint(), len(rows), interruption)
            items = data.items(name, modality, rows=rows)
            found.append(extract(tower, items, rows, ids, content, device, writer.add))
    whole = FeatureBank.union(found)
    FeatureBank(modality, list(ids), content, whole.rows(ids, content), whole.source).save(file)
    for part in data.cache.glob(f"{file.stem}.*.part"):
        part.unlink()


class _PartWriter:
    """Writes features to disk in parts while they are computed, and stops on a signal.

    Args:
        file: the final bank; parts are named after it and their first row.
        modality: modality of the items.
        ids: item ids of the split, by row.
        content: content hashes of the split, by row.
        source: fingerprint of the tower.
        total: number of items to compute.
        interruption: signals received so far.
    """

    def __init__(
        self,
        file: Path,
        modality: Modality,
        ids: Sequence[str],
        content: NDArray[np.int64],
        source: str,
        total: int,
        interruption: Interruption,
    ) -> None:
        self.file, self.modality, self.ids, self.content, self.source = file, modality, ids, content, source
        self.total, self.done, self.interruption = total, 0, interruption
        self._rows: list[Tensor] = []
        self._features: list[Tensor] = []
        self._written = time.monotonic()

    def add(self, rows: Tensor, features: Tensor) -> None:
        """Add a batch; write a part every minute and on a signal.

        Raises:
            Stopped: on SIGTERM or Ctrl-C.
        """
        self._rows.append(rows)
        self._features.append(features)
        self.done += len(rows)
        received = self.interruption.received
        if received is not None or time.monotonic() - self._written >= _PART_SECONDS:
            self._write()
        if received is not None:
            raise Stopped(
                received,
                f"after {self.done} of {self.total} {self.modality} features; they are kept, the same command continues",
            )

    def _write(self) -> None:
        rows = torch.cat(self._rows).numpy()
        ids, features = [self.ids[row] for row in rows], torch.cat(self._features)
        part = FeatureBank(self.modality, ids, self.content[rows], features, self.source)
        part.save(self.file.with_suffix(f".{rows[0]:010d}.part"))
        self._rows, self._features, self._written = [], [], time.monotonic()


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold the lock of a bank while computing it; the lock file is removed once the bank exists."""
    path = file.with_suffix(".lock")
    with locked(path, f"waiting for another process, which computes the features {file}"):
        try:
            yield
        finally:
            if file.is_file():
                path.unlink(missing_ok=True)


def _cached_items(
    files: Iterable[Path], modality: Modality, ids: Sequence[str], content: NDArray[np.int64]
) -> Iterator[FeatureBank]:
    """Yield banks from cached files that together hold each item of matching content at most once."""
    wanted = dict(zip(ids, content.tolist(), strict=True))
    for file in files:
        part = FeatureBank.load(file, modality).unchanged(
            list(wanted), np.fromiter(wanted.values(), dtype=np.int64, count=len(wanted))
        )
        if len(part.ids):
            yield part
        for item in part.ids:
            del wanted[item]
        if not wanted:
            return
