"""Compare the methods of a study with its baseline."""

from dataclasses import dataclass

from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL, Quantity
from sdr_lightning.reporting.statistics import Interval, Verdict, paired_difference, verdict
from sdr_lightning.results.schema import Condition, Study

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
