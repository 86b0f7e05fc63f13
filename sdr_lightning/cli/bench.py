"""``sdr bench``: run the benchmarks."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from sdr_lightning.configure.arguments import program_arguments

BENCHMARKS = {
    "evaluate": "bench_evaluation.py",
    "data": "bench_data.py",
    "losses": "bench_losses.py",
    "training": "bench_training.py",
    "epochs": "bench_epochs.py",
    "processes": "bench_processes.py",
    "detection": "bench_detection.py",
    "search": "bench_search.py",
    "shards": "bench_shards.py",
}


def run(arguments: list[str]) -> int:
    """Run a benchmark of the checkout; further arguments are those of the benchmark."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(
            f"usage: sdr bench {' | '.join(BENCHMARKS)} [options]\n\nMeasure here; sdr bench NAME --help lists options."
        )
        return 0
    if not arguments or arguments[0] not in BENCHMARKS:
        found = arguments[0] if arguments else "none"
        raise ValueError(f"unknown benchmark {found!r}, expected: sdr bench {' | '.join(BENCHMARKS)} [--help]")
    script = Path(__file__).parents[2] / "benchmarks" / BENCHMARKS[arguments[0]]
    if not script.is_file():
        raise ValueError(
            f"no benchmark at {script}: benchmarks are in the repository, not in the package; run sdr bench in a checkout, "
            "installed with pip install -e"
        )
    sys.path.insert(0, str(script.parent))  # as for a script of Python: a benchmark imports another
    with program_arguments([f"sdr bench {arguments[0]}", *arguments[1:]]):
        runpy.run_path(str(script), run_name="__main__")
    return 0
