"""Compare systems: means with bootstrap intervals over images and seeds, and paired differences to a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdr_lightning.functional.bootstrap import CONFIDENCE, REPLICATES, Floats, bootstrap_mean, interval, mean_over_seeds
from sdr_lightning.paths import check_output, write_text
from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.evaluation_files import EvaluationSettings, System, sort_metrics
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.tables.table import Block, Cell, Table, text_row
from sdr_lightning.results.schema import RECALLS

MIN_REPLICATES = 100
"""Fewer bootstrap replicates do not determine the outer 2.5 % on either side."""

_PROTOCOLS = {
    "clean": "the default of sdr evaluate and sdr test",
    "paper": "as the public code of the TIP 2024 paper evaluates",
}
_TIES = {
    "index": "of equally scored items, the one with the lower gallery index ranks first",
    "pessimistic": "equally scored items rank before the relevant item",
}
_SIBLINGS = {
    "keep": "other captions of the query's image stay in the gallery",
    "exclude": "other captions of the query's image are removed from the gallery",
}


@dataclass(frozen=True)
class Estimate:
    """A value with its percentile bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def direction(self) -> str:
        """``higher`` or ``lower`` if the interval is entirely above or below 0, else empty."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else ""


@dataclass(frozen=True)
class SystemComparison:
    """Estimates by system and metric.

    Attributes:
        systems: the systems in the order given.
        baseline: name of the baseline.
        replicates: number of bootstrap replicates.
        means: estimates of metrics that are means over queries, and of rsum.
        differences: system minus baseline, for every other system.
        others: means over seeds of all other metrics, without intervals.
    """

    systems: tuple[System, ...]
    baseline: str
    replicates: int
    means: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    others: dict[str, dict[str, float]]

    @property
    def settings(self) -> EvaluationSettings:
        """Settings of all evaluations."""
        return self.systems[0].evaluations[0].settings

    @property
    def seeds(self) -> int:
        """Number of evaluations (seeds) per system."""
        return len(self.systems[0].evaluations)


def compare_systems(
    systems: Sequence[System], baseline: str | None = None, replicates: int = REPLICATES
) -> SystemComparison:
    """Estimate every metric of every system and its difference to the baseline.

    Args:
        systems: systems with equal settings, see `load_systems`.
        baseline: name of the baseline; the first system if None.
        replicates: number of bootstrap replicates, at least 100.

    Raises:
        ValueError: the baseline is unknown, the systems have different numbers of seeds, or too few replicates.
    """
    names = [system.name for system in systems]
    if baseline is None:
        baseline = names[0]
    if baseline not in names:
        raise ValueError(f"unknown baseline {baseline!r}: expected one of {', '.join(names)}")
    if replicates < MIN_REPLICATES:
        raise ValueError(f"replicates must be at least {MIN_REPLICATES}, got {replicates}")
    reference = systems[names.index(baseline)]
    for system in systems:
        if len(system.evaluations) != len(reference.evaluations):
            raise ValueError(
                f"{system.name} has {len(system.evaluations)} evaluations and the baseline {baseline} has "
                f"{len(reference.evaluations)}: give as many seeds for both, as NAME=FILE,FILE"
            )
    drawn = {system.name: _draw(system, replicates) for system in systems}
    means = {name: _estimates(values) for name, values in drawn.items()}
    return SystemComparison(
        systems=tuple(systems),
        baseline=baseline,
        replicates=replicates,
        means=means,
        differences={
            name: _estimates(
                # Round, so that summation error does not count as a difference.
                {key: (values[key] - drawn[baseline][key]).round(9) for key in values if key in drawn[baseline]}
            )
            for name, values in drawn.items()
            if name != baseline
        },
        others={system.name: _others(system, means[system.name]) for system in systems},
    )


def check_comparison(folder: Path) -> None:
    """Check that a comparison would overwrite no file of other origin.

    Raises:
        ValueError: names the first such file.
    """
    for name in ("comparison.md", "comparison.html"):
        check_output(folder / name, is_own=is_generated)


def write_comparison(comparison: SystemComparison, folder: Path) -> tuple[Path, Path]:
    """Write ``comparison.md`` and the self-contained ``comparison.html``.

    Returns:
        Their paths.
    """
    from sdr_lightning.reporting.pages.html import render_page

    page = render_page(
        "comparison.html",
        title=title(comparison),
        summary=summary(comparison),
        tables=main_tables(comparison),
        further=further_tables(comparison),
        notes=notes(comparison),
        settings=settings_table(comparison),
        files=files_table(comparison),
    )
    write_text(folder / "comparison.md", comparison_markdown(comparison))
    write_text(folder / "comparison.html", page + "\n")
    return folder / "comparison.md", folder / "comparison.html"


def comparison_markdown(comparison: SystemComparison) -> str:
    """Render the same contents as the HTML page, in the same order."""
    from sdr_lightning.reporting.pages import markdown

    parts = [
        markdown.MARK,
        f"# {markdown.escape(title(comparison))}",
        markdown.escape(summary(comparison)),
        *(markdown.markdown_table(table) for table in (*main_tables(comparison), *further_tables(comparison))),
        "## Notes",
        markdown.bullets(notes(comparison)),
        "## Evaluation settings",
        markdown.markdown_table(settings_table(comparison)),
        markdown.markdown_table(files_table(comparison)),
    ]
    return "\n\n".join(parts) + "\n"


def title(comparison: SystemComparison) -> str:
    """Name up to four systems, else give their number."""
    names = [system.name for system in comparison.systems]
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 5 else f"Comparison of {len(names)} systems"


def summary(comparison: SystemComparison) -> str:
    """Describe the data and the intervals."""
    settings, seeds = comparison.settings, comparison.seeds
    split = f" (split {settings.split})" if settings.split else ""
    over = "from one evaluation" if seeds == 1 else f"the mean over {seeds} seeds"
    drawn = "images" if seeds == 1 else "images and seeds"
    protocol = "" if settings.protocol == "clean" else f", protocol {settings.protocol}"
    text = (
        f"Retrieval among {formatting.count(settings.images)} images and {formatting.count(settings.texts)} "
        f"texts{split}{protocol}. Each entry is {over}, with a {formatting.percent(CONFIDENCE)} interval from "
        f"{formatting.count(comparison.replicates)} bootstrap replicates over {drawn}."
    )
    if len(comparison.systems) > 1:
        text += f" Differences are paired, system minus {comparison.baseline}."
    return " ".join([text, *_verdicts(comparison)])


def _verdicts(comparison: SystemComparison) -> list[str]:
    """Say for each system whether its rsum differs from that of the baseline."""
    words = {"higher": "higher", "lower": "lower", "": "no clear difference, the interval contains 0"}
    found = []
    for name, differences in comparison.differences.items():
        if "rsum" in differences:
            rsum = _difference(differences["rsum"], 1)
            found.append(f"rsum of {name}: {rsum.text} {rsum.detail}, {words[rsum.tag]}.")
    return found


def main_tables(comparison: SystemComparison) -> tuple[Table, ...]:
    """The table that a reader looks at first: recall, rsum and NDCG@10. Empty if no evaluation has any of them."""
    metrics = [metric for metric in _estimated(comparison) if not _is_further(metric)]
    several = len(comparison.systems) > 1
    caption = f"Means with {formatting.percent(CONFIDENCE)} intervals"
    if several:
        caption += f", and differences to {comparison.baseline}"
    return _filled(_estimates_table(comparison, metrics, "estimates", caption))


def further_tables(comparison: SystemComparison) -> tuple[Table, ...]:
    """Tables of the other metrics: NDCG at other cut-offs and with other gains, and metrics without intervals."""
    metrics = [metric for metric in _estimated(comparison) if _is_further(metric)]
    return _filled(
        _estimates_table(comparison, metrics, "further", "NDCG at other cut-offs and with exponential gains"),
        _others_table(comparison),
    )


def _estimated(comparison: SystemComparison) -> list[str]:
    return sort_metrics({metric for means in comparison.means.values() for metric in means})


def _is_further(metric: str) -> bool:
    return "NDCG" in metric and not metric.endswith("NDCG@10")


def _filled(*tables: Table) -> tuple[Table, ...]:
    return tuple(table for table in tables if any(block.rows for block in table.blocks))


def notes(comparison: SystemComparison) -> list[str]:
    """Explain the tables and the scope of the intervals."""
    settings, seeds = comparison.settings, comparison.seeds
    images = formatting.count(settings.images)
    found = [
        f"Intervals are percentile bootstrap intervals: {images} of {images} images are drawn with replacement, each with "
        f"all its queries (captions of one image are not independent), and the central {formatting.percent(CONFIDENCE)} of "
        f"{formatting.count(comparison.replicates)} such means is taken. The gallery is fixed: the intervals do not cover "
        "other or larger galleries.",
        "With one seed, intervals cover the choice of queries only. They do not cover the variation between training runs, "
        "which may be larger."
        if seeds == 1
        else f"Seeds are drawn as well ({seeds} of {seeds}, with replacement), so intervals cover the choice of queries and "
        "the variation between training runs. With few seeds they are somewhat too narrow.",
    ]
    if len(comparison.systems) > 1:
        again = "" if seeds == 1 else " Seeds are paired in the order of their files."
        made = sum(len(values) for values in comparison.differences.values())
        found += [
            f"A difference is system minus {comparison.baseline}, computed with the same draws for both.{again} Higher (▲) "
            "or lower (▼): the interval excludes 0. Overlapping intervals of two means do not show that the systems are equal.",
            f"There is no correction for multiple comparisons ({made} differences in all): if no true difference existed, about "
            "one interval in twenty would still exclude 0.",
        ]
    if any(comparison.others.values()):
        found.append("Metrics that are not means over queries, such as median ranks and tie rates, have no interval.")
    if corrupted := corruptions(comparison):
        found.append(f"The test data is corrupted ({'; '.join(corrupted)}).")
    if settings.folds:
        found.append(
            f"Metrics named {settings.folds}fold are means over {settings.folds} disjoint folds of the images; the gallery of "
            "a query is its fold."
        )
    return found


def settings_table(comparison: SystemComparison) -> Table:
    """Settings that all evaluations share."""
    settings = comparison.settings
    kind = comparison.systems[0].evaluations[0].relevance_kind
    corrupted = corruptions(comparison)
    rows = {
        "Protocol": _explained(settings.protocol, _PROTOCOLS),
        "Split": settings.split or formatting.MISSING,
        "Images, texts": f"{formatting.count(settings.images)}, {formatting.count(settings.texts)}",
        "Data fingerprint": formatting.short(settings.data),
        "Corruption of the test data": "; ".join(corrupted) or "none",
        "Ties": _explained(settings.ties, _TIES),
        "Siblings": _explained(settings.siblings, _SIBLINGS),
        "Relevance": f"{kind} {formatting.short(settings.relevance)}" if settings.relevance else "none (no NDCG)",
        "Folds": formatting.count(settings.folds),
    }
    return Table(
        "settings",
        "Settings of all evaluations",
        ("Setting", "Value"),
        (Block(tuple(text_row(*row) for row in rows.items())),),
        numeric=False,
    )


def corruptions(comparison: SystemComparison) -> list[str]:
    """Say on which corrupted test data the systems were tested; empty if all are clean."""
    found = {
        system.name: sorted({evaluation.corruption or "none" for evaluation in system.evaluations})
        for system in comparison.systems
    }
    if all(own == ["none"] for own in found.values()):
        return []
    return [f"{name}: {' or '.join(own)}" for name, own in found.items()]


def files_table(comparison: SystemComparison) -> Table:
    """Evaluation files, code versions and inputs."""
    rows = tuple(
        text_row(
            system.name,
            str(evaluation.path),
            evaluation.code or formatting.MISSING,
            ", ".join(f"{name} {formatting.short(digest)}" for name, digest in evaluation.inputs.items())
            or formatting.MISSING,
        )
        for system in comparison.systems
        for evaluation in system.evaluations
    )
    return Table("files", "Files", ("System", "Evaluation", "Code", "Inputs (SHA-256)"), (Block(rows),), numeric=False)


def _draw(system: System, replicates: int) -> dict[str, Floats]:
    """By metric: the estimate followed by its bootstrap replicates, (1 + replicates,)."""
    shared = set.intersection(*(set(evaluation.queries) for evaluation in system.evaluations))
    metrics = sort_metrics(shared)
    if not metrics:
        return {}
    sums, counts = (
        np.stack([np.stack([run.queries[metric][part] for metric in metrics], axis=-1) for run in system.evaluations])
        for part in (0, 1)
    )
    rows = np.vstack((mean_over_seeds(sums, counts), bootstrap_mean(sums, counts, replicates)))
    drawn = dict(zip(metrics, rows.T, strict=True))
    if all(recall in drawn for recall in RECALLS):
        drawn["rsum"] = np.sum([drawn[recall] for recall in RECALLS], axis=0)
    return drawn


def _estimates(drawn: dict[str, Floats]) -> dict[str, Estimate]:
    if not drawn:
        return {}
    rows = np.stack(list(drawn.values()), axis=-1)
    ends = np.stack((rows[0], *interval(rows[1:])), axis=-1)
    return {metric: Estimate(*row) for metric, row in zip(drawn, ends.tolist(), strict=True)}


def _others(system: System, means: dict[str, Estimate]) -> dict[str, float]:
    tables = [evaluation.metrics for evaluation in system.evaluations]
    shared = set.intersection(*map(set, tables)) - means.keys()
    return {metric: sum(table[metric] for table in tables) / len(tables) for metric in sort_metrics(shared)}


def _estimates_table(comparison: SystemComparison, metrics: list[str], key: str, caption: str) -> Table:
    names = [system.name for system in comparison.systems]
    several = len(names) > 1
    blocks: dict[str, list[tuple[Cell, ...]]] = {}
    for metric in metrics:
        row = [Cell(_label(metric))]
        for name in names:
            row.append(_entry(comparison.means[name].get(metric)))
            if name != comparison.baseline:
                row.append(_difference(comparison.differences[name].get(metric), 1 if metric == "rsum" else 2))
        blocks.setdefault(_block(metric), []).append(tuple(row))
    headings, groups = ["Metric"], [("", 1)]
    for name in names:
        if name == comparison.baseline:
            headings.append("mean")
            groups.append((f"{name} (baseline)" if several else name, 1))
        else:
            headings += ["mean", "difference"]
            groups.append((name, 2))
    return Table(
        key,
        caption,
        tuple(headings),
        tuple(Block(tuple(rows), heading) for heading, rows in blocks.items()),
        tuple(groups),
    )


def _others_table(comparison: SystemComparison) -> Table:
    names = [system.name for system in comparison.systems]
    metrics = sort_metrics({metric for values in comparison.others.values() for metric in values})
    rows = tuple(
        text_row(_label(metric), *(_plain(comparison.others[name].get(metric)) for name in names)) for metric in metrics
    )
    return Table("others", "Other metrics, without intervals", ("Metric", *names), (Block(rows),))


def _entry(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(formatting.MISSING)
    return Cell(
        formatting.number(estimate.value), f"[{formatting.number(estimate.low)}, {formatting.number(estimate.high)}]"
    )


def _difference(estimate: Estimate | None, decimals: int) -> Cell:
    if estimate is None:
        return Cell(formatting.MISSING)
    ends = f"[{formatting.signed(estimate.low, decimals)}, {formatting.signed(estimate.high, decimals)}]"
    return Cell(formatting.signed(estimate.value, decimals), ends, estimate.direction, strong=bool(estimate.direction))


def _plain(value: float | None) -> str:
    return formatting.MISSING if value is None else f"{value:.4g}".replace("-", "−")


def _label(metric: str) -> str:
    return "rsum (of 600)" if metric == "rsum" else metric.replace("_", " ")


def _block(metric: str) -> str:
    if "_R@" in metric or metric == "rsum":
        return "Recall, %"
    return "NDCG, %"


def _explained(value: str, meanings: dict[str, str]) -> str:
    return f"{value}: {meanings[value]}" if value in meanings else value
