"""Compare methods with the baseline of a study, and summarise the comparisons in sentences."""

from dataclasses import dataclass

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL, Quantity
from sdr_lightning.reporting.statistics import OUTCOMES, Interval, Verdict, paired_difference, verdict
from sdr_lightning.results.schema import NO_IMBALANCE, Condition, Study

CLAIMS = {
    "Cross-modal retrieval": RSUM,
    "Single-modal retrieval": SINGLE_MODAL,
    "Mixed retrieval": MIXED,
}
"""The quantities that the candidate is claimed to improve under imbalance."""


@dataclass(frozen=True)
class PairedComparison:
    """A method minus its baseline under one condition, paired by seed."""

    method: str
    condition: Condition
    quantity: Quantity
    difference: Interval

    @property
    def verdict(self) -> Verdict:
        """The verdict on the difference."""
        return verdict(self.difference)


def compare_with_baseline(study: Study, method: str, condition: Condition, quantity: Quantity) -> PairedComparison:
    """Compare a method with its baseline, see :meth:`Study.baseline_of`, over the seeds that both have."""
    baseline = quantity.by_seed(study, study.baseline_of(method), condition)
    difference = paired_difference(quantity.by_seed(study, method, condition), baseline)
    return PairedComparison(method, condition, quantity, difference)


def compare_claims(study: Study) -> dict[str, tuple[PairedComparison, ...]]:
    """Compare the candidate with the baseline, by claim and condition; claims without metrics are left out."""
    return {
        title: tuple(
            compare_with_baseline(study, study.candidate, condition, quantity) for condition in study.conditions
        )
        for title, quantity in CLAIMS.items()
        if quantity.present(study)
    }


def summarise(study: Study) -> list[str]:
    """Return the sentences of the summary at the top of the report."""
    sentences = [_scope(study), _tuning(study)]
    sentences += [_verdicts(title, comparisons) for title, comparisons in compare_claims(study).items()]
    if RSUM.present(study):
        sentences += [_hardest(study, condition) for condition in study.hardest]
    return [sentence for sentence in sentences if sentence]


def _scope(study: Study) -> str:
    seeds = f"{len(study.seeds)} seed{'s' if len(study.seeds) > 1 else ''}"
    data = f" on {study.data.name}" if study.data.name else ""
    available = len(study.runs)
    finished = "All" if available == study.num_expected else f"Only {available} of"
    return (
        f"{study.candidate} is compared with {study.baseline}{data} under {len(study.conditions)} "
        f"conditions, paired over {seeds}. {finished} {study.num_expected} runs are available."
    )


def _tuning(study: Study) -> str:
    if study.tuning is None:
        return "Untuned: every method is used as configured."
    trials = study.tuning.trials
    return f"Tuned: the options of each method are the best of up to {trials} trials on validation data, for each condition."


def _verdicts(title: str, comparisons: tuple[PairedComparison, ...]) -> str:
    parts = []
    for outcome in OUTCOMES:
        conditions = [c.condition for c in comparisons if c.verdict == outcome]
        if conditions:
            parts.append(f"{outcome} in {len(conditions)} ({_listed(conditions)})")
    label = comparisons[0].quantity.label
    return f"{title} ({label}), {len(comparisons)} comparisons: {', '.join(parts)}."


def _listed(conditions: list[Condition]) -> str:
    """List conditions by imbalance, such as ``mismatch 30 and 60 %, no imbalance``."""
    ratios: dict[str, list[str]] = {}
    for condition in conditions:
        ratios.setdefault(condition.imbalance, []).append(f"{100 * condition.ratio:.4g}")
    labels = []
    for imbalance, (*earlier, last) in ratios.items():
        listed = f"{', '.join(earlier)} and {last}" if earlier else last
        label = f"{formatting.name(imbalance)} {listed}{formatting.NBSP}%"
        labels.append(label if imbalance != NO_IMBALANCE else "no imbalance")
    return ", ".join(labels)


def _hardest(study: Study, condition: Condition) -> str:
    """Give the means of candidate and baseline at the highest ratio, and the method with the highest mean."""
    means = {method: RSUM.interval(study, method, condition) for method in study.methods}
    means = {method: mean for method, mean in means.items() if mean.n}
    if study.candidate not in means or study.baseline not in means:
        return ""
    difference = compare_with_baseline(study, study.candidate, condition, RSUM).difference
    best = max(means, key=lambda method: means[method].mean)
    others = f"; {best} has the highest mean of the {len(means)} methods" if len(means) > 2 else ""
    label = formatting.condition_label(condition)
    return (
        f"At {label}, mean rsum is {formatting.number(means[study.candidate].mean)} with {study.candidate} and "
        f"{formatting.number(means[study.baseline].mean)} with {study.baseline}, a paired difference of "
        f"{formatting.signed(difference.mean)} {formatting.bounds(difference)}".rstrip()
        + others
        + "."
    )
