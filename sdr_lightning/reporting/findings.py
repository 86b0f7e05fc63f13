"""What a study found, in words that its record decides: the headline of the report, its tiles and its scope."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import PairedComparison, compare_claims, compare_with_baseline
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.reporting.statistics import OUTCOMES, Verdict, highest
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, Study

MARKS: dict[Verdict, str] = {"higher": "▲", "lower": "▼", "undecided": "○"}
"""Higher, lower, and not decided: the interval contains 0."""

LEGEND = (
    "▲ higher, ▼ lower: the 95 % interval of the paired difference, in brackets, excludes 0. ○ undecided: it contains 0, or "
    "there are fewer than two seeds. rsum: the sum of six recalls in percent, at most 600."
)

_TASKS = {
    "Cross-modal retrieval": "images ↔ texts; rsum",
    "Single-modal retrieval": "images → images, texts → texts; NDCG@10 in\N{NO-BREAK SPACE}%",
    "Mixed retrieval": "gallery of images and texts; NDCG@10 in\N{NO-BREAK SPACE}%",
}
"""What each claim measures, for readers who do not know the abbreviations."""

_MOST_ROWS = 4


@dataclass(frozen=True)
class TileRow:
    """The difference under one condition.

    Attributes:
        label: the condition.
        value: the difference.
        detail: its interval.
        verdict: on the difference.
        runs: the runs behind it, see :class:`~sdr_lightning.reporting.tables.table.Cell`.
    """

    label: str
    value: str
    detail: str
    verdict: Verdict
    runs: str

    @property
    def mark(self) -> str:
        """The sign of the verdict."""
        return MARKS[self.verdict]


@dataclass(frozen=True)
class Tile:
    """Candidate minus baseline for one claim: what was measured, the verdicts in words, and the numbers by condition."""

    title: str
    task: str
    verdicts: str
    rows: tuple[TileRow, ...]


def headline(study: Study) -> str:
    """State in which conditions the candidate beats the baseline in the first claim that was measured.

    The verdicts alone decide: a difference whose 95 % interval contains 0 counts as no clear difference.
    """
    candidate, baseline = study.candidate, study.reference
    title, comparisons = next(iter(compare_claims(study).items()), ("", ()))
    known = [comparison for comparison in comparisons if comparison.difference.n]
    if not known:
        return f"{candidate} and {baseline}: no pair of runs to compare yet"
    if all(comparison.difference.n < 2 for comparison in known):
        return f"{candidate} and {baseline}: too few seeds for a verdict"
    task = f"in {title.lower()}"
    at = {outcome: [c.condition for c in known if c.verdict == outcome] for outcome in OUTCOMES}
    better, worse, undecided = (at[outcome] for outcome in OUTCOMES)
    total = len(comparisons)
    if better:
        main = f"{candidate} beats {baseline} {task} {_under(better, total)}"
    elif worse:
        main = f"{candidate} falls behind {baseline} {task} {_under(worse, total)}"
    else:
        return f"No clear difference between {candidate} and {baseline} {task}"
    rest = [f"falls behind {_under(worse, total)}"] if better and worse else []
    if undecided:
        others = f"under the other {len(undecided)} conditions" if len(undecided) > 2 else _under(undecided, total)
        rest.append(f"no clear difference {others}")
    return "; ".join([main, *rest])


def sentences(study: Study) -> tuple[str, ...]:
    """Return the largest decided difference, the result of each control with random teachers, and the best methods, in rsum."""
    if not RSUM.present(study):
        return ()
    compared = [compare_with_baseline(study, study.candidate, c, RSUM) for c in study.conditions]
    controls = [name for name, method in study.methods.items() if method.teachers == "placebo"]
    found = [_largest(study, compared), *(_control(study, name) for name in controls), _best(study)]
    return tuple(filter(None, found))


def tiles(study: Study) -> tuple[Tile, ...]:
    """Return one tile for each claim that a pair of runs measured.

    At most four conditions are listed: all, or else the data as given and the highest ratio of each corruption.
    """
    return tuple(
        Tile(title, _TASKS[title], _counted(comparisons), _rows(study, comparisons))
        for title, comparisons in compare_claims(study).items()
        if any(comparison.difference.n for comparison in comparisons)
    )


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
        chance = chance_rsum(study.data.num_test_images, study.data.num_test_captions)
        if chance is not None:
            parts.append(f"a random ranking has an rsum of {formatting.number(chance)}")
    return "; ".join(parts) + "."


def chance_rsum(images: int | None, captions: int | None) -> float | None:
    """Return the expected rsum of a random ranking, in percent of 600; every image has the mean number of captions.

    >>> round(chance_rsum(1000, 5000), 2)
    3.2
    """
    if not images or not captions:
        return None
    own = captions / images
    total = 0.0
    for k in (1, 5, 10):
        missed = 1.0  # none of an image's captions is among the first k
        for place in range(min(k, captions)):
            missed *= max(0.0, 1 - own / (captions - place))
        total += 1 - missed + min(1.0, k / images)
    return 100 * total


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _largest(study: Study, comparisons: Sequence[PairedComparison]) -> str:
    """The largest gain in rsum, or without a gain the largest loss; empty if all are undecided."""
    gains = [c for c in comparisons if c.verdict == "higher"]
    decided = gains or [c for c in comparisons if c.verdict == "lower"]
    if not decided:
        return ""
    largest = max(decided, key=lambda c: abs(c.difference.mean))
    means = (RSUM.interval(study, method, largest.condition).mean for method in (study.candidate, study.reference))
    candidate, baseline = map(formatting.number, means)
    of = f", the largest {'gain' if gains else 'loss'}" if len(decided) > 1 else ""
    return (
        f"Mean rsum {_named([largest.condition])}: {candidate} with {study.candidate}, {baseline} with {study.reference}; "
        f"difference {formatting.signed(largest.difference.mean)} {formatting.bounds(largest.difference)}{of}."
    )


def _control(study: Study, method: str) -> str:
    """The verdicts on a control; empty while a condition has no pair of runs."""
    comparisons = [compare_with_baseline(study, method, condition, RSUM) for condition in study.conditions]
    if not all(comparison.difference.n for comparison in comparisons):
        return ""
    return (
        f"With random features in place of those of the teachers ({method}), rsum against {study.baseline_of(method)} is "
        f"{_counted(comparisons)}."
    )


def _best(study: Study) -> str:
    """Name the methods with the highest mean rsum, all if several share it; empty for two methods, whose differences say so."""
    wins: Counter[str] = Counter()
    total = 0
    for condition in study.conditions:
        means = {method: RSUM.interval(study, method, condition) for method in study.methods}
        known = {method: interval.mean for method, interval in means.items() if interval.n}
        if len(known) > 1:
            wins.update(highest(known))
            total += 1
    if len(study.methods) < 3 or not wins:
        return ""
    named = _joined([f"{method} in {count}" for method, count in wins.most_common()])
    return (
        f"Highest mean rsum of the {len(study.methods)} methods: {named} of {total} conditions."
        if total > 1
        else (f"Highest mean rsum of the {len(study.methods)} methods: {_joined(list(wins))}.")
    )


def _counted(comparisons: Sequence[PairedComparison]) -> str:
    """Say in how many conditions each verdict holds."""
    known = [comparison for comparison in comparisons if comparison.difference.n]
    if len(comparisons) == 1:
        return comparisons[0].verdict
    counts = {outcome: sum(c.verdict == outcome for c in known) for outcome in OUTCOMES}
    parts = [f"{word} in {count}" for word, count in counts.items() if count]
    missing = len(comparisons) - len(known)
    return f"{', '.join(parts)} of {len(comparisons)} conditions{f', {missing} not measured yet' if missing else ''}"


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
    """List conditions by corruption, such as ``on the data as given and under mismatch 30 and 60 %``."""
    ratios: dict[str, list[str]] = {}
    for condition in conditions:
        if condition.imbalance != NO_IMBALANCE:
            ratios.setdefault(condition.imbalance, []).append(f"{100 * condition.ratio:.4g}")
    labels = [f"{formatting.name(name)} {_joined(values)}{formatting.NBSP}%" for name, values in ratios.items()]
    clean = ["on the data as given"] if len(conditions) > sum(map(len, ratios.values())) else []
    return " and ".join([*clean, *([f"under {_joined(labels)}"] if labels else [])])


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
