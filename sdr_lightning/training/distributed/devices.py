"""Assignment of GPUs to parallel jobs."""

from __future__ import annotations

import os

import torch


def shares(jobs: int) -> list[dict[str, str]]:
    """Divide the visible GPUs evenly over parallel jobs.

    Args:
        jobs: number of jobs at a time.

    Returns:
        Environment variables per job; empty if there are fewer GPUs than jobs, so that all jobs share all GPUs.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = list(map(str, range(torch.cuda.device_count()))) if named is None else [g for g in named.split(",") if g]
    if jobs == 1 or len(found) < jobs:
        return [{} for _ in range(jobs)]
    each = len(found) // jobs
    return [{"CUDA_VISIBLE_DEVICES": ",".join(found[job * each : (job + 1) * each])} for job in range(jobs)]
