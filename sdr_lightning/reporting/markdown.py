"""The report as Markdown, with its figures as files beside it."""

from sdr_lightning.reporting import formatting as write
from sdr_lightning.reporting import wording
from sdr_lightning.reporting.contents import Contents, Picture
from sdr_lightning.reporting.examples import DIRECTIONS, SHOWN, Example, Result
from sdr_lightning.reporting.generator import GENERATOR
from sdr_lightning.reporting.table import Cell, Table


def render_markdown(contents: Contents) -> str:
    """The same contents as the page, in the same order."""
    study = contents.study
    parts = [
        MARK,
        f"# {escape(study.title)}",
        escape(study.description),
        escape(contents.summary),
        escape(contents.provenance),
        _table(contents.methods),
        _table(contents.imbalances),
        "## Claims",
        wording.claims_note(study),
        *(_table(t) for t in (contents.claims, contents.claims_by_task, contents.against_baseline) if t),
        *(wording.absent_note(name) for name in contents.absent),
        "## Metrics against the imbalance ratio",
        wording.curves_note(),
        *(_picture(picture) for picture in contents.pictures),
        "## Means",
        wording.means_note(study),
        *(_table(table) for table in contents.means),
        "## Training",
        _picture(contents.training) if contents.training else "No run there has a log.",
        "## Example retrievals",
        wording.examples_note() if contents.examples else "",
        *_examples(contents),
        "## Teachers and realised imbalance",
        _table(contents.teachers) if contents.teachers else "The study has no teachers.",
        _table(contents.realised) if contents.realised else "No run says what was done to its data.",
        "## Provenance",
        _table(contents.runs),
        "## Notes",
        "\n".join(f"- {escape(note)}" for note in contents.caveats) or "None.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


MARK = f"<!-- generator: {GENERATOR} -->"


def escape(text: str) -> str:
    """Text that Markdown prints as it is: no HTML, no table bars, no line breaks."""
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


def _table(table: Table) -> str:
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


def _picture(picture: Picture) -> str:
    return f"![{escape(picture.caption)}](figures/{picture.key}.png)\n\n{escape(picture.caption)}"


def _examples(contents: Contents) -> list[str]:
    parts = []
    for group in contents.examples:
        parts.append(f"### {write.condition_label(group.condition)}, seed {group.seed}")
        parts += [_example(contents, example) for example in group.examples]
    return parts or ["No run has examples."]


def _example(contents: Contents, example: Example) -> str:
    query = example.query
    asked = _item(contents, Result(query.image, query.text, None, correct=False))
    lines = [_row(["Method", *(str(i + 1) for i in range(SHOWN))]), _row([":---"] * (SHOWN + 1))]
    for method, results in example.results.items():
        shown = [("✓ " if result.correct else "") + _item(contents, result) for result in results]
        lines.append(_row([escape(method), *shown, *[""] * (SHOWN - len(shown))]))
    return f"{DIRECTIONS[query.direction]}: {asked}\n\n" + "\n".join(lines)


def _item(contents: Contents, result: Result) -> str:
    if result.image is None:
        return escape(result.text or "")
    link = contents.thumbnails.link(result.image)
    return escape(result.image) if link is None else f"![{escape(result.image)}]({link})"
