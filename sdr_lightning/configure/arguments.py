"""Command line arguments: preprocessing, selection, the classes that they name, and ``sys.argv``."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from itertools import islice
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


def split_options(arguments: Sequence[str], prefixes: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Separate the options whose names start with a prefix, ``--NAME VALUE`` or ``--NAME=VALUE``, from all other words.

    Returns:
        The options with these prefixes, the other words.

    >>> split_options(["check", "--data.x", "1", "--fast"], ("--data.",))
    (['--data.x', '1'], ['check', '--fast'])
    """
    selected: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith(prefixes):
            selected += [word] if "=" in word else [word, *islice(words, 1)]
        else:
            others.append(word)
    return selected, others


def imported_class(path: str) -> type:
    """Import a class by its whole name.

    Raises:
        ValueError: there is no such class.
    """
    module, _, name = path.rpartition(".")
    try:
        found: type = getattr(import_module(module), name)
        if not inspect.isclass(found):
            raise ValueError(f"{path} is a {type(found).__name__}")
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"there is no class {path}: give its whole name, such as sdr_lightning.data.TabularSource"
        ) from error
    return found


@contextlib.contextmanager
def program_arguments(words: Sequence[str]) -> Iterator[None]:
    """Let ``sys.argv`` be other words during the block, for code that reads it: scripts, and Lightning, which starts the
    further processes of a run by it."""
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before


def _loaded(value: str) -> Any:
    try:
        return yaml.safe_load(value) if value.strip() else value
    except yaml.YAMLError:
        return value


def _holds_none(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_none, value.values()))
    return any(map(_holds_none, value)) if isinstance(value, list) else value is None
