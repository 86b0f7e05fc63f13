"""Systems side by side: means with intervals over images and seeds, and paired differences to a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdr_lightning.functional.bootstrap import CONFIDENCE, REPLICATES, Floats, bootstrap_mean, interval, mean_over_seeds
from sdr_lightning.paths import check_output, write_text
from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.evaluations import System, Terms, in_order
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.table import Block, Cell, Table, cells
from sdr_lightning.results.schema import RECALLS

FEWEST_REPLICATES = 100
"""Fewer say nothing about the outermost 2.5 % on either side."""

_TIES = {
    "index": "an equally scored item is ahead if it comes first in the gallery",
    "pessimistic": "every equally scored item is ahead",
}
_SIBLINGS = {
    "keep": "the other captions of a query's image stay in its gallery",
    "exclude": "the other captions of a query's image are left out of its gallery",
}


@dataclass(frozen=True)
class Estimate:
    """A number with its percentile interval."""

    value: float
    low: float
    high: float

    @property
    def direction(self) -> str:
        """``higher`` or ``lower`` where the interval lies wholly above or below 0, else empty."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else ""


@dataclass(frozen=True)
class Comparison:
    """What is shown: every entry is by system, then by metric.

    Attributes:
        systems: in the order given.
        baseline: name of the one the others are compared with.
        replicates: of the bootstrap.
        means: with intervals, of metrics that are means over queries or sums of such.
        differences: to the baseline, of every other system.
        others: means over seeds of all other metrics.
    """

    systems: tuple[System, ...]
    baseline: str
    replicates: int
    means: dict[str, dict[str, Estimate]]
    differences: dict[str, dict[str, Estimate]]
    others: dict[str, dict[str, float]]

    @property
    def terms(self) -> Terms:
        """What all of them were asked."""
        return self.systems[0].evaluations[0].terms

    @property
    def seeds(self) -> int:
        """Evaluations of each system."""
        return len(self.systems[0].evaluations)


def compare(systems: Sequence[System], baseline: str | None = None, replicates: int = REPLICATES) -> Comparison:
    """Estimate every metric of every system, and how far it is from the baseline's.

    Args:
        systems: of the same terms, see `load_systems`.
        baseline: name of one of them; the first if None.
        replicates: of the bootstrap.

    Raises:
        ValueError: no such baseline, systems with different numbers of seeds, or too few replicates.
    """
    names = [system.name for system in systems]
    if baseline is None:
        baseline = names[0]
    if baseline not in names:
        raise ValueError(f"no system is called {baseline!r} to be the baseline; there are {', '.join(names)}")
    if replicates < FEWEST_REPLICATES:
        raise ValueError(f"replicates must be at least {FEWEST_REPLICATES}, not {replicates}")
    reference = systems[names.index(baseline)]
    for system in systems:
        if len(system.evaluations) != len(reference.evaluations):
            raise ValueError(
                f"{system.name} has {len(system.evaluations)} evaluations and the baseline {baseline} has "
                f"{len(reference.evaluations)}: a paired difference needs as many seeds in both, NAME=FILE,FILE"
            )
    drawn = {system.name: _draw(system, replicates) for system in systems}
    means = {name: _estimates(values) for name, values in drawn.items()}
    return Comparison(
        systems=tuple(systems),
        baseline=baseline,
        replicates=replicates,
        means=means,
        differences={
            name: _estimates(
                # Rounded: what two orders of summation leave must not count as a difference.
                {key: (values[key] - drawn[baseline][key]).round(9) for key in values if key in drawn[baseline]}
            )
            for name, values in drawn.items()
            if name != baseline
        },
        others={system.name: _others(system, means[system.name]) for system in systems},
    )


def check_comparison(folder: Path) -> None:
    """Refuse to replace a file that is not a comparison's.

    Raises:
        ValueError: names the file and what to do.
    """
    for name in ("comparison.md", "comparison.html"):
        check_output(folder / name, is_own=is_generated)


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, Path]:
    """Write ``comparison.md`` and, as one page that needs no other file, ``comparison.html``.

    Returns:
        Their paths.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sdr_lightning.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("comparison.html").render(
        title=title(comparison),
        summary=summary(comparison),
        tables=tables(comparison),
        notes=notes(comparison),
        terms=terms_table(comparison),
        provenance=provenance_table(comparison),
    )
    write_text(folder / "comparison.md", render_markdown(comparison))
    write_text(folder / "comparison.html", page + "\n")
    return folder / "comparison.md", folder / "comparison.html"


def render_markdown(comparison: Comparison) -> str:
    """The same contents as the page, in the same order."""
    from sdr_lightning.reporting import markdown

    parts = [
        markdown.MARK,
        f"# {markdown.escape(title(comparison))}",
        markdown.escape(summary(comparison)),
        *(markdown._table(table) for table in tables(comparison)),
        "## How to read this",
        "\n".join(f"- {markdown.escape(note)}" for note in notes(comparison)),
        "## What was evaluated",
        markdown._table(terms_table(comparison)),
        markdown._table(provenance_table(comparison)),
    ]
    return "\n\n".join(parts) + "\n"


def title(comparison: Comparison) -> str:
    """The names; those of a crowd are left to the table."""
    names = [system.name for system in comparison.systems]
    if len(names) == 1:
        return names[0]
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) < 5 else f"{len(names)} systems side by side"


def summary(comparison: Comparison) -> str:
    """What was evaluated and how the numbers came about, in two sentences."""
    terms, seeds = comparison.terms, comparison.seeds
    split = f" of the split {terms.split}" if terms.split else ""
    over = "of one evaluation" if seeds == 1 else f"the mean over {seeds} seeds"
    drawn = "images" if seeds == 1 else "images and seeds"
    text = (
        f"Retrieval among {write.count(terms.images)} images and {write.count(terms.texts)} texts{split}, protocol "
        f"{terms.protocol}. Each entry is {over}, with its {write.percent(CONFIDENCE)} interval, from "
        f"{write.count(comparison.replicates)} bootstrap replicates over {drawn}."
    )
    if len(comparison.systems) > 1:
        text += f" Differences are to {comparison.baseline}, paired."
    return text


def tables(comparison: Comparison) -> tuple[Table, ...]:
    """Metrics with intervals and, if there are any, those without."""
    shown = [
        table
        for table in (_estimates_table(comparison), _others_table(comparison))
        if any(block.rows for block in table.blocks)
    ]
    return tuple(shown)


def notes(comparison: Comparison) -> list[str]:
    """How to read the tables, and what the intervals do not cover."""
    terms, seeds = comparison.terms, comparison.seeds
    found = [
        f"An interval is made by drawing {write.count(terms.images)} of the {write.count(terms.images)} images with "
        "replacement, each with all its queries (the captions of one image are not independent), and taking the "
        f"middle {write.percent(CONFIDENCE)} of {write.count(comparison.replicates)} such means. The gallery stays "
        "as it was: another gallery, or a larger one, is not what it speaks of.",
        "With one seed an interval is about other queries of the same kind. It says nothing about training again, "
        "which may move a metric by more than that."
        if seeds == 1
        else f"Seeds are drawn as well, {seeds} of {seeds} with replacement, so an interval is about other queries and "
        "about training again; with few seeds it is somewhat too narrow.",
    ]
    if len(comparison.systems) > 1:
        again = "" if seeds == 1 else " Seeds are paired in the order their files were given."
        made = sum(len(values) for values in comparison.differences.values())
        found += [
            f"A difference is the system minus {comparison.baseline}, with the same draws for both.{again} Higher (▲) or "
            "lower (▼): its interval excludes 0. Two intervals of means that overlap do not say that the systems agree.",
            f"There is no correction for making {made} comparisons: if no system differed, about one interval in "
            "twenty would still exclude 0.",
        ]
    if any(comparison.others.values()):
        found.append("Medians, rates of ties and the like are not means over queries; they are shown without interval.")
    if terms.folds:
        found.append(
            f"Metrics named {terms.folds}fold are means over {terms.folds} folds of the images, each its own gallery."
        )
    return found


def terms_table(comparison: Comparison) -> Table:
    """What all systems were asked."""
    terms = comparison.terms
    kind = comparison.systems[0].evaluations[0].relevance_kind
    rows = {
        "Protocol": terms.protocol,
        "Split": terms.split or write.MISSING,
        "Images, texts": f"{write.count(terms.images)}, {write.count(terms.texts)}",
        "Data": write.short(terms.data),
        "Ties": _explained(terms.ties, _TIES),
        "Siblings": _explained(terms.siblings, _SIBLINGS),
        "Relevance": f"{kind} {write.short(terms.relevance)}" if terms.relevance else "none, so no NDCG",
        "Folds": write.count(terms.folds),
    }
    return Table(
        "terms",
        "The same for all systems",
        ("", "Value"),
        (Block(tuple(cells(*row) for row in rows.items())),),
        numeric=False,
    )


def provenance_table(comparison: Comparison) -> Table:
    """Where every number comes from."""
    rows = tuple(
        cells(
            system.name,
            str(evaluation.path),
            evaluation.code or write.MISSING,
            ", ".join(f"{name} {write.short(digest)}" for name, digest in evaluation.inputs.items()) or write.MISSING,
        )
        for system in comparison.systems
        for evaluation in system.evaluations
    )
    return Table(
        "files", "Files", ("System", "Evaluation", "Code", "Made from (SHA-256)"), (Block(rows),), numeric=False
    )


def _draw(system: System, replicates: int) -> dict[str, Floats]:
    """By metric the estimate and then its replicates, (1 + replicates,)."""
    shared = set.intersection(*(set(evaluation.queries) for evaluation in system.evaluations))
    metrics = in_order(shared)
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
    return {metric: sum(table[metric] for table in tables) / len(tables) for metric in in_order(shared)}


def _estimates_table(comparison: Comparison) -> Table:
    names = [system.name for system in comparison.systems]
    several = len(names) > 1
    blocks: dict[str, list[tuple[Cell, ...]]] = {}
    for metric in in_order({metric for means in comparison.means.values() for metric in means}):
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
        "estimates",
        f"Means with {write.percent(CONFIDENCE)} intervals"
        + (f", and differences to {comparison.baseline}" if several else ""),
        tuple(headings),
        tuple(Block(tuple(rows), heading) for heading, rows in blocks.items()),
        tuple(groups),
    )


def _others_table(comparison: Comparison) -> Table:
    names = [system.name for system in comparison.systems]
    metrics = in_order({metric for values in comparison.others.values() for metric in values})
    rows = tuple(
        cells(_label(metric), *(_plain(comparison.others[name].get(metric)) for name in names)) for metric in metrics
    )
    return Table("others", "Other metrics, without interval", ("Metric", *names), (Block(rows),))


def _entry(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return Cell(write.MISSING)
    return Cell(write.number(estimate.value), f"[{write.number(estimate.low)}, {write.number(estimate.high)}]")


def _difference(estimate: Estimate | None, decimals: int) -> Cell:
    if estimate is None:
        return Cell(write.MISSING)
    ends = f"[{write.signed(estimate.low, decimals)}, {write.signed(estimate.high, decimals)}]"
    return Cell(write.signed(estimate.value, decimals), ends, estimate.direction, strong=bool(estimate.direction))


def _plain(value: float | None) -> str:
    return write.MISSING if value is None else f"{value:.4g}".replace("-", "−")


def _label(metric: str) -> str:
    return "rsum (of 600)" if metric == "rsum" else metric.replace("_", " ")


def _block(metric: str) -> str:
    if "_R@" in metric or metric == "rsum":
        return "Recall, %"
    return "NDCG, %"


def _explained(value: str, meanings: dict[str, str]) -> str:
    return f"{value}: {meanings[value]}" if value in meanings else value
