"""List outdated published results, and run cells of each study again.

python docs/check_results.py [--confirm] [NAME ...]

The cells are the baseline and the candidate under the first imbalance at its lowest ratio, with the first seed. They run twice
in a temporary folder. The second run must equal the first to the bit, and both must lie within SPREAD of the published
cell; if the result is outdated, or its cells are not published, the difference is only printed. Studies that ran on a GPU or
whose data is missing are skipped. Exits with 1 if a study fails.

With --confirm, one cell of every method runs, once. If all of them lie within NEGLIGIBLE of the published ones, the study's
confirmed.json notes it, with the largest difference in rsum, and the result does not count as outdated although the code has
changed. Only the kind of processor that the study ran on can confirm it.

Bits do not carry over from one kind of processor to another. SPREAD is above what was measured on an AMD EPYC with AVX-512:
12 cells of experiments/scenes/study.yaml (InfoNCE and SDR, data as given and mismatch 30 %, seeds 0 to 2), teachers included,
under ATEN_CPU_CAPABILITY=default, avx2, avx512, and avx2 with ONEDNN_MAX_CPU_ISA=AVX2 and MKL_CBWR=COMPATIBLE. A cell's rsum
differed by at most 6.5 of 600 between these, an NDCG@10 by at most 1.8, the means of two NDCG@10 by at most 0.8.
"""

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from published import Published, published

from sdr_lightning.paths import read_json, write_text
from sdr_lightning.reporting.formatting import condition_label
from sdr_lightning.results.loading import load_trials, published_runs
from sdr_lightning.results.schema import Condition, JobRecord, StudyMethod, StudySpec
from sdr_lightning.studies.jobs import describe
from sdr_lightning.studies.plan import Cell, plan
from sdr_lightning.studies.runner import Runner
from sdr_lightning.training.tracking.record import git

SPREAD = {"rsum": 10.0, "i2i_NDCG@10": 3.0, "t2t_NDCG@10": 3.0, "i2it_NDCG@10": 3.0, "t2it_NDCG@10": 3.0}
"""Greatest accepted difference of a cell to its published value, on any processor."""

NEGLIGIBLE = dict.fromkeys(SPREAD, 0.2)
"""Greatest difference with which changed code confirms a published cell: as if two queries of 1,000 found other items."""


def one_cell_each(published: Published, methods: Iterable[str]) -> StudySpec:
    """Reduce a study to some of its methods under one condition with one seed, with the options that its trials chose."""
    study = published.study
    name = next(iter(study.imbalances))
    ratio = min(ratio for ratio in study.ratios_of(name) if ratio > 0)
    options = {
        run.method: run.options
        for run in published_runs(published.folder)
        if (run.imbalance, run.ratio, run.seed) == (name, ratio, study.seeds[0])
    }
    return replace(
        _untuned(study, {method: study.methods[method].with_options(options.get(method, {})) for method in methods}),
        imbalances={name: replace(study.imbalances[name], ratios=None)},
        ratios=(ratio,),
        seeds=study.seeds[:1],
    )


def _untuned(study: StudySpec, methods: Mapping[str, StudyMethod]) -> StudySpec:
    return replace(study, methods={name: replace(method, space=None) for name, method in methods.items()}, tuning=None)


def run(study: StudySpec, folder: Path) -> list[tuple[Cell, dict[str, float]]]:
    """The cells of a study with their metrics."""
    planned = plan(study, folder)
    Runner(study, planned, folder, study.jobs).run()
    return [(cell, read_json(cell.result, "results of a cell")["metrics"]) for cell in planned.cells]


def published_metrics(study: Published, cell: Cell) -> dict[str, float] | None:
    """Return the published metrics of a cell; None where no cells are published."""
    if not _has_cells(study):
        return None
    file = study.folder / "results.jsonl"
    lines: list[dict[str, Any]] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    key = {"method": cell.method, "imbalance": cell.imbalance, "ratio": cell.ratio, "seed": cell.seed}
    return next((dict(line["metrics"]) for line in lines if {name: line[name] for name in key} == key), None)


def name_of(cell: Cell) -> str:
    """Name a cell in what is printed."""
    return f"{cell.method}, {cell.imbalance} {cell.ratio:g}, seed {cell.seed}"


def faults(study: Published, cell: Cell, first: dict[str, float], second: dict[str, float]) -> list[str]:
    """Compare a cell that ran twice with its published metrics, print the differences, and return the failures."""
    name = name_of(cell)
    found = [] if first == second else [f"{name}: the second run differs from the first"]
    before = published_metrics(study, cell)
    print(f"{name}: rsum {first['rsum']:.2f}, then {second['rsum']:.2f}")
    if before is None:
        label = condition_label(Condition.of(cell.imbalance, cell.ratio))
        means = next(part["rsum"] for part in study.record["conditions"] if part["condition"] == label)
        print(
            f"  no cell of it is published, only the mean over {len(study.record['seeds'])} seeds, {means[cell.method]:.2f}"
        )
        return found
    for metric, spread in SPREAD.items():
        difference = first[metric] - before[metric]
        print(f"  {metric} {first[metric]:.2f}, published {before[metric]:.2f}, {difference:+.2f}")
        if abs(difference) > spread and not study.stale:
            found.append(f"{name}: {metric} is {difference:+.2f} from its published value, more than {spread:g}")
    return found


def can_run(study: Published) -> bool:
    """Whether a study can run here; print why not."""
    if "CPU" not in study.record["hardware"]:
        print(f"skipped: made on {study.record['hardware']}")
        return False
    try:
        describe(study.plan.student)
    except ValueError as error:
        print(f"skipped: its data is missing: {error}")
        return False
    return True


def check(study: Published) -> list[str]:
    """Run two cells of a study twice; return the failures."""
    if not can_run(study):
        return []
    with TemporaryDirectory() as folder:
        spec = one_cell_each(study, (study.study.baseline, study.study.candidate))
        first, second = (run(spec, Path(folder) / number) for number in ("first", "second"))
    return [
        fault
        for (cell, metrics), (_, again) in zip(first, second, strict=True)
        for fault in faults(study, cell, metrics, again)
    ]


def confirm(study: Published) -> list[str]:
    """Run one cell of every method, and note it if all equal the published ones; return the differences."""
    if not study.stale:
        print("not outdated")
        return []
    if not has_same_jobs(study):
        return ["its cells or trials are not those of its configuration: run the study again"]
    if not can_run(study):
        return []
    with TemporaryDirectory() as folder:
        return note(study, run(one_cell_each(study, study.study.methods), Path(folder)))


def note(study: Published, cells: Sequence[tuple[Cell, dict[str, float]]]) -> list[str]:
    """Note that cells lie within NEGLIGIBLE of the published ones; if one does not, return that and note nothing."""
    found, largest = [], 0.0
    for cell, metrics in cells:
        before = published_metrics(study, cell)
        assert before is not None  # has_same_jobs
        # PCME++ has no NDCG.
        differences = {metric: metrics[metric] - before[metric] for metric in NEGLIGIBLE if metric in metrics}
        largest = max(largest, abs(differences["rsum"]))
        print(f"{name_of(cell)}: rsum {metrics['rsum']:.2f}, published {before['rsum']:.2f}")
        found += [
            f"{name_of(cell)}: {metric} is {difference:+.2f} from its published value: run the study again"
            for metric, difference in differences.items()
            if abs(difference) > NEGLIGIBLE[metric]
        ]
    if not found:
        noted = {**git(), "cells": len(cells), "largest_rsum": round(largest, 2), "fingerprint": study.plan.fingerprint}
        write_text(study.folder / "confirmed.json", json.dumps(noted, indent=1) + "\n")
        print(f"confirmed by {len(cells)} cells; make results writes it where the results are shown")
    return found


def has_same_jobs(study: Published) -> bool:
    """Whether the published cells and trials are those that the configuration plans now, whatever their code."""
    if not _has_cells(study):
        return False
    cells = {_identity(cell) for cell in plan(_untuned(study.study, study.study.methods), study.folder).cells}
    trials = {(*_identity(trial), str(trial.options)) for trial in study.plan.trials}
    measured = {(*_identity(trial), str(trial.options)) for trial in load_trials(study.folder)}
    return cells == {_identity(cell) for cell in published_runs(study.folder)} and trials == measured


def _has_cells(study: Published) -> bool:
    return (study.folder / "results.jsonl").is_file()


def _identity(job: Cell | JobRecord) -> tuple[str, str, float, int]:
    return job.method, job.imbalance, job.ratio, job.seed


def main() -> int:
    """Check the studies that the command line names, or all; see the module's docstring."""
    parser = ArgumentParser(prog="check_results", description="Check published results, see docs/using.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of published studies (default: all)")
    parser.add_argument("--confirm", action="store_true", help="note that changed code gives the published numbers")
    arguments = parser.parse_args()
    names = arguments.names
    studies = {study.record["name"]: study for study in published()}
    unknown = sorted(set(names) - studies.keys())
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not published: {', '.join(studies)}")
    found: list[str] = []
    for name in names or studies:
        print(f"\n{name}: {studies[name].state}")
        found += [f"{name}: {fault}" for fault in (confirm if arguments.confirm else check)(studies[name])]
    for fault in found:
        print(fault, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ValueError as error:
        sys.exit(f"check_results: error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
