"""The report of a suite as files in its folder."""

from pathlib import Path

from sdr_lightning.reporting.contents import gather
from sdr_lightning.reporting.files import write_atomic
from sdr_lightning.reporting.markdown import render_markdown
from sdr_lightning.reporting.page import render_html
from sdr_lightning.reporting.results import load_suite


def build_report(suite_dir: Path) -> Path:
    """Write ``report.html`` (one file, nothing fetched), ``report.md`` and ``figures/*.png``.

    The report is a function of the folder: the same folder gives the same bytes. The page is written last,
    and each file in one step, so an interrupted call leaves the former report whole.

    Returns:
        The path of the page.

    Raises:
        ValueError: there is no suite in the folder, or one of its files is malformed (the message names it).
    """
    contents = gather(load_suite(suite_dir))
    for picture in (*contents.pictures, *filter(None, [contents.training])):
        write_atomic(suite_dir / "figures" / f"{picture.key}.png", picture.png)
    write_atomic(suite_dir / "report.md", render_markdown(contents).encode())
    page = suite_dir / "report.html"
    write_atomic(page, render_html(contents).encode())
    return page
