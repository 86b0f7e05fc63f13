"""From the folder of a study to a report a reader can check: one HTML page, and the same as Markdown."""

from pathlib import Path

__all__ = ["build_report", "check_report", "draw_run"]


def build_report(study_dir: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``figures/*.png`` into a study's folder.

    See :func:`sdr_lightning.reporting.report.build_report`. Matplotlib, SciPy and Jinja are imported when
    this is called, not with the package, so the command line stays quick.

    Args:
        study_dir: folder holding ``study.json``, ``cells/`` and optionally ``teachers/`` and ``thumbnails/``.

    Returns:
        The path of the HTML page.

    Raises:
        ValueError: there is no study in the folder, one of its files is malformed, or a file that is not a report's would be
            replaced (the message names it).
    """
    from sdr_lightning.reporting import report

    return report.build_report(study_dir)


def check_report(study_dir: Path) -> None:
    """Refuse to replace a file that is not a report's, see :func:`sdr_lightning.reporting.report.check_report`."""
    from sdr_lightning.reporting import report

    report.check_report(study_dir)


def draw_run(run_dir: Path) -> Path:
    """Write ``training.png`` of one run, see :func:`sdr_lightning.reporting.report.draw_run`."""
    from sdr_lightning.reporting import report

    return report.draw_run(run_dir)
