"""The figures of a study report, as PNG files beside its Markdown."""

from dataclasses import dataclass

from matplotlib.figure import Figure

from sdr_lightning.reporting.figures.study import degree_figure, family_figure, method_figure, ratio_figure
from sdr_lightning.reporting.figures.style import MAX_LINES, to_png
from sdr_lightning.reporting.figures.training import methods_in_curves, training_figure
from sdr_lightning.reporting.quantities import ALIGNMENT, NDCG_AT_10, NEIGHBOURS, RSUM, SINGLE_MODAL
from sdr_lightning.results.schema import Study


@dataclass(frozen=True)
class ReportFigure:
    """A figure that Markdown links.

    Attributes:
        key: file name without suffix.
        caption: also the alternative text.
        png: the PNG file.
    """

    key: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class ReportFigures:
    """All figures of a report; the first of the results is the main one."""

    results: tuple[ReportFigure, ...]
    training: ReportFigure | None

    @property
    def all(self) -> tuple[ReportFigure, ...]:
        """The figures in order."""
        return (*self.results, *([] if self.training is None else [self.training]))


def report_figures(study: Study) -> ReportFigures:
    """Draw all figures of a report."""
    training = training_figure(study)
    caption, shown = _TRAINING, methods_in_curves(study)
    if len(shown) < len(study.methods):
        caption += f" Shown are {study.baseline}, {study.candidate} and the methods of the highest mean rsum."
    return ReportFigures(_results(study), None if training is None else _figure("training", caption, training))


_TRAINING = (
    "Training curves at the highest ratio of each imbalance. Thin lines are seeds, thick lines are means over seeds."
)
_DEGREE = (
    "rsum against the measured degree of imbalance: the mean information imbalance (Glielmo et al., 2022) between the "
    "teachers' features of images and of their paired captions. It is 1 where neither modality predicts neighbours of "
    "the other. Points are means over seeds."
)


def _results(study: Study) -> tuple[ReportFigure, ...]:
    figures = []
    for number, ((name, field), family) in enumerate(study.families.items() if RSUM.present(study) else ()):
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
        points = (
            f"Points are means over {len(study.seeds)} seeds (n is given where it is smaller); error bars are 95 % "
            "Student-t intervals of the mean."
        )
        if len(study.methods) > MAX_LINES:
            figure = method_figure(study, quantity, references)
            caption = (
                f"{quantity.label} of each method, in the order of the mean over the conditions. {points} The line is the "
                f"mean of {study.baseline}."
            )
        else:
            figure = ratio_figure(study, quantity, height=4.6 if quantity is RSUM else 2.9, references=references)
            caption = f"{quantity.label} against the imbalance ratio. {points}"
        figures.append(_figure(quantity.key, caption, figure))
    by_degree = degree_figure(study, RSUM)
    if by_degree is not None:
        figures.append(_figure("degree", _DEGREE, by_degree))
    return tuple(figures)


def _figure(key: str, caption: str, figure: Figure) -> ReportFigure:
    return ReportFigure(key, caption, to_png(figure))
