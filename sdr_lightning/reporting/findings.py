"""What a study found, in words that its record decides: the headline of the report, its tiles and its scope."""

from collections.abc import Sequence
from dataclasses import dataclass

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import PairedComparison, compare_claims, compare_with_baseline
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.reporting.statistics import OUTCOMES, Verdict
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, Study

MARKS: dict[Verdict, str] = {"supported": "▲", "not supported": "▼", "undecided": "○"}
"""Higher, lower, and not decided: the interval contains 0."""

LEGEND = (
    "▲ higher, ▼ lower: the 95 % interval of the paired difference, in brackets, excludes 0. ○ undecided: it contains 0, or "
    "there are fewer than two seeds."
)

_MOST_ROWS = 4


@dataclass(frozen=True)
class TileRow:
    """One condition of a tile.

    Attributes:
        label: the condition.
        value: a difference, or the best method.
        detail: interval of the difference, or the mean of the best method.
        verdict: on the difference; empty for the best method.
        runs: the runs behind the value, see :class:`~sdr_lightning.reporting.tables.table.Cell`.
    """

    label: str
    value: str
    detail: str
    verdict: Verdict | None = None
    runs: str = ""

    @property
    def mark(self) -> str:
        """The sign of the verdict."""
        return "" if self.verdict is None else MARKS[self.verdict]


@dataclass(frozen=True)
class Tile:
    """One result: a title, the verdicts in words, and its numbers by condition."""

    title: str
    summary: str
    rows: tuple[TileRow, ...]


def headline(study: Study) -> str:
    """State in which conditions the candidate beats the baseline in the first claim that was measured.

    The verdicts alone decide: a difference whose 95 % interval contains 0 counts as no clear difference.
    """
    candidate, baseline = study.candidate, study.baseline
    found = next(iter(compare_claims(study).items()), None)
    if found is None or not any(comparison.difference.n for comparison in found[1]):
        return f"{candidate} and {baseline}: no result yet"
    title, comparisons = found
    task = f"in {title.lower()}"
    at = {outcome: [c.condition for c in comparisons if c.verdict == outcome] for outcome in OUTCOMES}
    better, worse, undecided = (at[outcome] for outcome in OUTCOMES)
    total = len(comparisons)
    if better:
        main = f"{candidate} beats {baseline} {task} {_under(better, total)}"
    elif worse:
        main = f"{candidate} falls behind {baseline} {task} {_under(worse, total)}"
    else:
        return f"No clear difference between {candidate} and {baseline} {task}"
    rest = [f"falls behind {_under(worse, total)}"] if better and worse else []
    rest += [f"no clear difference {_under(undecided, total)}"] if undecided else []
    return ", ".join([main, *rest])


def tiles(study: Study) -> tuple[Tile, ...]:
    """Return one tile for each claim, one for each control with random teachers, and one for the best methods.

    At most four conditions are listed: all, or else no imbalance and the highest ratio of each corruption.
    """
    found = [
        Tile(f"{title}: {study.candidate} − {study.baseline}", _counted(comparisons), _rows(study, comparisons))
        for title, comparisons in compare_claims(study).items()
    ]
    if not RSUM.present(study):
        return tuple(found)
    for method in study.methods.values():
        if method.teachers == "placebo":
            comparisons = tuple(compare_with_baseline(study, method.name, c, RSUM) for c in study.conditions)
            title = f"Control, random teachers: {method.name} − {study.baseline_of(method.name)}"
            found.append(Tile(title, _counted(comparisons), _rows(study, comparisons)))
    if len(study.methods) > 2:
        found.append(_best(study))
    return tuple(found)


def scope(study: Study) -> str:
    """Describe what was compared, and how much of it is there."""
    parts = [
        f"{len(study.methods)} methods, {_number(len(study.conditions), 'condition')}, {_number(len(study.seeds), 'seed')}",
        f"{len(study.runs)} of {study.num_expected} runs finished",
        "untuned"
        if study.tuning is None
        else f"tuned with {study.tuning.trials} trials for each method and condition, on validation data",
    ]
    if study.data.name and study.data.num_train_images is not None:
        parts.append(
            f"{study.data.name}, {formatting.count(study.data.num_train_images)} training and "
            f"{formatting.count(study.data.num_test_images)} test images"
        )
    return "; ".join(parts) + "."


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _counted(comparisons: Sequence[PairedComparison]) -> str:
    """Say in how many conditions each verdict holds."""
    words: dict[Verdict, str] = {"supported": "higher", "not supported": "lower", "undecided": "undecided"}
    counts = {outcome: sum(c.verdict == outcome for c in comparisons) for outcome in OUTCOMES}
    parts = [f"{words[outcome]} in {count}" for outcome, count in counts.items() if count]
    return f"{comparisons[0].quantity.label}: {', '.join(parts)} of {_number(len(comparisons), 'condition')}"


def _rows(study: Study, comparisons: Sequence[PairedComparison]) -> tuple[TileRow, ...]:
    listed = _listed_conditions(study)
    return tuple(
        TileRow(
            label=formatting.condition_label(c.condition),
            value=formatting.signed(c.difference.mean, c.quantity.difference_decimals),
            detail=formatting.bounds(c.difference, c.quantity.difference_decimals),
            verdict=c.verdict,
            runs=formatting.runs_key(c.quantity.key, c.method, c.condition),
        )
        for c in comparisons
        if c.condition in listed
    )


def _best(study: Study) -> Tile:
    """The method with the highest mean rsum under each condition."""
    winners: dict[Condition, tuple[str, float]] = {}
    for condition in study.conditions:
        means = {method: RSUM.interval(study, method, condition) for method in study.methods}
        known = {method: interval.mean for method, interval in means.items() if interval.n}
        if known:
            best = max(known, key=known.__getitem__)
            winners[condition] = best, known[best]
    wins: dict[str, int] = {}
    for method, _ in winners.values():
        wins[method] = wins.get(method, 0) + 1
    counts = sorted(wins.items(), key=lambda item: -item[1])
    summary = ", ".join(f"{method} in {count}" for method, count in counts)
    listed = _listed_conditions(study)
    rows = tuple(
        TileRow(
            formatting.condition_label(condition),
            method,
            formatting.number(mean),
            runs=formatting.runs_key(RSUM.key, method, condition),
        )
        for condition, (method, mean) in winners.items()
        if condition in listed
    )
    of = f" of {_number(len(winners), 'condition')}"
    return Tile("Highest mean rsum, not a test", summary + of if summary else "no run yet", rows)


def _listed_conditions(study: Study) -> tuple[Condition, ...]:
    if len(study.conditions) <= _MOST_ROWS:
        return study.conditions
    clean = Condition.of(NO_IMBALANCE, 0.0)
    return tuple(c for c in study.conditions if c == clean or c in study.hardest)[: _MOST_ROWS + 1]


def _under(conditions: Sequence[Condition], total: int) -> str:
    """Name conditions: all of them, up to three by name, or their number.

    >>> _under([Condition("mismatch", 0.3), Condition("mismatch", 0.6)], 5).replace("\\N{NO-BREAK SPACE}", " ")
    'under mismatch 30 and 60 %'
    """
    if len(conditions) == total:
        return "" if total == 1 and conditions[0].ratio == 0 else _named(conditions) if total < 3 else "everywhere"
    return _named(conditions) if len(conditions) <= 3 else f"under {len(conditions)} of {total} conditions"


def _named(conditions: Sequence[Condition]) -> str:
    """List conditions by corruption, such as ``without imbalance and under mismatch 30 and 60 %``."""
    ratios: dict[str, list[str]] = {}
    for condition in conditions:
        if condition.imbalance != NO_IMBALANCE:
            ratios.setdefault(condition.imbalance, []).append(f"{100 * condition.ratio:.4g}")
    labels = [f"{formatting.name(name)} {_joined(values)}{formatting.NBSP}%" for name, values in ratios.items()]
    clean = ["without imbalance"] if len(conditions) > sum(map(len, ratios.values())) else []
    return " and ".join([*clean, *([f"under {_joined(labels)}"] if labels else [])])


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
