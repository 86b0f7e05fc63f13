"""Hashes that are the same on every machine and in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def stable_hash(*parts: object) -> int:
    """Return a signed 64-bit hash of the parts' text; unlike ``hash``, it does not depend on the process."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def stable_hashes(prefix: tuple[object, ...], items: Iterable[str]) -> NDArray[np.int64]:
    """Return :func:`stable_hash` of ``(*prefix, item)`` for every item, (N,) int64."""
    base = hashlib.blake2b("".join(f"{part}\x1f" for part in prefix).encode(), digest_size=8)
    hashes = []
    for item in items:
        digest = base.copy()
        digest.update(item.encode())
        hashes.append(int.from_bytes(digest.digest(), "little", signed=True))
    return np.array(hashes, dtype=np.int64)


def sha256(*parts: str | bytes) -> str:
    """Return the hexadecimal SHA-256 of the parts, each followed by a separator."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\x1f")
    return digest.hexdigest()
