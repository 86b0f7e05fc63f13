"""Preprocessing of command line arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

# jsonargparse converts the value of an option nested in two classes to a string, so that null becomes "None".
_NESTED = re.compile(r"--(?P<outer>[\w.]+?\.init_args|data|model)\.(?P<inner>(?!init_args\.)\w+\..+)")


def with_nulls(arguments: Sequence[str]) -> list[str]:
    """Rewrite options whose value is or contains ``null``, so that the parser keeps it at any depth of nesting.

    >>> with_nulls(["--data.init_args.source.init_args.leave_out", "null"])
    ['--data.init_args', '{"source": {"init_args": {"leave_out": null}}}']
    """
    return list(_rewritten(arguments))


def _rewritten(arguments: Sequence[str]) -> Iterator[str]:
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        found = _NESTED.fullmatch(name)
        if found is None:
            yield word
            continue
        if not equals:
            value = next(words, "")
        loaded = _loaded(value)
        if not _holds_none(loaded):
            yield from (word,) if equals else (word, value)
            continue
        for key in reversed(found["inner"].split(".")):
            loaded = {key: loaded}
        yield from (f"--{found['outer']}", json.dumps(loaded))


def _loaded(value: str) -> Any:
    try:
        return yaml.safe_load(value) if value.strip() else value
    except yaml.YAMLError:
        return value


def _holds_none(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_none, value.values()))
    return any(map(_holds_none, value)) if isinstance(value, list) else value is None
