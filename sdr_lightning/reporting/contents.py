"""Everything a report says, computed once and printed twice: as HTML and as Markdown."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from sdr_lightning.reporting import plots, record_tables, tables
from sdr_lightning.reporting.claims import summarise
from sdr_lightning.reporting.examples import ExampleGroup, collect_examples
from sdr_lightning.reporting.quantities import ALIGNMENT, MIXED, NDCG_AT_10, NEIGHBOURS, RSUM, SINGLE_MODAL
from sdr_lightning.reporting.table import Table
from sdr_lightning.reporting.thumbnails import Thumbnails, data_uri
from sdr_lightning.results.schema import Study


@dataclass(frozen=True)
class Picture:
    """A figure in both its forms, with the words under it (and for who cannot see it)."""

    key: str
    caption: str
    svg: bytes
    png: bytes

    @property
    def embedded(self) -> str:
        """The drawing as a data URI."""
        return data_uri(self.svg, "image/svg+xml")


@dataclass(frozen=True)
class Contents:
    """Everything a report says, in no particular notation."""

    study: Study
    summary: str
    provenance: str
    methods: Table
    imbalances: Table
    claims: Table
    claims_by_task: Table | None
    against_baseline: Table | None
    absent: tuple[str, ...]
    pictures: tuple[Picture, ...]
    means: tuple[Table, ...]
    training: Picture | None
    examples: tuple[ExampleGroup, ...]
    teachers: Table | None
    realised: Table | None
    runs: Table
    caveats: tuple[str, ...]
    thumbnails: Thumbnails


def gather(study: Study) -> Contents:
    """Compute every number, table and figure of the report."""
    training = plots.training_figure(study)
    return Contents(
        study=study,
        summary=" ".join(summarise(study)),
        provenance=record_tables.provenance_line(study),
        methods=record_tables.methods_table(study),
        imbalances=record_tables.imbalances_table(study),
        claims=tables.claims_table(study),
        claims_by_task=tables.claims_by_task(study),
        against_baseline=tables.against_baseline(study),
        absent=_absent(study),
        pictures=_pictures(study),
        means=tables.means_tables(study),
        training=None if training is None else _picture("training", _TRAINING, training),
        examples=collect_examples(study),
        teachers=record_tables.teachers_table(study),
        realised=record_tables.realised_table(study),
        runs=record_tables.provenance_table(study),
        caveats=tuple(record_tables.caveats(study)),
        thumbnails=Thumbnails(study.root),
    )


_TRAINING = "By epoch, at the highest ratio of each imbalance. Thin lines are seeds, thick lines their mean."


_DEGREE = (
    "rsum against the degree of imbalance as it is measured: the mean information imbalance (Glielmo et al., 2022) between "
    "the teachers' features of images and of the captions they are paired with; 1 where neither says anything of the other. "
    "Points are means over seeds."
)


def _absent(study: Study) -> tuple[str, ...]:
    named = {"rsum": RSUM, "Single-modal NDCG": SINGLE_MODAL, "Mixed NDCG": MIXED}
    return tuple(name for name, quantity in named.items() if not quantity.present(study))


def _pictures(study: Study) -> tuple[Picture, ...]:
    pictures = []
    for number, ((name, field), family) in enumerate(study.families.items()):
        caption = (
            f"{name}: what becomes of retrieval and of the teachers' structure along {field}, a line for each imbalance ratio. "
            "Rings mark the best point of a line, bars are 95 % Student-t intervals of the mean."
        )
        figure = plots.sweep_figure(study, family, (RSUM, SINGLE_MODAL, NEIGHBOURS, ALIGNMENT))
        pictures.append(_picture(f"sweep-{number}", caption, figure))
    for quantity in (RSUM, *NDCG_AT_10.values(), NEIGHBOURS):
        if not quantity.present(study):
            continue
        teacher = {"i2i_ndcg_10": "image", "t2t_ndcg_10": "text"}.get(quantity.key)
        references = {
            f"{t.modality} teacher": t.metrics["NDCG@10"]
            for t in study.teacher_records
            if t.modality == teacher and "NDCG@10" in t.metrics
        }
        figure = plots.ratio_figure(study, quantity, height=4.6 if quantity is RSUM else 2.9, references=references)
        caption = (
            f"{quantity.label} against the imbalance ratio. Points are means over {len(study.seeds)} seeds "
            "(n is given where fewer are in), bars 95 % Student-t intervals of the mean."
        )
        pictures.append(_picture(quantity.key, caption, figure))
    by_degree = plots.degree_figure(study, RSUM)
    if by_degree is not None:
        pictures.append(_picture("degree", _DEGREE, by_degree))
    return tuple(pictures)


def _picture(key: str, caption: str, figure: Figure) -> Picture:
    return Picture(key, caption, plots.to_svg(figure), plots.to_png(figure))
