"""Read the ``.wandb`` file of an offline W&B run.

The file is a LevelDB log (https://github.com/google/leveldb/blob/main/doc/log_format.md) with a header of seven bytes that
starts with ``:W&B``. Its records are serialised ``Record`` messages of wandb's protocol.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_BLOCK, _HEADER, _START = 32768, 7, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class TrackedRun:
    """Contents of a W&B run.

    Attributes:
        id: identifier of the run.
        config: configuration by key.
        summary: last values by key.
        history: logged values by key, one entry per step.
        meta: project, entity, group, tags, job_type, notes and display_name.
    """

    id: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)


def read_tracked(path: Path) -> TrackedRun:
    """Read a ``.wandb`` file; a truncated file is read up to its last complete record.

    Raises:
        ValueError: the file has another format or is damaged, or wandb is not installed.
    """
    try:
        from wandb.proto.wandb_internal_pb2 import Record
    except ModuleNotFoundError as error:
        raise ValueError("reading .wandb files needs wandb: pip install 'sdr_lightning[wandb]'") from error
    run = TrackedRun()
    for data in _records(path):
        record = Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id = record.run.run_id
            run.meta = {
                **{
                    name: getattr(record.run, name)
                    for name in ("project", "entity", "notes", "job_type", "display_name")
                },
                "group": record.run.run_group,
                "tags": list(record.run.tags),
            }
            run.config |= _items(record.run.config.update)
        elif kind == "config":
            run.config |= _items(record.config.update)
        elif kind == "summary":
            run.summary |= _items(record.summary.update)
        elif kind == "history":
            run.history.append(_items(record.history.item))
    return run


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    if content[:4] != b":W&B":
        raise ValueError(f"{path} is not a file of a W&B run: expected :W&B as its first bytes")
    position, parts = _START, list[bytes]()
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:  # padding at the end of a block
            position += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[position : position + _HEADER])
        data = content[position + _HEADER : position + _HEADER + length]
        if len(data) < length:
            return
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or checksum != zlib.crc32(data, zlib.crc32(bytes([kind]))):
            raise ValueError(f"{path} is damaged at byte {position}")
        position += _HEADER + length
        parts = [data] if kind in (_FULL, _FIRST) else [*parts, data]
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
