"""Publish studies in docs/results/ and write the text about all published results anew.

python docs/make_results.py [runs/scenes ...]

Published are the record of a study (study.json), its cells with their training curves (results.jsonl), its trials if it is tuned
(trials.jsonl) and its teachers (teachers.jsonl). From these records the report of every published study and its figures are
written, and every block of results in README.md, docs/ and experiments/; outdated ones are marked, and left out of
docs/leaderboard.md and docs/leaderboard.html. The report of a study without results.jsonl stays as it is.

In a copy of a published folder, sdr reproduce takes the cells whose fingerprint still fits as finished.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from published import QUANTITIES, RESULTS, ROOT, files, filled, leaderboard, published

from sdr_lightning.paths import read_json, write_text
from sdr_lightning.reporting.claims import compare_with_baseline
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.reporting.formatting import condition_label
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL
from sdr_lightning.reporting.study_contents import study_contents
from sdr_lightning.reporting.study_report import write_markdown
from sdr_lightning.results.codec import to_json
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition, Study
from sdr_lightning.studies.plan import plan_with_trials
from sdr_lightning.studies.spec import read_study

_FILES = {"study.json", "confirmed.json", "results.jsonl", "trials.jsonl", "teachers.jsonl", "report.md", "figures"}
_CURVES = ("val/rsum", "test/rsum", "method/")
_MEASURED = dict(zip(QUANTITIES, (RSUM, SINGLE_MODAL, MIXED), strict=True))


def publish(folder: Path, results: Path = RESULTS) -> Path:
    """Publish a finished study.

    Args:
        folder: folder of sdr reproduce.
        results: the folder of all published studies.

    Returns:
        The study's own folder among them.

    Raises:
        ValueError: the study is not finished, its cells record no commit, it is no study of experiments/, or the folder to
            replace holds other files.
    """
    study = load_study(folder)
    if len(study.runs) < study.num_expected:
        raise ValueError(
            f"{folder} has {len(study.runs)} of {study.num_expected} cells: run sdr reproduce to its end first"
        )
    if not all(run.commit for run in study.runs.values()):
        raise ValueError(f"the cells of {folder} record no commit: run the study from a git checkout")
    target = results / study.name
    others = {path.name for path in target.iterdir()} - _FILES if target.is_dir() else set()
    if others:
        raise ValueError(f"{target / min(others)} is not of a published study: move it away")
    record = _record(study, read_json(folder / "study.json", "a study"))
    cells = [replace(run, curves=run.curves or _curves(folder / run.folder)) for run in study.runs.values()]
    results.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=results, prefix=f".{study.name}.") as temporary:
        whole = Path(temporary) / study.name
        write_text(whole / "results.jsonl", _lines(cells))
        if study.trials:
            write_text(whole / "trials.jsonl", _lines(study.trials))
        write_text(whole / "teachers.jsonl", _lines(study.teacher_records))
        write_text(whole / "study.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        write_report(whole)
        if target.exists():
            target.rename(Path(temporary) / "old")
        whole.rename(target)
    return target


def write_report(folder: Path) -> None:
    """Write report.md and figures/ of a published study from its records, with a block for its state.

    It has no section of examples: they show photographs, which may not be redistributed, and are not in the records.
    """
    study = load_study(folder)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    write_markdown(folder, study_contents(study))
    head, _, rest = (folder / "report.md").read_text(encoding="utf-8").partition("\n\n# ")
    title, _, body = rest.partition("\n")
    body = re.sub(r"^## Example retrievals$.*?(?=^## )", "", body, flags=re.MULTILINE | re.DOTALL)
    state = f"<!-- state: {study.name} -->\n<!-- end of state -->"
    write_text(folder / "report.md", f"{head}\n\n# {title}\n\n{state}\n{body}")


def _curves(folder: Path) -> dict[str, dict[int, float]]:
    return {name: curve for name, curve in read_curves(folder / "metrics.csv").items() if name.startswith(_CURVES)}


def _lines(records: Iterable[Any]) -> str:
    """Records as JSONL."""
    return "".join(f"{json.dumps(to_json(record), ensure_ascii=False)}\n" for record in records)


def _record(study: Study, described: dict[str, Any]) -> dict[str, Any]:
    """The study.json of the study, with its provenance and its numbers by condition."""
    file = _configuration(study.name)
    planned = plan_with_trials(read_study(file), study.root)
    fingerprints = {run.fingerprint for run in study.runs.values()}
    is_configured = fingerprints == {planned_cell.fingerprint for planned_cell in planned.cells}
    first = next(iter(study.runs.values()))
    return {
        **described,
        "study": file.relative_to(ROOT).as_posix(),
        "commits": sorted({run.commit for run in study.runs.values()}),
        "dirty": any(run.dirty for run in study.runs.values()),
        "fingerprint": planned.fingerprint if is_configured else None,
        "hardware": first.hardware,
        "versions": dict(first.versions),
        "conditions": [_numbers(study, condition) for condition in study.conditions],
    }


def _configuration(name: str) -> Path:
    folder = ROOT / "experiments"
    for file in sorted([*folder.rglob("study*.yaml"), *folder.glob("benchmark/*.yaml")]):
        if read_study(file).name == name:
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
    """Publish the studies of the command line, and write the text about all."""
    new = [publish(Path(folder)) for folder in sys.argv[1:]]
    print(*new, sep="\n", end="\n" if new else "")
    studies = {study.record["name"]: study for study in published()}
    for study in studies.values():
        if study.folder not in new and (study.folder / "results.jsonl").is_file():
            write_report(study.folder)
    texts = {path: filled(path, studies) for path in files(studies)} | leaderboard(studies)
    for path, text in texts.items():
        if not path.is_file() or text != path.read_text(encoding="utf-8"):
            write_text(path, text)
            print(path.relative_to(ROOT))
    for name, study in studies.items():
        print(f"{name}: {study.state}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"make_results: error: {error}")
