"""A parser's complaint in one line, with the nearest right name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

_UNKNOWN = re.compile(
    r"Option '(?P<option>[\w.]+)' is not accepted"
    r"|[Uu]nrecognized arguments: --(?P<argument>[\w.]+)"
    r"|Key '(?P<key>[\w.]+)' is not expected"
    r"|'(?P<nested>[\w.]+)' is not (?:accepted|expected)"
)
_CLASS = re.compile(r"given class_path '(?P<path>[\w.]+)'")
_NOISE = re.compile(r"Expected a <class 'NoneType'>|Subtypes: |Errors:|Does not validate|Given value")


def one_line(complaint: str) -> str:
    """Say what is wrong in one line.

    Args:
        complaint: the message of jsonargparse, often many lines of nested attempts.

    Returns:
        The innermost cause; for an unknown key, with the nearest known ones of the class that refused it.
    """
    unknown = list(_UNKNOWN.finditer(complaint))
    if unknown:
        found = unknown[-1]
        name = next(value for value in found.groupdict().values() if value)
        classes = _CLASS.findall(complaint[: found.start()])
        owner = classes[-1] if classes else None
        return _unknown(name, owner)
    if "\n" not in complaint:
        return complaint
    lines = [line.strip(" -") for line in complaint.splitlines() if line.strip() and not _NOISE.search(line)]
    return lines[-1] if lines else " ".join(complaint.split())


def _unknown(name: str, owner: str | None) -> str:
    leaf = name.rsplit(".", 1)[-1]
    known = _arguments(owner) if owner else _trainer_arguments()
    near = get_close_matches(leaf, known, n=2, cutoff=0.5)
    where = f"{owner.rsplit('.', 1)[-1]} has no {name!r}" if owner else f"there is no option {name!r}"
    if near:
        return f"{where}; did you mean {' or '.join(map(repr, near))}?"
    return f"{where}; it knows {', '.join(sorted(known))}" if owner else where


def _arguments(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    target = getattr(import_module(module), name)
    own = list(inspect.signature(target).parameters)
    nested = [
        field
        for parameter in inspect.signature(target, eval_str=True).parameters.values()
        for field in getattr(parameter.annotation, "__dataclass_fields__", ())
    ]
    return own + nested


def _trainer_arguments() -> Iterable[str]:
    from lightning.pytorch import Trainer

    sections = ["model", "data", "trainer", "checkpoint", "seed_everything", "run_dir", "ckpt_path", "config"]
    return [*sections, *inspect.signature(Trainer).parameters]
