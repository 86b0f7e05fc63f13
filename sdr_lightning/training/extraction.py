"""Features of whole splits: teachers' banks, and the features of frozen towers, computed once."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.features.extract import extract
from sdr_lightning.identity import sha256
from sdr_lightning.training.checkpoints.interruption import Interruption, Stopped
from sdr_lightning.types import Modality

_PART_S = 60.0


def split_bank(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device) -> FeatureBank:
    """A tower's features of one split, imbalance included.

    The features are kept in the data module's cache, under a name that the tower's weights and the items' contents decide.
    A frozen tower's features of the same items under another imbalance are used again: only items that are in another state
    than ever before are encoded.

    While they are computed, features are written in parts, every minute and on SIGTERM and Ctrl-C. The next call continues
    from the parts with the batches that are left, so that the features are those of a call that was not interrupted.
    A second process that asks for the same features waits for the first.

    Args:
        tower: image or text tower.
        data: the data module.
        name: which split.
        device: where to compute.

    Returns:
        The bank over the split's images or captions, by row.

    Raises:
        ValueError: a tokenizer that does not fit the text tower.
        Stopped: after SIGTERM or Ctrl-C.
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
    """Run a teacher over splits as a student sees them, imbalance included.

    Args:
        tower: the teacher.
        data: the *student's* data module.
        splits: which splits.
        device: where to compute.

    Returns:
        One bank over the items of all the splits.
    """
    bank = FeatureBank.union([split_bank(tower, data, name, device) for name in splits])
    if (
        not tower.frozen
    ):  # every training gives other weights: the cache would fill with features that are not used again
        for name in splits:
            _bank_file(tower, data, name).unlink(missing_ok=True)
    return bank


def _bank_file(tower: Tower, data: RetrievalDataModule, name: Split) -> Path:
    """Where the features of a split as it is now are kept; its name begins with the :func:`_family`."""
    split = data.split(name)
    ids, content = split.ids(tower.modality), split.content(tower.modality)
    return data.cache / f"{_family(tower, data, name)}-{sha256(chr(10).join(ids), content.tobytes())[:24]}.safetensors"


def _family(tower: Tower, data: RetrievalDataModule, name: Split) -> str:
    """What all banks of a tower and a split share, under whatever imbalance."""
    inputs = data.split(name).input_description(tower.modality)
    return f"{tower.modality}-{sha256(tower.fingerprint(), data.source.name, name, inputs)[:24]}"


def _compute(tower: Tower, data: RetrievalDataModule, name: Split, device: torch.device, file: Path) -> None:
    split, modality = data.split(name), tower.modality
    ids, content = split.ids(modality), split.content(modality)
    files = sorted(data.cache.glob(f"{file.stem}.*.part"))
    if tower.frozen:
        files += sorted(data.cache.glob(f"{file.stem.rpartition('-')[0]}-*.safetensors"))
    found = list(_kept(files, modality, ids, content))
    known = {item for bank in found for item in bank.ids}
    rows = np.array([row for row, item in enumerate(ids) if item not in known], dtype=np.int64)
    if len(rows):
        with Interruption() as interruption:
            parts = _Parts(file, modality, ids, content, tower.fingerprint(), len(rows), interruption)
            items = data.items(name, modality, rows=rows)
            found.append(extract(tower, items, rows, ids, content, device, parts.take))
    whole = FeatureBank.union(found)
    FeatureBank(modality, list(ids), content, whole.rows(ids, content), whole.source).save(file)
    for part in data.cache.glob(f"{file.stem}.*.part"):
        part.unlink()


class _Parts:
    """Writes features as they are computed, part by part, and stops when it is asked to.

    Args:
        file: the bank that they become; a part is named after it and the first row in the part.
        modality: of the items.
        ids: of the split, by row.
        content: of the split, by row.
        source: the tower's fingerprint.
        total: how many items are computed.
        interruption: says when to stop.
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

    def take(self, rows: Tensor, features: Tensor) -> None:
        """Take a batch, and write what was taken since the last part if it is time.

        Raises:
            Stopped: after SIGTERM or Ctrl-C.
        """
        self._rows.append(rows)
        self._features.append(features)
        self.done += len(rows)
        asked = self.interruption.asked
        if asked is not None or time.monotonic() - self._written >= _PART_S:
            self._write()
        if asked is not None:
            raise Stopped(
                asked,
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
    """Hold the lock of a bank, or wait for the process that computes it; the lock file goes when the bank exists."""
    path = file.with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    with contextlib.suppress(NotImplementedError):  # a file system without locks
        try:
            lock.acquire(blocking=False)
        except Timeout:
            sys.stderr.write(f"waiting for another process, which computes the features {file}\n")
            lock.acquire()
    try:
        yield
    finally:
        if file.is_file():
            path.unlink(missing_ok=True)
        lock.release()


def _kept(
    files: Iterable[Path], modality: Modality, ids: Sequence[str], content: NDArray[np.int64]
) -> Iterator[FeatureBank]:
    """What files hold of items as they are now, each item once."""
    wanted = dict(zip(ids, content.tolist(), strict=True))
    for file in files:
        part = FeatureBank.load(file, modality).having(
            list(wanted), np.fromiter(wanted.values(), dtype=np.int64, count=len(wanted))
        )
        if len(part.ids):
            yield part
        for item in part.ids:
            del wanted[item]
        if not wanted:
            return
