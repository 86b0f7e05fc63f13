"""Paths and outputs: references with environment variables, and files that are never half-written."""

from __future__ import annotations

import errno
import fcntl
import gc
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    FilePath = str
    PathOrName = str
else:

    class FilePath(str):
        """An option that names a file or folder; relative to the YAML file that it stands in.

        On the command line it is relative to the current folder. ``$NAME`` and ``${NAME:-default}`` are filled in from the
        environment when it is used.
        """

    class PathOrName(str):
        """An option that names a file or folder as :class:`FilePath` does, or a model or dataset of the hub.

        A word such as ``bert-base-uncased`` is a path where there is a file or folder of that name.
        """


_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))")
_PACKAGE = "package:"
_CLAIMED: dict[Path, IO[str]] = {}  # closed, and so given back, when the process ends in whatever way


def expand(reference: str) -> str:
    """Fill in ``$NAME``, ``${NAME}`` and ``${NAME:-default}`` from the environment, and ``~``.

    Raises:
        ValueError: a variable without default is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        found = os.environ.get(name) or match["default"]
        if found is None:
            raise ValueError(
                f"{reference!r} needs the environment variable {name}, which is not set or empty: export {name}=..."
            )
        return found

    return (
        str(Path(expanded).expanduser()) if (expanded := _VARIABLE.sub(value, reference)).startswith("~") else expanded
    )


def anchored(reference: str, folder: Path, may_be_name: bool = False) -> str:
    """Make a relative path absolute.

    Absolute paths, ``~``, ``package:...``, addresses and what begins with a variable stay as they are; the default of a
    leading ``${NAME:-default}`` is anchored.

    Args:
        reference: the path as it was written.
        folder: what it is relative to.
        may_be_name: leave what is not there, and does not begin with a dot, as the name of something else.
    """
    if (found := _VARIABLE.match(reference)) is not None:
        if not found["default"]:
            return reference
        default = anchored(found["default"], folder, may_be_name)
        return f"${{{found['braced']}:-{default}}}{reference[found.end() :]}"
    if not reference or reference.startswith(("/", "~", _PACKAGE)) or "://" in reference:
        return reference
    path = Path(os.path.normpath(folder / reference))
    if may_be_name and not reference.startswith(".") and not _VARIABLE.search(reference) and not path.exists():
        return reference
    return str(path)


def package_path(reference: str) -> str:
    """Resolve ``package:NAME/SUBFOLDER`` to a folder inside an installed package; return anything else as it is.

    Raises:
        ValueError: the package is not installed.
    """
    if not reference.startswith(_PACKAGE):
        return reference
    name, _, inside = reference.removeprefix(_PACKAGE).partition("/")
    if not name.isidentifier():
        raise ValueError(f"{reference!r} should read package:NAME/FOLDER, with the name that is imported")
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{reference!r} names the package {name}, which is not installed: pip install {name}")
    return str(Path(spec.submodule_search_locations[0]) / inside)


def text_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: no such file, or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"no text file at {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path, expected: str) -> Any:
    """A JSON file.

    Args:
        path: the file.
        expected: what it should be, for the message.

    Raises:
        ValueError: no such file, not UTF-8, or not JSON.
    """
    collecting = gc.isenabled()
    gc.disable()  # looking for cycles among millions of new objects takes three times as long as making them
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"no file at {path} ({error.strerror}): expected {expected}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
    finally:
        if collecting:
            gc.enable()


def write_atomically(path: Path, write: Callable[[Path], None], exclusive: bool = False) -> None:
    """Create or replace a file in one step: a reader sees the old file or the whole new one.

    Args:
        path: the file; its folder is made.
        write: writes the content to the temporary path it is given, in the same folder and with the same suffix.
        exclusive: never replace a file, not even one that another process makes at the same moment.

    Raises:
        ValueError: an exclusive file that is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # not the name of the temporary file
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # the name must not outlive a power cut that the content does not
        temporary.chmod(0o644)
        if exclusive:
            os.link(temporary, path)
        else:
            temporary.replace(path)
    except FileExistsError as error:
        raise ValueError(f"{path} is there already, and of another run: choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_output(
    path: Path, reads: Iterable[str | Path | None] = (), is_own: Callable[[Path], bool] = lambda _: False
) -> None:
    """Refuse an output that would replace a file that the command reads, or one that the command did not write.

    Call it before the work starts.

    Args:
        path: the output file.
        reads: files that the command reads; None is passed over.
        is_own: whether an existing file is an earlier output of the same command; by default none is.

    Raises:
        ValueError: names the file and what to do.
    """
    for file in reads:
        if file is not None and path.resolve() == Path(file).resolve():
            raise ValueError(f"the output {path} is a file that this command reads: choose another name")
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder: name a file")
    check_folder(path.parent)
    if path.exists() and path.stat().st_size and not is_own(path):
        raise ValueError(f"{path} exists and was not written by this command: choose another name, or move it away")


def check_folder(folder: Path) -> None:
    """Refuse a folder that can neither be written to nor made.

    Raises:
        ValueError: names the folder that is in the way.
    """
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "is a file" if not existing.is_dir() else "cannot be written to"
        raise ValueError(f"nothing can be written to {folder}: {existing} {why}; choose another folder")


def claim(folder: Path) -> None:
    """Hold a folder for this process alone, until the process ends; make it if there is none.

    Raises:
        ValueError: another process holds it.
    """
    folder = folder.resolve()
    if folder in _CLAIMED:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("a")  # a file of that name stays as it is
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(f"another process works in {folder}: wait for it, or stop it") from error
        return  # a file system without locks
    _CLAIMED[folder] = lock


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; numbers that are not finite, which JSON does not have, as null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str, exclusive: bool = False) -> None:
    """Write a text file in UTF-8, atomically; see :func:`write_atomically`."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_atomically(path, write, exclusive)
