"""Write a leaderboard as Markdown and as one HTML page."""

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sdr_lightning.paths import check_output, write_text
from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.leaderboard.entries import METRICS, SHOWN, Aggregate, Entry, Group, Link, Score
from sdr_lightning.reporting.leaderboard.quoted import Quoted, quoted_tables
from sdr_lightning.reporting.pages import markdown
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.reporting.tables.table import Block, Cell, Table

TITLE = "Leaderboard"
NOTES = (
    "Means are over seeds, with 95 % Student-t intervals. They cover the variation between seeds and their corrupted "
    "items, not other data.",
    "A difference is a method minus the baseline of the same study under the same condition, paired by seed, with its "
    "95 % interval. Higher: the interval lies wholly above 0; lower: wholly below 0; undecided: it holds "
    "0, or there are fewer than two seeds. There is no correction for the number of comparisons.",
    "Rows of one study have the same data, encoders, optimiser, number of epochs and number of trials. Rows of "
    "different studies are not comparable.",
    "Noise is what the training data suffers; validation and test are clean unless a row says otherwise. mismatch, "
    "image level: chosen images lose all their captions to one another. mismatch, caption level: captions are "
    "exchanged one by one. The same ratio means different data.",
    "Tuned: options were chosen by validation rsum under the same condition, with a seed that is not among those "
    "shown.",
    "Cost is the wall time of a run (training and test, without teachers and trials) divided by that of InfoNCE with "
    "the same seed on the same hardware: the median over seeds. Other work on the machine changes it: it is a "
    "rough measure, which can be off by a factor of two. sdr bench training --methods measures the cost of a step.",
    "Relative to the baseline: the interquartile mean of all runs over the conditions, each score divided by the "
    "baseline's mean in its condition (a constant in the bootstrap). 1 is the level of the baseline; the baseline's "
    "own value is near 1, not 1. Probability of improvement: how probably a run has a greater score than a run of the "
    "baseline, averaged over conditions; 0.5 is no difference. Both as defined by Agarwal et al. (NeurIPS 2021), with "
    "95 % intervals of a stratified bootstrap: seeds are drawn with replacement within each condition, a seed with "
    "both its scores. Only conditions in which all methods have two seeds count.",
)
"""What the tables mean."""

_QUOTED = "Published numbers of others"


@dataclass(frozen=True)
class Leaderboard:
    """Groups of comparable entries, and published numbers of others."""

    groups: tuple[Group, ...]
    quoted: Quoted | None = None


def leaderboard_files(folder: Path) -> tuple[Path, Path]:
    """Return the Markdown file and the HTML page in a folder."""
    return folder / "leaderboard.md", folder / "leaderboard.html"


def check_leaderboard(folder: Path) -> None:
    """Check that a leaderboard would overwrite no file of other origin.

    Raises:
        ValueError: names the first such file.
    """
    for path in leaderboard_files(folder):
        check_output(path, is_own=is_generated)


def write_leaderboard(board: Leaderboard, folder: Path) -> tuple[Path, Path]:
    """Write ``leaderboard.md`` and the self-contained ``leaderboard.html``; equal records give equal bytes.

    Returns:
        Their paths.
    """
    text, page = leaderboard_files(folder)
    written = leaderboard_markdown(board, folder), leaderboard_page(board, folder)
    write_text(text, written[0])
    write_text(page, written[1])
    return text, page


def leaderboard_markdown(board: Leaderboard, folder: Path) -> str:
    """Render as Markdown, with links relative to a folder."""
    parts = [
        markdown.MARK,
        f"# {TITLE}",
        "Made from the records of runs. With all metrics, filters and sorting: [leaderboard.html](leaderboard.html).",
    ]
    for group in board.groups:
        parts += [
            f"## {markdown.escape(group.title)}",
            " ".join(filter(None, (markdown.escape(group.about), _link(group.report, folder) if group.report else ""))),
            entries_table(group.entries, folder),
        ]
        if group.aggregates:
            parts.append(markdown.markdown_table(aggregates_table(group)))
    if not board.groups:
        parts.append("No published result yet.")
    parts += ["## How to read it", markdown.bullets(NOTES)]
    if board.quoted is not None:
        parts += [f"## {_QUOTED}", markdown.escape(board.quoted.note)]
        parts += [markdown.markdown_table(table) for table in quoted_tables(board.quoted)]
    return "\n\n".join(parts) + "\n"


def entries_table(entries: Sequence[Entry], folder: Path, studies: Mapping[str, str] | None = None) -> str:
    """Render entries as a Markdown table.

    Args:
        entries: its rows.
        folder: the folder that links are relative to.
        studies: Markdown by group, for a first column that names the study of each row; None leaves the column out.
    """
    has_cost = any(entry.cost is not None for entry in entries)
    metrics = [key for key in SHOWN if any(key in entry.scores for entry in entries)]
    baselines = {entry.baseline for entry in entries}
    against = (
        f"− {markdown.escape(next(iter(baselines)))}" if len(baselines) == 1 and baselines != {""} else "− baseline"
    )
    has_difference = {
        key: any(entry.scores[key].difference for entry in entries if key in entry.scores) for key in metrics
    }
    headings = [*(["Study"] if studies is not None else []), "Training data", "Method"]
    for key in metrics:
        headings += [SHOWN[key], *([f"{SHOWN[key]} {against}"] if has_difference[key] else [])]
    headings += [*(["cost"] if has_cost else []), "tuning", "configuration", "runs by seed"]
    numeric = {heading for key in metrics for heading in headings if heading.startswith(SHOWN[key])} | {"cost"}
    lines = [_row(headings), _row("---:" if heading in numeric else ":---" for heading in headings)]
    for entry in entries:
        row = [*([studies[entry.group]] if studies is not None else [])]
        own = f" (against {entry.baseline})" if len(baselines) > 1 and entry.baseline not in ("", entry.method) else ""
        row += [markdown.escape(condition(entry)), markdown.escape(f"{entry.method}{own}")]
        for key in metrics:
            score = entry.scores.get(key)
            row += [_mean(key, score), *([_difference(key, score)] if has_difference[key] else [])]
        row += [_cost(entry)] if has_cost else []
        row += [entry.tuning, _links(entry.configuration, folder, " + "), _links(entry.records, folder, " ")]
        lines.append(_row(row))
    return "\n".join(lines)


def condition(entry: Entry) -> str:
    """Format the training data of an entry: noise and ratio, and the data set where the entry is of others."""
    noise = "clean" if entry.noise == "none" else entry.noise
    ratio = "" if entry.ratio is None or entry.noise == "none" else f" {formatting.percent(entry.ratio)}"
    return f"{noise}{ratio}" if entry.baseline else f"{entry.data}: {noise}{ratio}"


def aggregates_table(group: Group, key: str = "aggregates") -> Table:
    """Make the table of aggregates over the conditions of a study, with the HTML id `key`."""
    found = {(aggregate.method, aggregate.metric): aggregate for aggregate in group.aggregates}
    metrics = [metric for metric in SHOWN if any(own == metric for _, own in found)]
    rows = []
    for method in dict.fromkeys(method for method, _ in found):
        cells = [Cell(method)]
        for metric in metrics:
            cells += _aggregate_cells(found.get((method, metric)))
        rows.append(tuple(cells))
    conditions = max(aggregate.conditions for aggregate in group.aggregates)
    some = f"{conditions} condition{'s' if conditions > 1 else ''}"
    relative, improved = f"relative to {group.baseline}", f"probability of improvement over {group.baseline}"
    return Table(
        key=key,
        caption=f"{group.title}, over {some}: interquartile mean {relative}, and {improved} [95{formatting.NBSP}% interval]",
        headings=("Method", *(text for metric in metrics for text in (f"{SHOWN[metric]}: relative", "improved"))),
        blocks=(Block(tuple(rows)),),
    )


def leaderboard_page(board: Leaderboard, folder: Path) -> str:
    """Render as one HTML page without outside resources, with links relative to a folder."""
    from sdr_lightning.reporting.pages.html import render_page

    entries = [entry for group in board.groups for entry in group.entries]
    data = {
        "metrics": {
            key: {"label": label, "decimals": quantity.decimals, "differenceDecimals": quantity.difference_decimals}
            for key, (quantity, label) in METRICS.items()
            if any(key in entry.scores for entry in entries)
        },
        "rows": [_page_row(entry, folder) for entry in entries],
    }
    page = render_page(
        "leaderboard.html",
        title=TITLE,
        groups=[(group, href(group.report, folder) if group.report else None) for group in board.groups],
        aggregates=[
            aggregates_table(group, f"aggregates-{number}")
            for number, group in enumerate(board.groups)
            if group.aggregates
        ],
        quoted=board.quoted,
        quoted_title=_QUOTED,
        quoted_tables=() if board.quoted is None else quoted_tables(board.quoted),
        notes=NOTES,
        data=json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )
    return page + "\n"


def href(link: Link, folder: Path) -> str | None:
    """Return the address of a link relative to a folder; None for a text without link."""
    if link.path is None:
        return None
    address = quote(Path(os.path.relpath(link.path.absolute(), folder.absolute())).as_posix())
    return address if link.line is None else f"{address}#L{link.line}"


def _page_row(entry: Entry, folder: Path) -> dict[str, Any]:
    def links(some: Iterable[Link]) -> list[dict[str, str | None]]:
        return [{"text": link.text, "href": href(link, folder)} for link in some]

    return {
        "study": entry.group,
        "method": entry.method,
        "isBaseline": entry.method == entry.baseline,
        "data": entry.data,
        "student": entry.student,
        "noise": entry.noise,
        "ratio": entry.ratio,
        "seeds": entry.seeds,
        "tuning": entry.tuning,
        "baseline": entry.baseline,
        "cost": _rounded(entry.cost),
        "options": entry.options,
        "command": entry.command,
        "configuration": links(entry.configuration),
        "records": links(entry.records),
        "scores": {
            key: {"mean": _numbers(score.mean), "difference": _numbers(score.difference) if score.difference else None}
            for key, score in entry.scores.items()
        },
    }


def _numbers(found: Interval) -> list[float | None]:
    return [_rounded(found.mean), _rounded(found.low), _rounded(found.high)]


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def _mean(key: str, score: Score | None) -> str:
    if score is None:
        return formatting.MISSING
    decimals = METRICS[key][0].decimals
    return " ".join(
        filter(None, (formatting.number(score.mean.mean, decimals), formatting.bounds(score.mean, decimals)))
    )


def _difference(key: str, score: Score | None) -> str:
    if score is None or score.difference is None:
        return ""
    return formatting.difference_text(score.difference, METRICS[key][0].difference_decimals)


def _cost(entry: Entry) -> str:
    return formatting.MISSING if entry.cost is None else f"{formatting.number(entry.cost, 2)} x"


def _aggregate_cells(aggregate: Aggregate | None) -> list[Cell]:
    if aggregate is None:
        return [Cell(formatting.MISSING), Cell(formatting.MISSING)]
    cells = []
    for estimate in (aggregate.normalised, aggregate.improvement):
        if estimate is None:
            cells.append(Cell(formatting.MISSING))
        else:
            ends = f"[{formatting.number(estimate.low, 2)}, {formatting.number(estimate.high, 2)}]"
            cells.append(Cell(formatting.number(estimate.value, 2), ends))
    return cells


def _links(links: Iterable[Link], folder: Path, between: str) -> str:
    return between.join(_link(link, folder) for link in links)


def _link(link: Link, folder: Path) -> str:
    address, text = href(link, folder), markdown.escape(link.text)
    return text if address is None else f"[{text}]({address})"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
