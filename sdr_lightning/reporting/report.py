"""The report of a study, or the curves of a run, as files in its folder."""

from pathlib import Path

from sdr_lightning.paths import check_output, write_atomically
from sdr_lightning.reporting import plots
from sdr_lightning.reporting.contents import gather
from sdr_lightning.reporting.curves import read_curves
from sdr_lightning.reporting.generator import is_generated
from sdr_lightning.reporting.markdown import render_markdown
from sdr_lightning.reporting.page import render_html
from sdr_lightning.results.fields import Fields
from sdr_lightning.results.loading import load_study


def build_report(study_dir: Path) -> Path:
    """Write ``report.html`` (one file, nothing fetched), ``report.md`` and ``figures/*.png``.

    The report is a function of the folder: the same folder gives the same bytes. The page is written last,
    and each file in one step, so an interrupted call leaves the former report whole.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is no study in the folder, one of its files is malformed, or a file that is not a report's would be
            replaced (the message names it).
    """
    check_report(study_dir)
    contents = gather(load_study(study_dir))
    for picture in (*contents.pictures, *filter(None, [contents.training])):
        _write(study_dir / "figures" / f"{picture.key}.png", picture.png)
    _write(study_dir / "report.md", render_markdown(contents).encode())
    page = study_dir / "report.html"
    _write(page, render_html(contents).encode())
    return page


def check_report(study_dir: Path) -> None:
    """Refuse to replace a file that is not a report's.

    Raises:
        ValueError: names the file and what to do.
    """
    for path in (study_dir / "report.html", study_dir / "report.md", *sorted(study_dir.glob("figures/*.png"))):
        check_output(path, is_own=is_generated)


def draw_run(run_dir: Path) -> Path:
    """Write ``training.png`` of one run: recall, terms, lambda and temperatures by epoch.

    Returns:
        The path of the picture.

    Raises:
        ValueError: there is no log of a training in the folder, it is malformed, or a picture of another origin would be
            replaced.
    """
    check_output(run_dir / "training.png", is_own=is_generated)
    record = run_dir / "run.json"
    protocol = Fields.read(record).text("protocol", "clean") if record.is_file() else "clean"
    figure = plots.run_figure(read_curves(run_dir / "metrics.csv"), protocol)
    if figure is None:
        raise ValueError(f"neither a study nor a training in {run_dir}: there is no study.json and no metrics.csv")
    _write(run_dir / "training.png", plots.to_png(figure))
    return run_dir / "training.png"


def _write(path: Path, content: bytes) -> None:
    def write(part: Path) -> None:
        part.write_bytes(content)

    write_atomically(path, write)
