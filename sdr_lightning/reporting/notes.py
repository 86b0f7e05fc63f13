"""Explanatory notes of a study report."""

from collections import Counter

from sdr_lightning.reporting import formatting
from sdr_lightning.reporting.claims import compare_claims
from sdr_lightning.reporting.tables.study import realised
from sdr_lightning.results.schema import Study

CURVES = (
    "Error bars are 95 % intervals of each mean. They do not show whether two methods differ, because a seed affects "
    "both methods alike: use the paired differences for that."
)
DETECTION = (
    "AUC: how often a clean training pair has a greater estimated probability to be clean than a corrupted one, 50 for guessing. "
    "Estimated share: the mean estimated probability of a pair to be corrupted. Both are of the tested epoch."
)
EXAMPLES = (
    "The queries are spread evenly over the test split, whatever the results. Those on which baseline and candidate differ come "
    "first, those that no method finds last. Results are in order of decreasing similarity; a frame and ✓ mark those that "
    "belong to the query."
)


def claims_note(study: Study) -> str:
    """Explain the table of claims and the scope of its intervals."""
    comparisons = sum(len(row) for row in compare_claims(study).values())
    return (
        f"Each entry is the mean over seeds of {study.candidate} − {study.reference}, paired by seed, with its 95 % "
        "Student-t interval. Higher: the interval is entirely above 0. Lower: entirely below 0. Undecided: "
        "it contains 0, or there are fewer than two seeds. The intervals cover the variation between seeds only. "
        f"There is no correction for multiple comparisons ({comparisons} in this table): if no true difference "
        "existed, about one interval in twenty would still exclude 0. rsum is the sum of six recalls in percent (at "
        "most 600); NDCG is in percent."
    )


def tuning_note(study: Study) -> str:
    """Explain how the options of the methods were chosen."""
    if study.tuning is None:
        return "Untuned: every method is used as configured."
    return (
        f"For each condition, every method has up to {study.tuning.trials} trials: one as configured, and one for each of the "
        "points that were drawn from its own space; fewer where the space has no more. Trials train with seed "
        f"{study.tuning.seed}, which is not among the seeds of the comparison, and do not read the test split. The options of "
        "the trial with the highest validation rsum, at its best epoch, are used with all seeds."
    )


def means_note(study: Study) -> str:
    """Explain the tables of means."""
    return (
        f"Mean over {len(study.seeds)} seeds ± half-width of the 95 % interval. The highest mean of each block is "
        "bold; this is not a significance test."
    )


def data_note(study: Study) -> str:
    """Describe the data set and its size."""
    data = study.data
    train, test = (
        f"{formatting.count(images)} images, {formatting.count(captions)} captions"
        for images, captions in (
            (data.num_train_images, data.num_train_captions),
            (data.num_test_images, data.num_test_captions),
        )
    )
    relevance = f" Relevance for NDCG: {data.relevance}" if data.relevance else ""
    return f"{data.name}. {data.description} Training: {train}. Test: {test}.{relevance}"


def missing_metrics_note(name: str) -> str:
    """State that a quantity is left out because no run has its metrics."""
    return f"{name} is not shown: no run has these metrics."


def provenance_line(study: Study) -> str:
    """Summarise protocol, command, data, commits, versions and hardware in one line."""
    runs = study.runs.values()
    dirty = sum(run.dirty for run in runs)
    parts = [
        [f"protocol {study.protocol}"],
        [f"command {study.command}"] if study.command else [],
        [f"data {formatting.short(study.data.fingerprint)}"] if study.data.fingerprint else [],
        sorted({f"commit {formatting.short(run.commit)}" for run in runs if run.commit}),
        [f"code {formatting.short(study.code)}"] if study.code else [],
        [f"{dirty} of {len(runs)} runs with uncommitted changes"] if dirty else [],
        sorted({f"torch {run.versions['torch']}" for run in runs if "torch" in run.versions}),
        sorted({run.hardware for run in runs if run.hardware}),
        [f"wall time {formatting.duration(study.wall_time_s)}"] if study.wall_time_s is not None else [],
    ]
    return " · ".join(", ".join(part) for part in parts if part)


def caveats(study: Study) -> list[str]:
    """Return the notes of the study, and notes on missing, excluded and inconsistent runs."""
    notes = list(study.notes)
    missing = study.num_expected - len(study.runs)
    if missing:
        notes.append(f"{missing} of {study.num_expected} runs are not finished; n is shown where it is smaller.")
    for condition in study.conditions:
        for seed in study.seeds:
            if len({item.sha256 for item in realised(study, condition, seed)}) > 1:
                where = f"{formatting.condition_label(condition)}, seed {seed}"
                notes.append(
                    f"{where}: the methods were trained on different corrupted data, so pairing may be invalid."
                )
    under = Counter(text for run in study.runs.values() for text in run.evaluation_corruption)
    for text, runs in sorted(under.items()):
        notes.append(f"The evaluation data is corrupted in {runs} of {len(study.runs)} runs: {text}.")
    failed = sum(bool(trial.failure) for trial in study.trials)
    if failed:
        notes.append(f"{failed} of {len(study.trials)} trials failed, because the loss was not finite.")
    dirty = sum(run.dirty for run in study.runs.values())
    if dirty:
        notes.append(f"{dirty} runs were made with uncommitted changes to the code.")
    if study.outdated:
        folders = ", ".join(folder.as_posix() for folder in study.outdated)
        notes.append(
            f"Made with other code or options than the rest and excluded until sdr reproduce repeats them: {folders}."
        )
    if study.foreign:
        folders = ", ".join(folder.as_posix() for folder in study.foreign)
        notes.append(f"Not part of the study and excluded: {folders}.")
    return notes
