"""Reports of studies, runs, sweeps and evaluations.

Matplotlib, SciPy and Jinja are imported when a function is called, so importing the package is cheap.
"""

from pathlib import Path

from sdr_lightning.reporting.running import Running

__all__ = ["build_report", "check_report", "draw_run", "write_page"]


def build_report(study_dir: Path) -> Path:
    """Write the report of a study; see :func:`sdr_lightning.reporting.study_report.build_report`."""
    from sdr_lightning.reporting import study_report

    return study_report.build_report(study_dir)


def check_report(study_dir: Path) -> None:
    """Check the outputs of a report; see :func:`sdr_lightning.reporting.study_report.check_report`."""
    from sdr_lightning.reporting import study_report

    study_report.check_report(study_dir)


def draw_run(run_dir: Path) -> Path:
    """Draw the training curves of a run; see :func:`sdr_lightning.reporting.study_report.draw_run`."""
    from sdr_lightning.reporting import study_report

    return study_report.draw_run(run_dir)


def write_page(study_dir: Path, running: Running | None = None) -> Path:
    """Write the page of a study that may be running; see :func:`sdr_lightning.reporting.study_report.write_page`."""
    from sdr_lightning.reporting import study_report

    return study_report.write_page(study_dir, running)
