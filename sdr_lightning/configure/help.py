"""Help for all configuration keys: value, type and description, from signatures and docstrings."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

import docstring_parser
from lightning.pytorch import Trainer

from sdr_lightning.configure.arguments import imported_class
from sdr_lightning.configure.files import merged_settings
from sdr_lightning.configure.teacher import TeacherFiles
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.retrieval_module import RetrievalModule

_COMMAND = """usage: sdr {command} --config FILE [--config FILE ...] [--KEY VALUE ...]

Every key of a YAML file is an option; later values override earlier ones. --config FILE --help=all shows the keys of that
experiment with their values. --model.help, --data.help and --trainer.help show one section, --data.help CLASS one class.
"""
_OWN = {
    "config FILE": "configuration; may be repeated, later ones override earlier ones",
    "run_dir DIR": "folder of the run (default: named by date)",
    "ckpt_path FILE": "checkpoint to test or to resume from; for fit also last",
    "export FOLDER": "fit only: afterwards export the model there as sdr export does, and log it to the W&B run if there is one",
    "protocol clean|paper": "clean: as configured; paper: as in the authors' public code, see docs/sdr.md",
    "seed_everything INT": "seed of initialisation, batch order and choice of corrupted items (default: 0)",
}
_SECTIONS: dict[str, type] = {"model": RetrievalModule, "data": RetrievalDataModule}
_ROLE = re.compile(r":\w+:`~?(?:[\w.]+\.)?(\w+)`")  # a cross reference of the documentation


def help_text(command: str, arguments: Sequence[str]) -> str:
    """Return the help text of a command that takes a configuration.

    Args:
        command: name of the command, such as ``fit``.
        arguments: its arguments, including a help option.

    Returns:
        All keys for ``--help=all``, those of one section for ``--data.help`` and the like, with the values of ``--config`` and
        ``--data`` files.

    Raises:
        ValueError: a configuration cannot be read, or a class does not exist.
    """
    words = [part for word in arguments for part in ([word] if not word.startswith("--") else word.split("=", 1))]
    section = next((word[2:-5] for word in words if word.endswith(".help")), None)
    if section is not None:
        following = words[words.index(f"--{section}.help") + 1 :]
        if following and not following[0].startswith("-"):
            return "\n".join(_keys(imported_class(following[0]), "init_args", {})).replace("--init_args.", "init_args.")
    settings = merged_settings(words, _has_option)
    if section == "trainer":
        return "\n".join(_keys(Trainer, "trainer", settings.get("trainer", {})))
    lines: list[str] = []
    if section is None:
        lines = [_COMMAND.format(command=command)]
        for name, meaning in _OWN.items():
            lines += _entry(name, meaning)
    for name in _SECTIONS if section is None else (section,):
        lines += ["", *_object(_SECTIONS[name], name, settings.get(name))]
    if section is None:
        lines += [
            "",
            "checkpoint: selection of the weights to keep",
            *_keys(BestCheckpoint, "checkpoint", settings.get("checkpoint", {})),
        ]
        for modality in ("image", "text"):
            name = f"{modality}_teacher"
            lines += [
                "",
                f"{name}: teacher for the data of the student",
                *_keys(TeacherFiles, name, settings.get(name, {})),
            ]
        lines += ["", "trainer: Lightning's Trainer, see --trainer.help"]
        names = " ".join(f"--trainer.{name}" for name in inspect.signature(Trainer).parameters)
        lines += textwrap.wrap(names, _width(), initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def _has_option(class_path: str, name: str) -> bool:
    return name in inspect.signature(imported_class(class_path)).parameters


def _object(expected: type, prefix: str, value: Any, meaning: str = "") -> Iterator[str]:
    """Describe a key that holds an object: its class and the keys of the class."""
    given = value if isinstance(value, dict) else {}
    chosen = imported_class(str(given["class_path"])) if "class_path" in given else expected
    kinds = _below(expected)
    if kinds and "class_path" not in given:
        if not inspect.isabstract(expected) and expected is not Tower:  # a tower of its own does not encode
            kinds.append(expected)
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        choice = f"one of {names} ({expected.__module__.rpartition('.')[0]}), or your own class"
        yield from _entry(f"{prefix}.class_path (required)", f"{meaning} {choice}")
        return
    yield from _entry(f"{prefix}: {chosen.__name__}", meaning)
    inner = prefix if hasattr(expected, "__dataclass_fields__") else f"{prefix}.init_args"
    yield from _keys(chosen, inner, given.get("init_args", given) or {})


def _keys(kind: Any, prefix: str, values: dict[str, Any]) -> Iterator[str]:
    """Describe the parameters of a class as options, with their values."""
    meanings = _meanings(kind)
    hints = get_type_hints(kind.__init__)
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        hint, meaning, key = hints.get(name), meanings.get(name, ""), f"{prefix}.{name}"
        ours = next((part for part in (hint, *get_args(hint)) if _is_ours(part)), None)
        if ours is not None:
            yield from _object(ours, key, values.get(name), meaning)
            continue
        value = values.get(name, parameter.default)
        shown = f"{key} (required)" if value is inspect.Parameter.empty else f"{key} = {_short(value)}"
        yield from _entry(shown, f"{meaning} {_kind(hint, str(parameter.annotation))}")


def _kind(hint: Any, annotation: str) -> str:
    """Format the type of an option: the values of a Literal, or the annotation."""
    literals = [value for part in (hint, *get_args(hint)) if get_origin(part) is Literal for value in get_args(part)]
    if literals:
        return f"[{' | '.join(map(str, literals))}]"
    return f"[{annotation.replace('PathOrName', 'path or name').replace('FilePath', 'path')}]"


def _entry(name: str, meaning: str) -> list[str]:
    text = textwrap.wrap(" ".join(meaning.split()), _width(), initial_indent="        ", subsequent_indent="        ")
    return [f"  --{name}", *text]


def _meanings(kind: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in (kind, *kind.__mro__[1:-1]):
        for text in (part.__doc__, part.__init__.__doc__):
            for parameter in docstring_parser.parse(text or "").params:
                found.setdefault(parameter.arg_name, _ROLE.sub(r"\1", (parameter.description or "").replace("``", "")))
    return found


def _is_ours(kind: Any) -> bool:
    return (
        inspect.isclass(kind)
        and kind.__module__.startswith("sdr_lightning.")
        and kind.__module__ != "sdr_lightning.paths"
    )


def _below(kind: Any) -> list[type]:
    """Return the concrete subclasses of a class."""
    found: list[type] = []
    for subclass in kind.__subclasses__():
        found += [subclass] if not inspect.isabstract(subclass) else []
        found += _below(subclass)
    return found


def _short(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."


def _width() -> int:
    return min(120, shutil.get_terminal_size((100, 24)).columns)
