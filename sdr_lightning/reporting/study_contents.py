"""Contents of a study report, rendered as HTML and as Markdown."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from sdr_lightning.reporting import notes
from sdr_lightning.reporting.claims import summarise
from sdr_lightning.reporting.examples import ExampleGroup, collect_examples
from sdr_lightning.reporting.figures.study import degree_figure, family_figure, ratio_figure
from sdr_lightning.reporting.figures.style import to_png, to_svg
from sdr_lightning.reporting.figures.thumbnails import Thumbnails, data_uri
from sdr_lightning.reporting.figures.training import training_figure
from sdr_lightning.reporting.quantities import ALIGNMENT, MIXED, NDCG_AT_10, NEIGHBOURS, RSUM, SINGLE_MODAL
from sdr_lightning.reporting.tables import results
from sdr_lightning.reporting.tables import study as study_tables
from sdr_lightning.reporting.tables.table import Table
from sdr_lightning.results.schema import Study


@dataclass(frozen=True)
class ReportFigure:
    """A figure as SVG (embedded in HTML) and PNG (linked from Markdown).

    Attributes:
        key: HTML id and file name of the PNG.
        caption: also the alternative text.
        svg: the SVG file.
        png: the PNG file.
    """

    key: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def embedded(self) -> str:
        """The SVG as a data URI."""
        return data_uri(self.svg, "image/svg+xml")


@dataclass(frozen=True)
class StudyContents:
    """Text, tables and figures of a study report, independent of the output format."""

    study: Study
    summary: tuple[str, ...]
    provenance: str
    methods: Table
    imbalances: Table
    claims: Table
    claims_by_task: Table | None
    against_baseline: Table | None
    missing: tuple[str, ...]
    figures: tuple[ReportFigure, ...]
    means: tuple[Table, ...]
    detection: Table | None
    tuning: tuple[Table, ...]
    training: ReportFigure | None
    examples: tuple[ExampleGroup, ...]
    teachers: Table | None
    realised: Table | None
    runs: Table
    caveats: tuple[str, ...]
    thumbnails: Thumbnails


def study_contents(study: Study) -> StudyContents:
    """Compute all text, tables and figures of the report."""
    training = training_figure(study)
    return StudyContents(
        study=study,
        summary=tuple(summarise(study)),
        provenance=notes.provenance_line(study),
        methods=study_tables.methods_table(study),
        imbalances=study_tables.imbalances_table(study),
        claims=results.claims_table(study),
        claims_by_task=results.claims_by_task_table(study),
        against_baseline=results.against_baseline_table(study),
        missing=_missing(study),
        figures=_figures(study),
        means=results.means_tables(study),
        detection=results.detection_table(study),
        tuning=tuple(filter(None, (study_tables.spaces_table(study), study_tables.chosen_table(study)))),
        training=None if training is None else _figure("training", _TRAINING, training),
        examples=collect_examples(study),
        teachers=study_tables.teachers_table(study),
        realised=study_tables.realised_table(study),
        runs=study_tables.runs_table(study),
        caveats=tuple(notes.caveats(study)),
        thumbnails=Thumbnails(study.root),
    )


_TRAINING = (
    "Training curves at the highest ratio of each imbalance. Thin lines are seeds, thick lines are means over seeds."
)
_DEGREE = (
    "rsum against the measured degree of imbalance: the mean information imbalance (Glielmo et al., 2022) between the "
    "teachers' features of images and of their paired captions. It is 1 where neither modality predicts neighbours of "
    "the other. Points are means over seeds."
)


def _missing(study: Study) -> tuple[str, ...]:
    named = {"rsum": RSUM, "Single-modal NDCG": SINGLE_MODAL, "Mixed NDCG": MIXED}
    return tuple(name for name, quantity in named.items() if not quantity.present(study))


def _figures(study: Study) -> tuple[ReportFigure, ...]:
    figures = []
    for number, ((name, field), family) in enumerate(study.families.items()):
        caption = (
            f"{name}: retrieval quality and agreement with the teachers against {field}, one line per imbalance ratio. "
            "A ring marks the best point of each line. Error bars are 95 % Student-t intervals of the mean."
        )
        figure = family_figure(study, family, (RSUM, SINGLE_MODAL, NEIGHBOURS, ALIGNMENT))
        figures.append(_figure(f"sweep-{number}", caption, figure))
    for quantity in (RSUM, *NDCG_AT_10.values(), NEIGHBOURS):
        if not quantity.present(study):
            continue
        teacher = {"i2i_ndcg_10": "image", "t2t_ndcg_10": "text"}.get(quantity.key)
        references = {
            f"{t.modality} teacher": t.metrics["NDCG@10"]
            for t in study.teacher_records
            if t.modality == teacher and "NDCG@10" in t.metrics
        }
        figure = ratio_figure(study, quantity, height=4.6 if quantity is RSUM else 2.9, references=references)
        caption = (
            f"{quantity.label} against the imbalance ratio. Points are means over {len(study.seeds)} seeds (n is given "
            "where it is smaller); error bars are 95 % Student-t intervals of the mean."
        )
        figures.append(_figure(quantity.key, caption, figure))
    by_degree = degree_figure(study, RSUM)
    if by_degree is not None:
        figures.append(_figure("degree", _DEGREE, by_degree))
    return tuple(figures)


def _figure(key: str, caption: str, figure: Figure) -> ReportFigure:
    return ReportFigure(key, caption, to_svg(figure), to_png(figure))
