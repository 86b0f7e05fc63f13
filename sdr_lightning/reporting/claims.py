"""The claims under test, as paired comparisons, and what they say in plain words."""

from dataclasses import dataclass

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL, Quantity
from sdr_lightning.reporting.results import NO_IMBALANCE, Condition, Suite
from sdr_lightning.reporting.statistics import Interval, Verdict, paired_difference, verdict

CLAIMS = {
    "Cross-modal retrieval": RSUM,
    "Single-modal retrieval": SINGLE_MODAL,
    "Mixed retrieval": MIXED,
}
"""The method is said to improve each of these under imbalance."""


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline under one condition, paired over seeds."""

    method: str
    condition: Condition
    quantity: Quantity
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
        return verdict(self.difference)


def compare(suite: Suite, method: str, condition: Condition, quantity: Quantity) -> Comparison:
    """Pair a method with the suite's baseline over the seeds both have."""
    difference = paired_difference(
        quantity.by_seed(suite, method, condition), quantity.by_seed(suite, suite.baseline, condition)
    )
    return Comparison(method, condition, quantity, difference)


def claims(suite: Suite) -> dict[str, tuple[Comparison, ...]]:
    """For each claim whose metrics the suite has, the candidate's comparison under every condition."""
    return {
        title: tuple(compare(suite, suite.candidate, condition, quantity) for condition in suite.conditions)
        for title, quantity in CLAIMS.items()
        if quantity.present(suite)
    }


def summarise(suite: Suite) -> list[str]:
    """The report's first paragraph, sentence by sentence, made from the numbers alone."""
    sentences = [_scope(suite)]
    sentences += [_verdicts(title, comparisons) for title, comparisons in claims(suite).items()]
    if RSUM.present(suite):
        sentences += [_hardest(suite, condition) for condition in suite.hardest]
    return [sentence for sentence in sentences if sentence]


def _scope(suite: Suite) -> str:
    seeds = f"{len(suite.seeds)} seed{'s' if len(suite.seeds) > 1 else ''}"
    data = f" on {suite.data.name}" if suite.data.name else ""
    there = len(suite.runs)
    finished = "All" if there == suite.num_expected else f"Only {there} of"
    return (
        f"{suite.candidate} is compared with {suite.baseline}{data} under {len(suite.conditions)} "
        f"conditions, paired over {seeds}. {finished} {suite.num_expected} runs are in."
    )


def _verdicts(title: str, comparisons: tuple[Comparison, ...]) -> str:
    parts = []
    for outcome in ("supported", "not supported", "undecided"):
        labels = [write.condition_label(c.condition) for c in comparisons if c.verdict == outcome]
        if labels:
            where = "everywhere" if len(labels) == len(comparisons) > 1 else ", ".join(labels)
            parts.append(f"{outcome} in {len(labels)} ({where})")
    return f"{title}, {comparisons[0].quantity.label}: of {len(comparisons)} comparisons, {'; '.join(parts)}."


def _hardest(suite: Suite, condition: Condition) -> str:
    """The two means at the end of a curve, and whoever has the highest one there."""
    means = {method: RSUM.interval(suite, method, condition) for method in suite.methods}
    candidate, baseline = means[suite.candidate], means[suite.baseline]
    if not candidate.n or not baseline.n:
        return ""
    difference = compare(suite, suite.candidate, condition, RSUM).difference
    best = max((method for method in means if means[method].n), key=lambda method: means[method].mean)
    where = (
        "Without imbalance"
        if condition.imbalance == NO_IMBALANCE
        else f"At {write.condition_label(condition)}"
    )
    interval = f", 95{write.NBSP}% interval {write.bounds(difference)}" if difference.half is not None else ""
    return (
        f"{where}, mean rsum is {write.number(candidate.mean)} for {suite.candidate} and "
        f"{write.number(baseline.mean)} for {suite.baseline} "
        f"(paired difference {write.signed(difference.mean)}{interval}); the highest mean of the "
        f"{len(means)} methods there is {best}'s, {write.number(means[best].mean)}."
    )
