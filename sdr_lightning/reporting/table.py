"""A table as plain values: HTML and Markdown print the same one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One entry: a text, a smaller detail after it, and marks.

    ``tag`` is a verdict to be shown as a coloured label; ``strong`` is for the best of a block.
    """

    text: str
    detail: str = ""
    tag: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that belong together; the first cell of a row names it."""

    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table with one row of headings, and above it optional headings that span several columns.

    ``groups`` lists (heading, number of columns) from the left and covers all columns or is empty.
    ``numeric`` aligns all but the first column to the right.
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
            raise ValueError(f"table {self.key}: {width} headings, but rows or groups of other widths")


def cells(*texts: str) -> tuple[Cell, ...]:
    """A row of plain entries."""
    return tuple(Cell(text) for text in texts)
