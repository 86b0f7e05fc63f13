"""Published results: their records in docs/results/, and the text about them in README.md, docs/ and experiments/.

A record, docs/results/NAME/study.json, holds the provenance of a study and its numbers by condition; results.jsonl its cells,
trials.jsonl its trials, confirmed.json later code that gave the same numbers.
docs/leaderboard.md and docs/leaderboard.html are made from the cells of all studies that are up to date. The text between
``<!-- leaderboard: NAME -->`` and ``<!-- end of leaderboard -->`` is made from the cells of one method: NAME is its overlay in
experiments/methods.
Text between ``<!-- results: NAME -->`` and ``<!-- end of results -->`` (of all studies, where NAME is ``all``), in the same way
that of ``methods``, ``differences``, ``tasks`` and ``state``, and the ``# Result:`` of a published study's configuration is
made from the records and from nothing else.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import wrap
from typing import Any

from sdr_lightning.reporting.claims import CLAIMS, compare_with_baseline
from sdr_lightning.reporting.formatting import NBSP, bounds_text, condition_label, difference_text, number, signed
from sdr_lightning.reporting.leaderboard.entries import Group
from sdr_lightning.reporting.leaderboard.output import (
    Leaderboard,
    entries_table,
    leaderboard_files,
    leaderboard_markdown,
    leaderboard_page,
)
from sdr_lightning.reporting.leaderboard.quoted import read_quoted
from sdr_lightning.reporting.leaderboard.studies import study_group
from sdr_lightning.reporting.pages.markdown import markdown_table
from sdr_lightning.reporting.quantities import RSUM, TEMPERATURE
from sdr_lightning.reporting.statistics import OUTCOMES, Interval, highest
from sdr_lightning.reporting.tables.results import against_baseline_table, claims_by_task_table
from sdr_lightning.reporting.tables.table import Table
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Study, StudySpec
from sdr_lightning.studies.plan import Plan, plan_with_trials
from sdr_lightning.studies.spec import read_study

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
NO_RESULT = "No published result yet."
QUANTITIES = {"rsum": "rsum", "single_modal": "single-modal NDCG@10", "mixed": "mixed NDCG@10"}
"""The published quantities of each condition, by key and label."""

_BLOCK = re.compile(
    r"(<!-- (?P<kind>results|methods|differences|tasks|state|leaderboard): (?P<name>\S+) -->\n).*?(<!-- end of (?P=kind) -->)",
    re.DOTALL,
)
_HEADER = re.compile(r"^# Result: .*\n(?:#  .*\n)*", re.MULTILINE)
_DECIMALS = {"rsum": 1, "single_modal": 2, "mixed": 2}


@dataclass(frozen=True)
class Published:
    """A published study.

    Attributes:
        folder: docs/results/NAME.
        record: content of its study.json.
    """

    folder: Path
    record: dict[str, Any]

    @cached_property
    def study(self) -> StudySpec:
        """The study as it is configured now."""
        return read_study(ROOT / self.record["study"])

    @cached_property
    def plan(self) -> Plan:
        """Its jobs now."""
        return plan_with_trials(self.study, Path("runs") / self.study.name, self.folder)

    @cached_property
    def group(self) -> Group | None:
        """Its entries of a leaderboard; None where no cells are published."""
        if not (self.folder / "results.jsonl").is_file():
            return None
        return study_group(load_study(self.folder), self.state, ROOT)

    @property
    def tuning(self) -> str:
        """How the options of its methods were chosen."""
        tuning = self.record.get("tuning")
        return "untuned" if tuning is None else f"tuned with {tuning['trials']} trials for each method and condition"

    @property
    def state(self) -> str:
        """The commit that it was measured at, and whether code or configuration have changed since."""
        changed = " with changes" if self.record["dirty"] else ""
        commits = " and ".join(commit[:10] for commit in self.record["commits"])
        measured = f"measured at commit {commits}{changed}"
        if self.stale:
            return f"{measured}; {self.stale} has changed since"
        if not self._is_confirmed:
            return measured
        changed = " with changes" if self.confirmed["dirty"] else ""
        difference = self.confirmed["largest_rsum"]
        same = f"differs by at most {difference:g} rsum" if difference else "is the same"
        return f"{measured}; a cell of each method {same} at commit {self.confirmed['commit'][:10]}{changed}"

    @cached_property
    def confirmed(self) -> dict[str, Any]:
        """The later code that gave the published numbers, see docs/check_results.py; empty if there is none."""
        file = self.folder / "confirmed.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    @property
    def _is_confirmed(self) -> bool:
        return self.confirmed.get("fingerprint") == self.plan.fingerprint

    @cached_property
    def stale(self) -> str:
        """The part that has changed since the measurement: ``the code``, ``the configuration``, or empty."""
        if self._is_confirmed:
            return ""
        if self._code_changed():
            return "the code"
        return "" if self.record["fingerprint"] == self.plan.fingerprint else "the configuration"

    def _code_changed(self) -> bool:
        """Whether the code of a method or teacher that was measured has changed; others may have been added since."""
        now = {"methods": self.plan.methods, "teachers": self.plan.teacher_entries}
        pairs = [
            (entry.get("code"), now[part][name].code)
            for part in now
            for name, entry in self.record.get(part, {}).items()
            if name in now[part]
        ]
        if not pairs or not all(measured for measured, _ in pairs):  # records of one code for the whole study
            return bool(self.record["code"] != self.plan.code)
        return any(measured != code for measured, code in pairs)

    @property
    def link(self) -> str:
        """Its report, relative to the root of the repository."""
        return (self.folder / "report.md").relative_to(ROOT).as_posix()

    def highest(self) -> str:
        """List the methods with the highest mean rsum, all if several share it, and in how many conditions."""
        means = [condition["rsum"] for condition in self.record["conditions"]]
        counts = Counter(name for by_method in means for name in highest(by_method))
        return "; ".join(f"{method} in {count} of {len(means)} conditions" for method, count in counts.most_common())

    def verdicts(self, key: str) -> str:
        """Count the conditions whose difference is higher, lower and undecided."""
        found = Counter(c["comparisons"][key]["verdict"] for c in self.record["conditions"])
        return ", ".join(f"{outcome}{NBSP}{found[outcome]}" for outcome in OUTCOMES if found[outcome])


def published() -> list[Published]:
    """All published studies, by name."""
    files = sorted(RESULTS.glob("*/study.json"))
    return [Published(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in files]


def filled(path: Path, studies: dict[str, Published]) -> str:
    """The text of a Markdown file, or of a study's configuration, with its results as the records have them.

    Raises:
        ValueError: a block names a study that is not published.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".yaml":
        study = next(study for study in studies.values() if ROOT / study.record["study"] == path)
        return _HEADER.sub(lambda _: _header(study), text, count=1)

    def block(found: re.Match[str]) -> str:
        name = found["name"]
        if found["kind"] == "leaderboard":
            return f"{found[1]}{_method_results(path, name, studies)}\n{found[4]}"
        if name not in (*studies, "all"):
            raise ValueError(f"{path} has a block of results of {name!r}, which is not published: {', '.join(studies)}")
        if name == "all":
            content = _overview(path, studies)
        elif found["kind"] == "state":
            content = f"**The results below were {studies[name].state}.**"
        elif found["kind"] == "methods":
            content = _methods_table(path, studies[name])
        elif found["kind"] == "differences":
            content = _titled(path, studies[name], against_baseline_table)
        elif found["kind"] == "tasks":
            content = _titled(path, studies[name], claims_by_task_table)
        else:
            content = _table(path, studies[name])
        return f"{found[1]}{content}\n{found[4]}"

    return _BLOCK.sub(block, text)


def files(studies: dict[str, Published]) -> Iterator[Path]:
    """The files with results in their text."""
    yield from (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), RESULTS / "README.md")
    yield from sorted((ROOT / "docs" / "methods").glob("*.md"))
    yield from (study.folder / "report.md" for study in studies.values())
    yield from (ROOT / study.record["study"] for study in studies.values())


def leaderboard(studies: dict[str, Published]) -> dict[Path, str]:
    """The text of the leaderboard's Markdown file and HTML page, of the studies that are up to date."""
    groups = tuple(study.group for study in studies.values() if study.group is not None and not study.stale)
    board = Leaderboard(groups, read_quoted(ROOT / "docs" / "published_numbers.yaml"))
    folder = ROOT / "docs"
    text, page = leaderboard_files(folder)
    return {text: leaderboard_markdown(board, folder), page: leaderboard_page(board, folder)}


def _method_results(path: Path, name: str, studies: dict[str, Published]) -> str:
    """The rows of a method in all published studies, those that are up to date first."""
    overlays = sorted(file.stem for file in (ROOT / "experiments" / "methods").glob("*.yaml"))
    if name not in overlays:
        raise ValueError(f"{path} has a block of results of {name!r}, which is no overlay: {', '.join(overlays)}")
    ordered = sorted(studies.values(), key=lambda study: bool(study.stale))
    found = [(study, study.group) for study in ordered if study.group is not None]
    entries = [entry for _, group in found for entry in group.entries if name in entry.overlays]
    links = {
        group.title: f"[{group.title}]({_relative(path, study.link)})"
        + (f"; {study.stale} has changed since" if study.stale else "")
        for study, group in found
    }
    return entries_table(entries, path.parent, links) if entries else NO_RESULT


def _methods_table(path: Path, study: Published) -> str:
    """Each method of a study, and its differences from the baseline."""
    loaded = load_study(study.folder)
    head = " | ".join(f"{quantity.label}: difference" for quantity in CLAIMS.values())
    rows = [
        f"| Training data | Method | τ | rsum | {head} |",
        f"| :--- | :--- | ---: | ---: |{' ---: |' * len(CLAIMS)}",
    ]
    for condition in loaded.conditions:
        for method in loaded.methods:
            cells = [
                condition_label(condition),
                method,
                number(TEMPERATURE.interval(loaded, method, condition).mean, 3),
                _interval(RSUM.interval(loaded, method, condition)),
            ]
            for quantity in CLAIMS.values():
                compared = compare_with_baseline(loaded, method, condition, quantity)
                text = difference_text(compared.difference, quantity.difference_decimals)
                cells.append("" if method == loaded.baseline_of(method) else text)
            rows.append(f"| {' | '.join(cells)} |")
    baseline = loaded.baseline
    if any(loaded.baseline_of(method) != baseline for method in loaded.methods):
        members = loaded.families.items()
        family, field = next(key for key, methods in members if loaded.methods[baseline] in methods)
        baseline = f"{family} of the same {field}"
    title = (
        f"**{study.record['title']}** ([report]({_relative(path, study.link)})): means over {len(loaded.seeds)} seeds with 95 % "
        f"intervals, and differences from {baseline}, paired by seed; τ is the temperature of the tested epoch; {study.tuning}, "
        f"{study.state}."
    )
    return "\n".join([title, "", *rows])


def _titled(path: Path, study: Published, make: Callable[[Study], Table | None]) -> str:
    """A table of the study's report, with its title, link and state."""
    table = make(load_study(study.folder))
    if table is None:
        raise ValueError(f"{path} has a block of {study.record['name']!r}, whose report has no such table")
    title = f"{study.record['title']}, [report]({_relative(path, study.link)}), {study.tuning}, {study.state}"
    return f"{title}. {markdown_table(table)}"


def _interval(found: Interval) -> str:
    return number(found.mean) + ("" if found.half is None else f" ± {number(found.half)}")


def _table(path: Path, study: Published) -> str:
    record = study.record
    baseline, candidate = record["baseline"], record["candidate"]
    head = " | ".join(f"{label} of {baseline} and {candidate}; difference" for label in QUANTITIES.values())
    rows = [f"| Training data | {head} |", f"| :--- |{' ---: |' * len(QUANTITIES)}"]
    for condition in record["conditions"]:
        cells = (_comparison(condition["comparisons"][key], _DECIMALS[key]) for key in QUANTITIES)
        rows.append(f"| {condition['condition']} | {' | '.join(cells)} |")
    report, seeds = _relative(path, study.link), len(record["seeds"])
    title = f"**{record['title']}** ([report]({report})), means over {seeds} seeds, {study.tuning}, {study.state}."
    return "\n".join([title, "", *rows, "", f"Highest mean rsum: {study.highest()}."])


def _overview(path: Path, studies: dict[str, Published]) -> str:
    rows = [
        f"| Study | Compared | {' | '.join(QUANTITIES.values())} | Highest mean rsum | State |",
        "| :--- " * (4 + len(QUANTITIES)) + "|",
    ]
    for study in studies.values():
        record = study.record
        verdicts = " | ".join(study.verdicts(key) for key in QUANTITIES)
        title = f"[{record['title']}]({_relative(path, study.link)})"
        compared = f"{record['candidate']} with {record['baseline']}, {study.tuning}"
        rows.append(f"| {title} | {compared} | {verdicts} | {study.highest()} | {study.state} |")
    return "\n".join(rows)


def _header(study: Published) -> str:
    """The ``# Result:`` of a study's configuration."""
    record = study.record
    lines = [
        f"rsum of {record['baseline']} and {record['candidate']}; their difference; means over {len(record['seeds'])} seeds,"
    ]
    lines.append(f"{study.tuning}, {study.state}:")
    for condition in record["conditions"]:
        lines.append(f"  {condition['condition']}: {_comparison(condition['comparisons']['rsum'], 1)}")
    lines += wrap(f"Highest mean rsum: {study.highest()}.", 115)
    others = "; ".join(f"{QUANTITIES[key]}: {study.verdicts(key)}" for key in QUANTITIES if key != "rsum")
    lines += [f"{others}.", f"All of it: {study.link}"]
    first, *rest = (line.replace(NBSP, " ") for line in lines)
    return "".join([f"# Result:   {first}\n", *(f"#           {line}\n" for line in rest)])


def _comparison(found: dict[str, Any], decimals: int) -> str:
    means = f"{number(found['baseline'])}, {number(found['candidate'])}"
    interval = bounds_text(found["low"], found["high"], decimals)
    return " ".join(filter(None, (f"{means};", signed(found["difference"], decimals), interval, found["verdict"])))


def _relative(path: Path, link: str) -> str:
    up = len(path.relative_to(ROOT).parts) - 1
    return "../" * up + link
