"""Running `sdr` in subprocesses, and options of a small student on scenes."""

import os
import subprocess
import sys
from pathlib import Path

SMALL = (
    "--data.init_args.source.init_args.num_train=200",
    "--data.init_args.source.init_args.num_val=60",
    "--data.init_args.source.init_args.num_test=60",
    "--data.init_args.batch_size=64",
    "--trainer.enable_progress_bar=false",
)
MATCHING_ALONE = (
    "--model.init_args.method.init_args.weights",
    '{"itc": 1, "iic": 0, "ttc": 0, "kd": 0, "kdi": 0, "kdt": 0}',
)


def sdr(*arguments: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a subprocess."""
    return subprocess.run(
        [sys.executable, "-m", "sdr_lightning", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        timeout=840,
    )


def succeeded(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output of a command that must succeed."""
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """Return the error line of a command that must fail with status 2."""
    assert done.returncode == 2, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if line.startswith("sdr")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]
