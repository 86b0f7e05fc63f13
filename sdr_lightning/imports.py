"""Modules that other packages import without need are imported on first use instead, in the commands of ``sdr``.

Lightning imports torchmetrics for its base class; torchmetrics imports all of its metrics, with scipy, matplotlib,
transformers and torchvision. timm imports wandb, if it is installed.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import LazyLoader
from types import ModuleType
from typing import Any


def install() -> None:
    """Delay the execution of torchmetrics and wandb from now on; without effect if they are imported already."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _plot(*arguments: Any, **options: Any) -> Any:
    """Stand in for the function of this name until a metric is drawn."""
    plot = import_module("torchmetrics.utilities.plot")
    _ = plot.plot_curve  # a name without a stand-in: executes the module
    return plot.plot_single_or_multi_val(*arguments, **options)


def _after_utilities(name: str) -> ModuleType:
    import_module("torchmetrics.utilities")  # it and torchmetrics.metric import one another; only this order works
    return import_module(name)


_CHEAP: dict[str, Mapping[str, Callable[[], Any]]] = {
    "torchmetrics": {
        "__version__": lambda: import_module("torchmetrics.__about__").__version__,
        "_logger": lambda: logging.getLogger("torchmetrics"),
        "Metric": lambda: _after_utilities("torchmetrics.metric").Metric,
        "MetricCollection": lambda: _after_utilities("torchmetrics.collections").MetricCollection,
    },
    "torchmetrics.utilities.plot": {  # imports matplotlib for its types
        "_AX_TYPE": lambda: Any,
        "_PLOT_OUT_TYPE": lambda: Any,
        "plot_single_or_multi_val": lambda: _plot,
    },
}
"""Names of modules that can be had without executing the module."""


class _Finder(MetaPathFinder):
    """Finds the modules where the other finders find them, with a loader that delays their execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _CHEAP and name != "wandb":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, _CHEAP[name]) if name in _CHEAP else LazyLoader(spec.loader)
        return spec


class _Loader(Loader):
    """Executes a module when a name is used that is not cheap. The modules of a package can be imported before."""

    def __init__(self, loader: Loader, cheap: Mapping[str, Callable[[], Any]]) -> None:
        self._loader, self._cheap = loader, cheap

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        def on_demand(name: str) -> Any:
            if name in self._cheap:
                return self._cheap[name]()
            if name.startswith("__"):  # asked for by tools that look through all modules
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
            del module.__dict__["__getattr__"]
            self._loader.exec_module(module)
            return getattr(module, name)

        module.__dict__["__getattr__"] = on_demand
