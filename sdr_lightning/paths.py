"""Paths with environment variables, reading and atomic writing of files, and locks."""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import BaseFileLock, FileLock, Timeout

if TYPE_CHECKING:
    FilePath = str
    PathOrName = str
else:

    class FilePath(str):
        """An option that names a file or folder, relative to the YAML file that contains it.

        On the command line it is relative to the current folder. ``$NAME`` and ``${NAME:-default}`` are expanded from the
        environment when it is used.
        """

    class PathOrName(str):
        """An option that names a file or folder as :class:`FilePath`, or a model or dataset of the hub.

        A name such as ``bert-base-uncased`` is a path if a file or folder of that name exists.
        """


_VARIABLE = re.compile(r"\$(?:\{(?P<braced>\w+)(?::-(?P<default>[^}]*))?\}|(?P<plain>\w+))")
_PACKAGE = "package:"
_CLAIMED: dict[Path, FileLock] = {}  # released by the operating system when the process ends
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK}


def expand(reference: str) -> str:
    """Expand ``$NAME``, ``${NAME}`` and ``${NAME:-default}`` from the environment, and ``~``.

    Raises:
        ValueError: a variable without default is not set or empty.
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

    Absolute paths, ``~``, ``package:...``, URLs and paths that begin with a variable are returned unchanged; the default of a
    leading ``${NAME:-default}`` is made absolute.

    Args:
        reference: the path as written.
        folder: folder that it is relative to.
        may_be_name: return a reference unchanged if it does not exist and does not begin with a dot.
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
    """Resolve ``package:NAME/SUBFOLDER`` to a folder inside an installed package; return anything else unchanged.

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
    """Read the lines of a text file, split at newline characters only.

    Raises:
        ValueError: the file is missing or not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig").removesuffix("\n").split("\n")
    except OSError as error:
        raise ValueError(f"no text file at {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: Path, expected: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        expected: description of the expected content, for error messages.

    Raises:
        ValueError: the file is missing, not UTF-8, or not JSON.
    """
    collecting = gc.isenabled()
    gc.disable()  # with millions of objects, garbage collection takes three times as long as parsing
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
    """Create or replace a file atomically: readers see either the old or the complete new file.

    Args:
        path: the file; its folder is created.
        write: writes the content to a temporary path in the same folder, with the same suffix.
        exclusive: do not replace an existing file, even if another process creates it concurrently.

    Raises:
        ValueError: `exclusive` is set and the file exists.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # instead of the temporary file's name
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # the content must be on disk before the file is renamed
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
    """Check that an output does not replace a file that the command reads, or a file of another origin.

    Call it before the work starts.

    Args:
        path: the output file.
        reads: files that the command reads; None is ignored.
        is_own: whether an existing file is an earlier output of the same command; false by default.

    Raises:
        ValueError: the output would replace such a file, or cannot be written.
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
    """Check that a folder can be created or written to.

    Raises:
        ValueError: it cannot; with the existing path that prevents it.
    """
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        why = "is a file" if not existing.is_dir() else "cannot be written to"
        raise ValueError(f"nothing can be written to {folder}: {existing} {why}; choose another folder")


def claim(folder: Path) -> None:
    """Lock a folder for this process until the process ends; create it if missing.

    Forked children do not inherit the lock. On a file system without locks, nothing is locked.

    Raises:
        ValueError: another process has locked it.
    """
    folder = folder.resolve()
    if folder in _CLAIMED:
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", thread_local=False, fallback_to_soft=False)
    try:
        _acquire(lock, blocking=False)
    except Timeout as error:
        raise ValueError(f"another process works in {folder}: wait for it, or stop it") from error
    _CLAIMED[folder] = lock


@contextlib.contextmanager
def locked(file: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock of a file during the block, after any other process has released it.

    The folder of the file is created if missing. On a file system without locks, nothing is locked.

    Args:
        file: the lock file.
        waiting: printed to stderr if another process holds the lock.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file, fallback_to_soft=False)
    try:
        _acquire(lock, blocking=False)
    except Timeout:
        if waiting:
            sys.stderr.write(f"{waiting}\n")
        _acquire(lock, blocking=True)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, blocking: bool) -> None:
    try:
        lock.acquire(blocking=blocking)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def read_yaml(path: Path, what: str) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        what: what the file holds, for error messages.

    Raises:
        ValueError: the file cannot be read, or is not YAML in UTF-8, in one line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"no {what} at {path} ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a value atomically as indented JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str, exclusive: bool = False) -> None:
    """Write a text file atomically in UTF-8; see :func:`write_atomically`."""

    def write(part: Path) -> None:
        part.write_text(text, encoding="utf-8")

    write_atomically(path, write, exclusive)
