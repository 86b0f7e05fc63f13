"""Write the report of a study or the training curves of a run."""

from pathlib import Path

from sdr_lightning.paths import check_output, write_atomically
from sdr_lightning.reporting import formatting, notes
from sdr_lightning.reporting.examples import DIRECTIONS
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.reporting.figures.style import to_png
from sdr_lightning.reporting.figures.training import run_figure
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.pages.html import render_page
from sdr_lightning.reporting.pages.markdown import study_markdown
from sdr_lightning.reporting.study_contents import study_contents
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
    for figure in (*contents.figures, *filter(None, [contents.training])):
        _write(study_dir / "figures" / f"{figure.key}.png", figure.png)
    _write(study_dir / "report.md", study_markdown(contents).encode())
    page = render_page(
        "study.html",
        contents=contents,
        study=contents.study,
        directions=DIRECTIONS,
        notes=notes,
        formatting=formatting,
    )
    _write(study_dir / "report.html", page.encode())
    return study_dir / "report.html"


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
