"""Recognise files that a report wrote, so that no other file is overwritten."""

from pathlib import Path

GENERATOR = "sdr_lightning.reporting"
"""Marker in the first bytes of every HTML page, Markdown file and PNG of a report."""

_SWEEP_CSV_START = b"run,state,"


def is_generated(path: Path) -> bool:
    """Return whether a report wrote the file: it has the marker or, as CSV, starts with the columns of a sweep."""
    with path.open("rb") as file:
        head = file.read(1024)
    return head.startswith(_SWEEP_CSV_START) if path.suffix == ".csv" else GENERATOR.encode() in head
