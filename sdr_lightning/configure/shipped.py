"""The experiments of the project by name: ``sdr:scenes/sdr.yaml``, in a checkout and in an installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

PREFIX = "sdr:"
_PACKAGE = Path(__file__).parents[1]


def experiments_folder() -> Path:
    """Return the folder of the experiments: that of the checkout, or their copy in the installed package.

    Raises:
        ValueError: the package was installed without its experiments.
    """
    for found in (_PACKAGE / "experiments", _PACKAGE.parent / "experiments"):
        if (found / "scenes" / "sdr.yaml").is_file():
            return found
    raise ValueError(f"there are no experiments beside {_PACKAGE}: install a wheel of sdr_lightning, or a checkout")


def experiment_path(reference: str) -> str:
    """Resolve ``sdr:NAME`` to the path of the experiment; return anything else unchanged.

    Args:
        reference: such as ``sdr:scenes/sdr.yaml``.

    Raises:
        ValueError: there is no such experiment; with similar names.
    """
    if not reference.startswith(PREFIX):
        return reference
    name = reference.removeprefix(PREFIX)
    known = experiment_names()
    if name not in known:
        near = get_close_matches(name, known, n=2)
        hint = (
            f"did you mean {' or '.join(PREFIX + each for each in near)}?"
            if near
            else f"they are in {experiments_folder()}"
        )
        raise ValueError(f"there is no experiment {reference}: {hint}")
    return str(experiments_folder() / name)


def experiment_names() -> list[str]:
    """Return the names of all experiments, without the prefix."""
    root = experiments_folder()
    return sorted(file.relative_to(root).as_posix() for file in root.rglob("*.yaml"))


def with_experiments(arguments: Sequence[str]) -> list[str]:
    """Resolve the experiments among the words of a command line, ``sdr:NAME`` and ``--OPTION=sdr:NAME``.

    Raises:
        ValueError: there is no such experiment.
    """
    words = []
    for word in arguments:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        words.append(option + equals + (experiment_path(value) if equals or not option else value))
    return words
