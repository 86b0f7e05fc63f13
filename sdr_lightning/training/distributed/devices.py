"""Which GPUs each of several trainings side by side has."""

from __future__ import annotations

import os

import torch


def shares(jobs: int) -> list[dict[str, str]]:
    """Equal shares of the machine's GPUs, as environment variables of each job.

    Args:
        jobs: how many trainings run at a time.

    Returns:
        A dictionary a job; empty where there are fewer GPUs than jobs, which then share all.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = list(map(str, range(torch.cuda.device_count()))) if named is None else [g for g in named.split(",") if g]
    if jobs == 1 or len(found) < jobs:
        return [{} for _ in range(jobs)]
    each = len(found) // jobs
    return [{"CUDA_VISIBLE_DEVICES": ",".join(found[job * each : (job + 1) * each])} for job in range(jobs)]
