"""Reduce errors of the argument parser to one line, with a suggestion for misspelled names."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from sdr_lightning.training.checkpoints.best import BestCheckpoint

_UNKNOWN = (
    re.compile(r"Option '(?P<name>[\w.]+)' is not accepted"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<name>[\w.]+)"),
    re.compile(r"Key '(?P<name>[\w.]+)' is not expected"),
    re.compile(r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'"),
    re.compile(r"Subcommand '\w+' does not accept option '(?P<name>[\w.]+)'"),
)
_CLASS = re.compile(r"given class_path '(?P<path>[\w.]+)'")
_KEY = re.compile(r'Parser key "(?P<key>[\w.]+)"')
_VALUE = re.compile(r"Given value: (?P<value>.*)")
_TYPE = re.compile(r"^Expected a (?P<type><class '[\w.]+'>|typing\.Literal\[.*\])(\. Got value: (?P<value>.*))?$")
_FRAME = re.compile(r"NoneType'>$|^Subtypes: |^Errors:|^Does not validate|^Given value|^Parser key|^Problem with")
# Messages about the alternative type of a value that may be one object or a list.
_OTHER_FORM = re.compile(
    r"^Expected a <class '(list|dict|bool|collections\.abc\.Iterable)'>$|^Not a valid subclass of|^Subclass types expect"
    r"|^a (class path|dict) "
)
_SECTIONS: dict[str, Callable[..., Any]] = {"trainer": Trainer, "checkpoint": BestCheckpoint}
_TOP = [*_SECTIONS, "model", "data", "seed_everything", "run_dir", "ckpt_path", "config"]


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise parser errors, and errors of Lightning's Trainer options, as a ``ValueError`` of one line."""
    try:
        yield
    except (MisconfigurationException, ModuleNotFoundError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except (ArgumentError, ValueError) as error:
        raise ValueError(one_line(str(error))) from error
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise ValueError(f"the checkpoint is of another model: {' '.join(str(error).split())[:300]}") from error


def one_line(message: str) -> str:
    """Reduce an error message to its cause.

    Args:
        message: message of jsonargparse, often with several lines about nested types. A single line is returned unchanged,
            unless it is about an unknown option.

    Returns:
        The innermost cause; for an unknown key, with the most similar known keys; for an error in a worker process, its message.
    """
    if message.startswith("Caught "):  # in a worker process, whose traceback follows
        return message.rpartition("Error: ")[2].strip()
    for pattern in _UNKNOWN:
        found = pattern.search(message)
        if found:
            owners = _CLASS.findall(message[: found.start()])
            group = f"{found['group']}." if "group" in pattern.groupindex else ""
            return _unknown(group + found["name"], owners[-1] if owners else None)
    if "\n" not in message:
        return message
    causes = [line for line in (raw.strip(" -") for raw in message.splitlines()) if line and not _FRAME.search(line)]
    causes = [line for line in causes if not _OTHER_FORM.search(line)] or causes
    cause = causes[-1] if causes else " ".join(message.split())
    keys = _KEY.findall(message)
    if (expected := _TYPE.match(cause)) is not None:
        value = expected if expected["value"] else _VALUE.search(message)
        cause = f"expected {_readable(expected['type'])}" + (f", got {value['value']!r}" if value else "")
        cause = f"{keys[-1]}: {cause}" if keys else cause
    return cause


def _readable(kind: str) -> str:
    """Format a type: the values of a Literal, or the name of a class.

    >>> _readable("typing.Literal['image', 'text']"), _readable("<class 'int'>")
    ("one of 'image', 'text'", 'int')
    """
    if kind.startswith("typing.Literal"):
        return f"one of {kind.removeprefix('typing.Literal[').removesuffix(']')}"
    return {"collections.abc.Sequence": "a list"}.get(name := kind.removeprefix("<class '").removesuffix("'>"), name)


def _unknown(name: str, owner: str | None) -> str:
    if owner is None:
        return _unknown_option(name.split("."))
    target = _imported(owner)
    where = f"{owner.rsplit('.', 1)[-1]} has no {name!r}"
    return where + _hint(name.split("."), target)


def _unknown_option(parts: list[str]) -> str:
    where = f"there is no option {'.'.join(parts)!r}"
    section = _SECTIONS.get(parts[0])
    if section is None or len(parts) == 1:
        return where + _nearest(parts[0], _TOP)
    return where + _hint(parts[1:], section)


def _hint(parts: list[str], target: Callable[..., Any]) -> str:
    """Suggest names for the first unknown part of a dotted name."""
    parameters = inspect.signature(target, eval_str=True).parameters
    if parts[0] in parameters and len(parts) > 1:
        return _hint(parts[1:], parameters[parts[0]].annotation)
    return _nearest(parts[0], list(parameters))


def _nearest(part: str, known: list[str]) -> str:
    near = get_close_matches(part, known, n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; expected one of {', '.join(known)}"


def _imported(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
