"""The fingerprint of the code that decides a result."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sdr_lightning.identity import sha256

PACKAGE = Path(__file__).parents[1]
_RUNNER = "studies.jobs"
_LEFT_OUT = ("cli", "configure", "reporting", "results", "studies", "sweeps", "workers")  # options, reports, processes
_INSTALLED = {"site-packages", "dist-packages"}
_Module = tuple[str, Path]
_Documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class CodeReader:
    """Hashes the code that decides the results of jobs. Each file is read once, so use one reader only while no file changes.

    Args:
        package: folder of this package.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self.package = package
        self._origins: dict[str, _Module | None] = {}
        self._modules: dict[str, tuple[str, frozenset[_Module]]] = {}

    def fingerprint(self, classes: Iterable[str]) -> str:
        """Hash the code that decides the result of a job of a study.

        This is the code of the modules that define the given classes, of the module that runs cells, and of all modules that
        they import from their own package, directly or indirectly. Comments, docstrings and the arguments of ``raise`` do not
        count, nor do installed packages, whose versions are recorded, nor the planning of studies, whose options are part of the
        fingerprint of each job.

        Args:
            classes: full names of classes, as the configurations give them in ``class_path``; of this package or any other.

        Returns:
            Hexadecimal SHA-256, the same for every version of Python.
        """
        waiting = {self._origin(name) for name in (f"{self.package.name}.{_RUNNER}", *classes)} - {None}
        found: dict[str, str] = {}
        while waiting:
            module = waiting.pop()
            if module is not None and module[0] not in found:
                found[module[0]], imported = self._read(module)
                waiting |= imported
        return sha256(*(f"{name} {found[name]}" for name in sorted(found)))

    def _read(self, module: _Module) -> tuple[str, frozenset[_Module]]:
        """Hash of a module, and the modules of its own package that it imports."""
        name, file = module
        if name not in self._modules:
            code, imported = _read(file.read_text(encoding="utf-8"), name if file.stem == "__init__" else _parent(name))
            own = name.split(".")[0]
            origins = (self._origin(other) for other in imported if other.split(".")[0] == own)
            self._modules[name] = code, frozenset(origin for origin in origins if origin is not None)
        return self._modules[name]

    def _origin(self, name: str) -> _Module | None:
        if name not in self._origins:
            self._origins[name] = _origin(self.package, name)
        return self._origins[name]


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _origin(package: Path, name: str) -> _Module | None:
    """Name and file of the module that a dotted name is, or is defined in; None for code that does not count."""
    module = _module(package, name)
    owner, _, attribute = name.rpartition(".")
    if module is None and owner:
        module = _module(package, owner)
        passed_on = _passed_on(module) if module is not None else {}
        return _origin(package, passed_on[attribute]) if attribute in passed_on else module
    return None if module is not None and _passed_on(module) else module


def _module(package: Path, name: str) -> _Module | None:
    """Name and file of a module that counts."""
    top, *inner = name.split(".")
    folder: Path | None = package.parent
    if top != package.name:
        spec = find_spec(top) if top.isidentifier() else None
        places = [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]
        folder = next((Path(place).parent for place in places), None)
    if (
        folder is None
        or _INSTALLED & set(folder.parts)
        or (top == package.name and inner[:1] and inner[0] in _LEFT_OUT and ".".join(inner) != _RUNNER)
    ):
        return None
    path = folder.joinpath(top, *inner)
    return next(((name, file) for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _passed_on(module: _Module) -> dict[str, str]:
    """Names re-exported by an ``__init__`` that holds only imports, with their full names; empty for other modules."""
    name, file = module
    return _re_exported(file.read_text(encoding="utf-8"), name) if file.stem == "__init__" else {}


@cache
def _re_exported(source: str, package: str) -> dict[str, str]:
    tree = ast.parse(source)
    if not all(isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.Assign) for node in tree.body):
        return {}
    return {imported.rpartition(".")[2]: imported for imported in _imports(tree, package)}


@cache
def _read(source: str, package: str) -> tuple[str, frozenset[str]]:
    """Hash of the code of a module that counts, and the dotted names that it imports."""
    tree = ast.parse(source)
    return sha256(_text(tree)), frozenset(_imports(tree, package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            yield from (module if alias.name == "*" else f"{module}.{alias.name}" for alias in node.names)


def _text(node: Any) -> str:
    """A syntax tree as text, without docstrings and the arguments of ``raise``."""
    if isinstance(node, list):
        return f"[{','.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    parts = dict(ast.iter_fields(node))
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        parts["exc"] = node.exc.func
    if isinstance(node, _Documented) and ast.get_docstring(node, clean=False) is not None:
        parts["body"] = parts["body"][1:]
    # Empty fields are left out, because every version of Python adds some.
    inner = ",".join(f"{name}={_text(part)}" for name, part in parts.items() if part is not None and part != [])
    return f"{type(node).__name__}({inner})"
