"""What a study needs from the Hugging Face hub, found in its YAML before anything heavy is imported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sdr_lightning.configure.files import merged
from sdr_lightning.configure.shipped import experiment_path
from sdr_lightning.hub import is_cached, why_unavailable
from sdr_lightning.paths import expand, read_yaml

_VARIABLE = re.compile(r"\$\{(\w+):-")


class _Need(NamedTuple):
    """A repository, and the environment variable that names a local copy instead; empty without one."""

    repository: str
    kind: str
    variable: str


def check_hub(study: Path) -> None:
    """Check that the hub answers, if the student or a teacher of a study needs models or data that were not downloaded.

    Takes about a second and three more if the hub does not answer. A study that is malformed passes; reading it reports why.

    Args:
        study: the YAML file of the study.

    Raises:
        ValueError: the hub is needed and does not answer; with the repositories, the variables that name local copies, and
            the study's ``without_hub``.
    """
    document = read_yaml(study, "study")
    missing = [need for need in dict.fromkeys(_needs(document, study.parent)) if not is_cached(*need[:2])]  # type: ignore[arg-type]
    if not missing or (reason := why_unavailable()) is None:
        return
    variables = list(dict.fromkeys(need.variable for need in missing if need.variable))
    remedies = [f"set {', '.join(variables)} to local copies"] if variables else []
    if isinstance(document, dict) and document.get("without_hub"):
        remedies.append(f"run without the hub: {document['without_hub']}")
    names = ", ".join(dict.fromkeys(need.repository for need in missing))
    raise ValueError(
        f"{study} needs {names} from the hub, and {reason}: {', or '.join(remedies) or 'run it where there is a network'}"
    )


def _needs(study: Any, folder: Path) -> Iterator[_Need]:
    if not isinstance(study, dict):
        return
    teachers = study.get("teachers")
    entries = [entry for entry in teachers.values() if isinstance(entry, dict)] if isinstance(teachers, dict) else []
    for part in (study.get("student"), *(entry.get("config") for entry in entries)):
        files = [folder / experiment_path(str(name)) for name in (part if isinstance(part, list) else [part])]
        if all(file.is_file() for file in files):
            yield from _in(merged(files))


def _in(section: Any) -> Iterator[_Need]:
    """The repositories that the classes of a document are configured with."""
    if not isinstance(section, dict):
        return
    name = str(section.get("class_path", "")).rpartition(".")[2]
    options = section.get("init_args")
    options = options if isinstance(options, dict) else {}
    weights, path = options.get("weights"), options.get("path")
    if name == "TimmImageTower" and isinstance(weights, str):
        if _expanded(weights) == "hub":
            yield _Need(f"timm/{options.get('name')}", "model", _variable(weights))
    elif isinstance(weights, str) and _is_repository(weights):
        yield _Need(_expanded(weights), "model", _variable(weights))
    if name == "HuggingFaceSource" and isinstance(path, str) and _is_repository(path):
        yield _Need(_expanded(path), "dataset", _variable(path))
    for inside in section.values():
        yield from _in(inside)


def _is_repository(reference: str) -> bool:
    name = _expanded(reference)
    return bool(name) and not name.startswith(("package:", "/", ".", "~")) and not Path(name).exists()


def _expanded(reference: str) -> str:
    """The reference with its variables; empty if one is not set, which the class itself reports."""
    try:
        return expand(reference)
    except ValueError:
        return ""


def _variable(reference: str) -> str:
    found = _VARIABLE.match(reference)
    return found[1] if found else ""
