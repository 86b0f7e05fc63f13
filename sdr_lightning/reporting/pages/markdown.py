"""Render reports as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sdr_lightning.reporting import formatting, notes
from sdr_lightning.reporting.examples import DIRECTIONS, SHOWN, Example, Result
from sdr_lightning.reporting.findings import LEGEND, Tile
from sdr_lightning.reporting.generator import GENERATOR
from sdr_lightning.reporting.study_contents import StudyContents
from sdr_lightning.reporting.tables.table import Cell, Table
from sdr_lightning.results.schema import Study

if TYPE_CHECKING:  # it imports matplotlib
    from sdr_lightning.reporting.figures.report import ReportFigure, ReportFigures


def study_markdown(contents: StudyContents, figures: ReportFigures) -> str:
    """Render a study report: the same contents as the HTML page, in the same order."""
    study = contents.study
    main, *others = (_figure(figure) for figure in figures.results) if figures.results else [""]
    parts = [
        MARK,
        f"# {escape(contents.headline)}",
        f"**{escape(study.title)}.** {escape(study.description)}".strip(),
        bullets(contents.sentences),
        "\n".join(_tile(contents.study, tile) for tile in contents.tiles),
        escape(LEGEND) if contents.tiles else "",
        escape(contents.scope),
        main,
        "## Differences from the baseline",
        notes.claims_note(study),
        *(markdown_table(t) for t in (contents.claims, contents.claims_by_task, contents.against_baseline) if t),
        *(notes.missing_metrics_note(name) for name in contents.missing),
        "## Means over seeds",
        notes.means_note(study),
        *(markdown_table(table) for table in contents.means),
        *([markdown_table(contents.detection), notes.DETECTION] if contents.detection else []),
        "## Metrics under each condition",
        notes.CURVES,
        *others,
        "## Example retrievals",
        notes.EXAMPLES if contents.examples else "",
        *_examples(contents),
        "## Training",
        _figure(figures.training) if figures.training else "No run at these ratios has a training log.",
        "## Methods and data",
        markdown_table(contents.methods),
        markdown_table(contents.imbalances),
        escape(notes.data_note(study)),
        "## Tuning",
        notes.tuning_note(study),
        *(markdown_table(table) for table in contents.tuning),
        "## Teachers and corrupted training data",
        markdown_table(contents.teachers) if contents.teachers else "The study has no teachers.",
        markdown_table(contents.realised) if contents.realised else "No run recorded the corruption of its data.",
        "## Runs",
        escape(contents.provenance),
        markdown_table(contents.runs),
        "## Notes",
        bullets(contents.caveats) or "None.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


MARK = f"<!-- generator: {GENERATOR} -->"


def escape(text: str) -> str:
    """Escape HTML, table and emphasis characters, and join lines."""
    for mark, replacement in {
        "&": "&amp;",
        "<": "&lt;",
        ">": "&gt;",
        "|": "\\|",
        "*": "\\*",
        "`": "\\`",
    }.items():
        text = text.replace(mark, replacement)
    return " ".join(text.split())


def bullets(texts: Iterable[str]) -> str:
    """Render a list."""
    return "\n".join(f"- {escape(text)}" for text in texts)


def markdown_table(table: Table) -> str:
    """Render a table; group headings become prefixes of the column headings."""
    groups = [group.split(":")[0] for group, span in table.groups for _ in range(span)]
    groups = groups or [""] * len(table.headings)
    headings = [escape(f"{group} {name}".strip()) for group, name in zip(groups, table.headings, strict=True)]
    align = "---:" if table.numeric else ":---"
    lines = [_row(headings), _row([":---", *[align] * (len(headings) - 1)])]
    for block in table.blocks:
        if block.title:
            lines.append(_row([f"**{escape(block.title)}**", *[""] * (len(headings) - 1)]))
        lines += [_row([_cell(cell) for cell in row]) for row in block.rows]
    return f"**{escape(table.caption)}**\n\n" + "\n".join(lines)


def _row(entries: list[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _cell(cell: Cell) -> str:
    text = f"**{escape(cell.text)}**" if cell.strong else escape(cell.text)
    return " ".join(part for part in (text, escape(cell.detail), escape(cell.tag)) if part)


def _tile(study: Study, tile: Tile) -> str:
    rows = "; ".join(f"{row.label}: {row.mark} {row.value} {row.detail}".rstrip() for row in tile.rows)
    compared = f"{study.candidate} − {study.reference}, {tile.task}; {tile.verdicts}"
    return f"- **{escape(tile.title)}** ({escape(compared)}): {escape(rows)}"


def _figure(figure: ReportFigure) -> str:
    return f"![{escape(figure.caption)}](figures/{figure.key}.png)\n\n{escape(figure.caption)}"


def _examples(contents: StudyContents) -> list[str]:
    parts = []
    for group in contents.examples:
        parts.append(f"### {formatting.condition_label(group.condition)}, seed {group.seed}")
        parts += [_example(contents, example) for example in group.examples]
    return parts or ["No run has example retrievals."]


def _example(contents: StudyContents, example: Example) -> str:
    query = example.query
    shown_query = _item(contents, Result(query.image, query.text, None, correct=False))
    lines = [_row(["Method", *(str(i + 1) for i in range(SHOWN))]), _row([":---"] * (SHOWN + 1))]
    for method, results in example.results.items():
        shown = [("✓ " if result.correct else "") + _item(contents, result) for result in results]
        lines.append(_row([escape(method), *shown, *[""] * (SHOWN - len(shown))]))
    return f"{DIRECTIONS[query.direction]}: {shown_query}\n\n" + "\n".join(lines)


def _item(contents: StudyContents, result: Result) -> str:
    if result.image is None:
        return escape(result.text or "")
    link = contents.thumbnails.link(result.image)
    return escape(result.image) if link is None else f"![{escape(result.image)}]({link})"
