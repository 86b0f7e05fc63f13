"""Record of versions, commit and hardware."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "lightning", "timm", "transformers", "torchmetrics", "datasets", "sdr_lightning")


@cache
def environment() -> dict[str, Any]:
    """Return versions, commit and hardware as plain values; cached at the first call."""
    return {"versions": versions(), "git": git(), "hardware": hardware()}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def git() -> dict[str, Any]:
    """Return the commit of this code and whether it has local changes; None outside a git checkout."""
    folder = Path(__file__).parent

    def ask(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def hardware() -> str:
    """Describe the GPU, or the CPU without one."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def peak_memory() -> dict[str, float]:
    """Return the peak memory of this process in MiB, and that of its GPU if there is one."""
    found = {"peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}
    if torch.cuda.is_available():
        found["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return found
