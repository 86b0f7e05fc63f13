"""Building students, teachers and data from YAML files and command line options.

The names below are imported when they are first used: modules that parse words only, such as
:mod:`sdr_lightning.configure.shipped`, start without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdr_lightning.configure.lightning_cli import build, parse, run
    from sdr_lightning.configure.parts import build_data, build_method, student_data
    from sdr_lightning.configure.teacher import teacher_tower

__all__ = ["build", "build_data", "build_method", "parse", "run", "student_data", "teacher_tower"]

_MODULES = {
    **dict.fromkeys(("build_data", "build_method", "student_data"), "parts"),
    **dict.fromkeys(("build", "parse", "run"), "lightning_cli"),
    "teacher_tower": "teacher",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
