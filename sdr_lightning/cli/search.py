"""``sdr search``: search an index by words or by a picture."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdr_lightning.cli.choices import WITHIN

if TYPE_CHECKING:
    from sdr_lightning.retrieval import Hit


def parser() -> ArgumentParser:
    """Return the parser of ``sdr search``."""
    parser = ArgumentParser(prog="sdr search", description="Search an index of sdr index by words or by a picture.")
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of sdr index")
    parser.add_argument("words", nargs="?", help="the query")
    parser.add_argument("--image", type=Path, metavar="FILE", help="a picture as the query, instead of words")
    parser.add_argument("-k", type=int, default=10, help="number of results (default: 10)")
    parser.add_argument(
        "--in", dest="within", choices=WITHIN, default="images", help="what to search in (default: images)"
    )
    parser.add_argument(
        "--rerank", type=int, default=0, metavar="N", help="order the first N again by the model's matching head"
    )
    parser.add_argument("--approximate", action="store_true", help="search by the graph of sdr index --approximate")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def run(arguments: list[str]) -> int:
    """Search; return the exit status. See ``sdr search --help``.

    Raises:
        ValueError: an empty query, an unreadable picture, or an index that cannot be used.
    """
    options = parser().parse_args(arguments)
    if (options.words is None) == (options.image is None):
        raise ValueError(
            'expected one query: words in quotation marks, as in sdr search my.index "a dog", or --image FILE'
        )
    from sdr_lightning.retrieval import Index

    hits = Index.open(options.index).search(
        options.words,
        image=options.image,
        k=options.k,
        within=options.within,
        rerank=options.rerank,
        approximate=options.approximate,
    )
    if options.json:
        print(json.dumps([hit._asdict() for hit in hits], indent=2, ensure_ascii=False))
    else:
        _show(hits)
    return 0


def _show(hits: Sequence[Hit]) -> None:
    reranked = any(hit.match is not None for hit in hits)
    table = Table(box=None, pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    if reranked:
        table.add_column("match", justify="right")
    table.add_column("item", overflow="fold")
    with_captions = any(hit.captions for hit in hits)
    if with_captions:
        table.add_column("caption", overflow="fold")
    for hit in hits:
        match = ["" if hit.match is None else f"{hit.match:.2f}"] if reranked else []
        item = _from_here(hit.path) if hit.kind == "image" and hit.path else hit.id
        caption = [Text(hit.captions[0] if hit.captions else "")] if with_captions else []
        table.add_row(str(hit.rank), f"{hit.score:.4f}", *match, Text(item), *caption)
    Console().print(table)


def _from_here(path: str) -> str:
    """A path in the current folder without it."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
