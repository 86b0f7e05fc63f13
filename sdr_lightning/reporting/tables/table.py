"""A table as plain values, rendered as HTML, Markdown or terminal output."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        text: the value.
        detail: shown smaller after the value.
        tag: label after the value, such as a verdict.
        strong: whether the value is bold.
        runs: the runs behind the value, see :func:`~sdr_lightning.reporting.formatting.runs_key`; empty without them.
    """

    text: str
    detail: str = ""
    tag: str = ""
    strong: bool = False
    runs: str = ""


@dataclass(frozen=True)
class Block:
    """Rows under a common title. The first cell of a row is its label."""

    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table with one row of headings and optional group headings above it.

    Attributes:
        key: HTML id.
        caption: title of the table.
        headings: one per column.
        blocks: the rows.
        groups: (heading, number of columns) from left to right, covering all columns; or empty.
        numeric: whether all columns but the first are right-aligned.

    Raises:
        ValueError: rows, groups and headings differ in width.
    """

    key: str
    caption: str
    headings: tuple[str, ...]
    blocks: tuple[Block, ...]
    groups: tuple[tuple[str, int], ...] = ()
    numeric: bool = True

    def __post_init__(self) -> None:
        width = len(self.headings)
        widths = {len(row) for block in self.blocks for row in block.rows} | {width}
        if len(widths) > 1 or (self.groups and sum(span for _, span in self.groups) != width):
            raise ValueError(f"table {self.key}: rows or groups do not have {width} columns, as the headings do")


def text_row(*texts: str) -> tuple[Cell, ...]:
    """Make a row of plain text."""
    return tuple(Cell(text) for text in texts)
