"""The claims under test, as paired comparisons, and what they say in plain words."""

from dataclasses import dataclass

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL, Quantity
from sdr_lightning.reporting.statistics import OUTCOMES, Interval, Verdict, paired_difference, verdict
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, Study

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


def compare(study: Study, method: str, condition: Condition, quantity: Quantity) -> Comparison:
    """Pair a method with the study's baseline over the seeds both have."""
    difference = paired_difference(
        quantity.by_seed(study, method, condition), quantity.by_seed(study, study.baseline, condition)
    )
    return Comparison(method, condition, quantity, difference)


def claims(study: Study) -> dict[str, tuple[Comparison, ...]]:
    """For each claim whose metrics the study has, the candidate's comparison under every condition."""
    return {
        title: tuple(compare(study, study.candidate, condition, quantity) for condition in study.conditions)
        for title, quantity in CLAIMS.items()
        if quantity.present(study)
    }


def summarise(study: Study) -> list[str]:
    """The report's first paragraph, sentence by sentence, made from the numbers alone."""
    sentences = [_scope(study)]
    sentences += [_verdicts(title, comparisons) for title, comparisons in claims(study).items()]
    if RSUM.present(study):
        sentences += [_hardest(study, condition) for condition in study.hardest]
    return [sentence for sentence in sentences if sentence]


def _scope(study: Study) -> str:
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    data = f" on {study.data.name}" if study.data.name else ""
    there = len(study.runs)
    finished = "All" if there == study.num_expected else f"Only {there} of"
    return (
        f"{study.candidate} is compared with {study.baseline}{data} under {len(study.conditions)} "
        f"conditions, paired over {seeds}. {finished} {study.num_expected} runs are in."
    )


def _verdicts(title: str, comparisons: tuple[Comparison, ...]) -> str:
    parts = []
    for outcome in OUTCOMES:
        conditions = [c.condition for c in comparisons if c.verdict == outcome]
        if conditions:
            parts.append(f"{outcome} in {len(conditions)} ({_where(conditions)})")
    label = comparisons[0].quantity.label
    return f"{title} ({label}), of {len(comparisons)} comparisons: {', '.join(parts)}."


def _where(conditions: list[Condition]) -> str:
    """``mismatch 30 and 60 %, no imbalance``: conditions of one imbalance share its name."""
    ratios: dict[str, list[str]] = {}
    for condition in conditions:
        ratios.setdefault(condition.imbalance, []).append(f"{100 * condition.ratio:.4g}")
    places = []
    for imbalance, (*earlier, last) in ratios.items():
        listed = f"{', '.join(earlier)} and {last}" if earlier else last
        label = f"{write.name(imbalance)} {listed}{write.NBSP}%"
        places.append(label if imbalance != NO_IMBALANCE else "no imbalance")
    return ", ".join(places)


def _hardest(study: Study, condition: Condition) -> str:
    """The two means at the end of a curve, and whose mean is the highest there."""
    means = {method: RSUM.interval(study, method, condition) for method in study.methods}
    means = {method: mean for method, mean in means.items() if mean.n}
    if study.candidate not in means or study.baseline not in means:
        return ""
    difference = compare(study, study.candidate, condition, RSUM).difference
    best = max(means, key=lambda method: means[method].mean)
    others = f"; of the {len(means)} methods, {best} has the highest mean" if len(means) > 2 else ""
    label = write.condition_label(condition)
    return (
        f"At {label}, mean rsum is {write.number(means[study.candidate].mean)} with {study.candidate} and "
        f"{write.number(means[study.baseline].mean)} with {study.baseline}, a paired difference of "
        f"{write.signed(difference.mean)} {write.bounds(difference)}".rstrip()
        + others
        + "."
    )
