"""Strings packed into two arrays."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray


class Strings(Sequence[str]):
    """An immutable list of strings, stored as UTF-8 bytes and offsets.

    Reading an item of a Python list changes its reference count, so forked workers end up with copies of the whole list.
    Arrays stay shared.

    Args:
        items: N strings.

    Raises:
        UnicodeEncodeError: a string has a lone surrogate.
    """

    def __init__(self, items: Iterable[str]) -> None:
        encoded = [item.encode() for item in items]
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._offsets = np.fromiter(accumulate(map(len, encoded), initial=0), dtype=np.int64, count=len(encoded) + 1)

    @classmethod
    def packed(cls, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> Strings:
        """Create from UTF-8 bytes and N + 1 offsets, without copying."""
        strings = cls.__new__(cls)
        strings._bytes, strings._offsets = data, offsets
        return strings

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The UTF-8 bytes and the N + 1 offsets, see :meth:`packed`."""
        return self._bytes, self._offsets

    @staticmethod
    def holds(item: str) -> bool:
        """Whether a string can be stored, i.e. has no lone surrogate."""
        try:
            item.encode()
        except UnicodeEncodeError:
            return False
        return True

    @cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the strings and their boundaries."""
        return hashlib.sha256(self._offsets.tobytes() + self._bytes.tobytes()).hexdigest()

    @cached_property
    def repeated(self) -> str | None:
        """A string that occurs more than once; None if all differ."""
        return next((item for item, count in Counter(self).items() if count > 1), None)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> Strings: ...
    def __getitem__(self, row: int | slice) -> str | Strings:
        if isinstance(row, slice):
            return Strings(self[i] for i in range(*row.indices(len(self))))
        row = row + len(self) if row < 0 else row
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} strings")
        return self._bytes[self._offsets[row] : self._offsets[row + 1]].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        whole = self._bytes.tobytes()
        return (whole[start:end].decode() for start, end in pairwise(self._offsets.tolist()))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Strings({list(self[:3])}{' ...' if len(self) > 3 else ''}, {len(self)} in all)"
