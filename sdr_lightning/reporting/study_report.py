"""Write the report of a study or the training curves of a run."""

import json
from pathlib import Path
from typing import Any

from sdr_lightning.paths import check_output, write_atomically
from sdr_lightning.reporting import findings, formatting, notes
from sdr_lightning.reporting.chart_data import chart_data
from sdr_lightning.reporting.examples import DIRECTIONS
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.pages.html import render_page
from sdr_lightning.reporting.running import Running
from sdr_lightning.reporting.study_contents import StudyContents, study_contents
from sdr_lightning.results.fields import Fields
from sdr_lightning.results.loading import load_study


def build_report(study_dir: Path) -> Path:
    """Write ``report.html`` (self-contained), ``report.md`` and ``figures/*.png``.

    Equal folders give equal bytes. Each file is replaced atomically and the HTML page is written last, so an
    interrupted call keeps the previous page.

    Args:
        study_dir: folder with ``study.json``, ``cells/`` and optionally ``teachers/`` and ``thumbnails/``.

    Returns:
        The path of the HTML page.

    Raises:
        ValueError: the folder has no study, a file of it is malformed, or a file of other origin would be
            overwritten.
    """
    check_report(study_dir)
    contents = study_contents(load_study(study_dir))
    write_markdown(study_dir, contents)
    return _write_page(study_dir, contents, None)


def write_markdown(study_dir: Path, contents: StudyContents) -> None:
    """Write ``report.md`` and ``figures/*.png`` alone.

    Args:
        study_dir: folder of the study.
        contents: what its report shows.
    """
    from sdr_lightning.reporting.figures.report import report_figures  # imports matplotlib, which takes a second
    from sdr_lightning.reporting.pages.markdown import study_markdown

    figures = report_figures(contents.study)
    for figure in figures.all:
        _write(study_dir / "figures" / f"{figure.key}.png", figure.png)
    _write(study_dir / "report.md", study_markdown(contents, figures).encode())


def write_page(study_dir: Path, running: Running | None = None) -> Path:
    """Write ``report.html`` alone, which takes less than a second, with the results that are there.

    Args:
        study_dir: folder of the study, with ``study.json``.
        running: how far the study is, while it runs: a browser then loads the page again every few seconds.

    Returns:
        The path of the page.

    Raises:
        ValueError: as :func:`build_report`.
    """
    return _write_page(study_dir, study_contents(load_study(study_dir)), running)


def _write_page(study_dir: Path, contents: StudyContents, running: Running | None) -> Path:
    data, pictures = chart_data(contents.study), contents.pictures()
    page = render_page(
        "study.html",
        contents=contents,
        study=contents.study,
        running=running,
        data=_embedded(data),
        has_training=bool(data["training"]),
        pictures=_embedded(pictures),
        known=pictures.keys(),
        directions=DIRECTIONS,
        findings=findings,
        notes=notes,
        formatting=formatting,
    )
    _write(study_dir / "report.html", page.encode())
    return study_dir / "report.html"


def _embedded(value: Any) -> str:
    """JSON for a script element, which "<" could end."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def check_report(study_dir: Path) -> None:
    """Check that a report would overwrite no file of other origin.

    Raises:
        ValueError: names the first such file.
    """
    for path in (study_dir / "report.html", study_dir / "report.md", *sorted(study_dir.glob("figures/*.png"))):
        check_output(path, is_own=is_generated)


def draw_run(run_dir: Path) -> Path:
    """Write ``training.png``: recall, loss terms, λ and temperatures of one run by epoch.

    Args:
        run_dir: folder with ``metrics.csv`` and optionally ``run.json``.

    Returns:
        The path of the figure.

    Raises:
        ValueError: the folder has no training log, the log is malformed, or a file of other origin would be
            overwritten.
    """
    from sdr_lightning.reporting.figures.style import to_png
    from sdr_lightning.reporting.figures.training import run_figure

    check_output(run_dir / "training.png", is_own=is_generated)
    record = run_dir / "run.json"
    protocol = Fields.read(record).text("protocol", "clean") if record.is_file() else "clean"
    figure = run_figure(read_curves(run_dir / "metrics.csv"), protocol)
    if figure is None:
        raise ValueError(f"{run_dir} is neither a study nor a run: it has no study.json and no metrics.csv")
    _write(run_dir / "training.png", to_png(figure))
    return run_dir / "training.png"


def _write(path: Path, content: bytes) -> None:
    def write(part: Path) -> None:
        part.write_bytes(content)

    write_atomically(path, write)
