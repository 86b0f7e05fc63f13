"""Publish studies in docs/results/ and write the text about all published results anew.

python docs/make_results.py [runs/scenes ...]

A study's report (without photographs), figures, record (study.json) and cells (results.jsonl) are published; then every
block of results in README.md, docs/ and experiments/ is made from the records, those that are out of date as such.
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from published import QUANTITIES, RESULTS, ROOT, files, filled, published

from sdr_lightning.paths import read_json, write_text
from sdr_lightning.reporting.claims import compare_with_baseline
from sdr_lightning.reporting.formatting import condition_label
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition, Study
from sdr_lightning.studies.plan import plan
from sdr_lightning.studies.spec import Study as Configured

_FILES = {"study.json", "results.jsonl", "report.md", "figures"}
_MEASURED = dict(zip(QUANTITIES, (RSUM, SINGLE_MODAL, MIXED), strict=True))


def publish(folder: Path, results: Path = RESULTS) -> Path:
    """Publish a finished study.

    Args:
        folder: where sdr reproduce ran it.
        results: the folder of all published studies.

    Returns:
        The study's own folder among them.

    Raises:
        ValueError: the study has no report or is not finished, its cells do not name their commit, it is no study of
            experiments/, or the folder to replace holds other files.
    """
    study = load_study(folder)
    if not (folder / "report.md").is_file():
        raise ValueError(f"{folder} has no report: run sdr report {folder} first")
    if len(study.runs) < study.num_expected:
        raise ValueError(
            f"{folder} has {len(study.runs)} of {study.num_expected} cells: run sdr reproduce to its end first"
        )
    if not all(run.commit for run in study.runs.values()):
        raise ValueError(
            f"the cells of {folder} do not say which commit they come from: run the study from a git checkout"
        )
    target = results / study.name
    others = {path.name for path in target.iterdir()} - _FILES if target.is_dir() else set()
    if others:
        raise ValueError(f"{target / min(others)} is not of a published study: move it away")
    cells = [read_json(folder / run.folder / "results.json", "results of a cell") for run in study.runs.values()]
    record = _record(study, cells[0], read_json(folder / "study.json", "a study"))
    # Photographs may not be redistributed, so no study's examples are.
    report = re.sub(
        r"^## Example retrievals$.*?(?=^## )",
        "",
        (folder / "report.md").read_text("utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    head, _, body = report.partition("\n\n# ")
    title, _, body = body.partition("\n")
    report = f"{head}\n\n# {title}\n\n<!-- state: {study.name} -->\n<!-- end of state -->\n{body}"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder / "figures", target / "figures")
    write_text(target / "report.md", report)
    kept = ("method", "imbalance", "ratio", "seed", "metrics", "selected")
    lines = (json.dumps({key: cell[key] for key in kept}, ensure_ascii=False) for cell in cells)
    write_text(target / "results.jsonl", "".join(f"{line}\n" for line in lines))
    write_text(target / "study.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return target


def _record(study: Study, cell: dict[str, Any], described: dict[str, Any]) -> dict[str, Any]:
    """The study's study.json, with what made it and its numbers by condition."""
    file = _configuration(study.name)
    planned = plan(Configured.load(file), study.root)
    fingerprints = {run.fingerprint for run in study.runs.values()}
    is_configured = fingerprints == {planned_cell.fingerprint for planned_cell in planned.cells}
    return {
        **described,
        "study": file.relative_to(ROOT).as_posix(),
        "commits": sorted({run.commit for run in study.runs.values()}),
        "dirty": any(run.dirty for run in study.runs.values()),
        "fingerprint": planned.fingerprint if is_configured else None,
        "hardware": cell["hardware"],
        "versions": cell["versions"],
        "conditions": [_numbers(study, condition) for condition in study.conditions],
    }


def _configuration(name: str) -> Path:
    for file in sorted((ROOT / "experiments").rglob("study*.yaml")):
        if Configured.load(file).name == name:
            return file
    raise ValueError(f"no study in experiments/ is called {name!r}")


def _numbers(study: Study, condition: Condition) -> dict[str, Any]:
    comparisons = {}
    for key, quantity in _MEASURED.items():
        comparison = compare_with_baseline(study, study.candidate, condition, quantity)
        difference = comparison.difference
        comparisons[key] = {
            "baseline": quantity.interval(study, study.baseline, condition).mean,
            "candidate": quantity.interval(study, study.candidate, condition).mean,
            "difference": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "verdict": comparison.verdict,
        }
    means = {method: RSUM.interval(study, method, condition).mean for method in study.methods}
    return {"condition": condition_label(condition), "rsum": means, "comparisons": comparisons}


def main() -> None:
    """Publish the studies that the command line names, and write the text about all."""
    for folder in sys.argv[1:]:
        print(publish(Path(folder)))
    studies = {study.record["name"]: study for study in published()}
    for path in files(studies):
        text = filled(path, studies)
        if text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            print(path.relative_to(ROOT))
    for name, study in studies.items():
        print(f"{name}: {study.state}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"make_results: error: {error}")
