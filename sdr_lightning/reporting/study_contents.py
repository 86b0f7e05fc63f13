"""Contents of a study report, rendered as HTML and as Markdown."""

from dataclasses import dataclass

from sdr_lightning.reporting import notes
from sdr_lightning.reporting.examples import ExampleGroup, collect_examples
from sdr_lightning.reporting.figures.thumbnails import Thumbnails
from sdr_lightning.reporting.findings import Tile, headline, scope, sentences, tiles
from sdr_lightning.reporting.quantities import MIXED, RSUM, SINGLE_MODAL
from sdr_lightning.reporting.tables import results
from sdr_lightning.reporting.tables import study as study_tables
from sdr_lightning.reporting.tables.table import Table
from sdr_lightning.results.schema import Study


@dataclass(frozen=True)
class StudyContents:
    """Text and tables of a study report, independent of the output format."""

    study: Study
    headline: str
    sentences: tuple[str, ...]
    tiles: tuple[Tile, ...]
    scope: str
    provenance: str
    methods: Table
    imbalances: Table
    claims: Table
    claims_by_task: Table | None
    against_baseline: Table | None
    missing: tuple[str, ...]
    means: tuple[Table, ...]
    detection: Table | None
    tuning: tuple[Table, ...]
    examples: tuple[ExampleGroup, ...]
    teachers: Table | None
    realised: Table | None
    runs: Table
    caveats: tuple[str, ...]
    thumbnails: Thumbnails

    def pictures(self) -> dict[str, str]:
        """Return the thumbnails of the examples as data URIs by key, each once."""
        keys = {key for group in self.examples for example in group.examples for key in example.images()}
        found = {key: self.thumbnails.embedded(key) for key in sorted(keys)}
        return {key: source for key, source in found.items() if source is not None}


def study_contents(study: Study) -> StudyContents:
    """Compute all text and tables of the report."""
    return StudyContents(
        study=study,
        headline=headline(study),
        sentences=sentences(study),
        tiles=tiles(study),
        scope=scope(study),
        provenance=notes.provenance_line(study),
        methods=study_tables.methods_table(study),
        imbalances=study_tables.imbalances_table(study),
        claims=results.claims_table(study),
        claims_by_task=results.claims_by_task_table(study),
        against_baseline=results.against_baseline_table(study),
        missing=_missing(study),
        means=results.means_tables(study),
        detection=results.detection_table(study),
        tuning=tuple(filter(None, (study_tables.spaces_table(study), study_tables.chosen_table(study)))),
        examples=collect_examples(study),
        teachers=study_tables.teachers_table(study),
        realised=study_tables.realised_table(study),
        runs=study_tables.runs_table(study),
        caveats=tuple(notes.caveats(study)),
        thumbnails=Thumbnails(study.root),
    )


def _missing(study: Study) -> tuple[str, ...]:
    named = {"rsum": RSUM, "Single-modal NDCG": SINGLE_MODAL, "Mixed NDCG": MIXED}
    return tuple(name for name, quantity in named.items() if not quantity.present(study))
