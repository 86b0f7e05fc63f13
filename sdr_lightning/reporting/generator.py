"""The mark of a report's files, by which they are told from files of any other origin."""

from pathlib import Path

GENERATOR = "sdr_lightning.reporting"
"""In the head of every page, Markdown file and picture of a report."""

_TABLE = b"run,state,"


def is_generated(path: Path) -> bool:
    """Whether a file is one of a report: it has the mark, or is the table of a sweep, which has no place for one."""
    with path.open("rb") as file:
        head = file.read(1024)
    return head.startswith(_TABLE) if path.suffix == ".csv" else GENERATOR.encode() in head
