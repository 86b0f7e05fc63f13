"""Sentences that the page and the Markdown file share: how to read what they show."""

from sdr_lightning.reporting.claims import claims
from sdr_lightning.results.schema import Study


def claims_note(study: Study) -> str:
    """How to read the table of claims, and what its intervals do not cover."""
    comparisons = sum(len(row) for row in claims(study).values())
    return (
        f"Each entry is the mean over seeds of {study.candidate} − {study.baseline}, paired by seed, with "
        "its 95 % Student-t interval over seeds. Supported: the interval lies wholly above 0. Not supported: "
        "wholly below 0. Undecided: it contains 0, or there are fewer than two seeds. The intervals are per "
        f"comparison, with no correction for multiple comparisons, and this table makes {comparisons}: if no "
        "difference were real, about one interval in twenty would still exclude 0. rsum is the sum of six "
        "recalls in percent (of 600); NDCG is in percent."
    )


def curves_note() -> str:
    """Why two bars that overlap are not the test."""
    return (
        "Bars are 95 % intervals of each mean by itself. Whether two methods differ is read from the paired "
        "tables: a seed moves both alike, so overlapping bars do not say that they agree."
    )


def means_note(study: Study) -> str:
    """How to read the tables of means."""
    return (
        f"Mean over {len(study.seeds)} seeds ± half of the 95 % interval. Bold: the highest mean of a block, "
        "which is not a test."
    )


def examples_note() -> str:
    """How the examples were chosen."""
    return (
        "The first queries of each file, not chosen by their results. Best result first; a frame and ✓ mark "
        "what belongs to the query."
    )


def absent_note(name: str) -> str:
    """Said in place of what the metrics do not allow to show."""
    return f"{name}: no run has these metrics, so they are left out."
