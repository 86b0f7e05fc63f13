"""``sdr index``: build an index of pictures and captions, update it, and write it as a table."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sdr_lightning.cli.choices import SPLITS, device
from sdr_lightning.configure.arguments import split_options

if TYPE_CHECKING:
    from sdr_lightning.retrieval import Index

_SHOWN = 5  # pictures left out that are named


def parser() -> ArgumentParser:
    """Return the parser of ``sdr index``."""
    parser = ArgumentParser(
        prog="sdr index",
        description="Embed pictures and captions by a trained model, to be searched by sdr search and sdr serve. Options of the "
        "data, such as --data.init_args.source.init_args.skip_missing true, are also accepted.",
    )
    parser.add_argument(
        "source",
        metavar="MODEL|INDEX",
        help="run, checkpoint or exported model; with --add, --remove and --parquet, an index",
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="pictures to index, sub-folders included")
    parser.add_argument("--data", type=Path, metavar="FILE", help="data configuration: images and captions to index")
    parser.add_argument("--split", choices=SPLITS, default="test", help="split of the data (default: test)")
    parser.add_argument("--output", type=Path, metavar="INDEX", help="new folder")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted build")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--device", type=device, help="device to compute on (default: a GPU if there is one)")
    parser.add_argument(
        "--approximate", action="store_true", help="also build a graph for approximate search, by the package faiss"
    )
    parser.add_argument(
        "--copy-pictures",
        action="store_true",
        help="keep small copies of the pictures in the index, for re-ranking and the page",
    )
    parser.add_argument("--add", type=Path, metavar="FOLDER", help="add the new pictures of a folder to an index")
    parser.add_argument("--remove", nargs="+", metavar="ID", help="remove images or captions from an index")
    parser.add_argument(
        "--parquet", type=Path, metavar="FILE", help="write the items and embeddings of an index, for a vector database"
    )
    return parser


def run(arguments: list[str]) -> int:
    """Build or update an index; return the exit status. See ``sdr index --help``.

    Raises:
        ValueError: options are incompatible, or the input cannot be used.
    """
    rest, own = split_options(arguments, ("--data.",))
    options = parser().parse_args(own)
    _check(options, rest)
    from sdr_lightning.configure import build_data
    from sdr_lightning.retrieval import Index, load
    from sdr_lightning.retrieval.collection import picture_files
    from sdr_lightning.retrieval.parquet import write_parquet
    from sdr_lightning.training.checkpoints.interruption import exit_when_stopped, stopped_by_signals

    if options.parquet is not None:
        number = write_parquet(Index.open(options.source), options.parquet)
        print(f"{number:,} items in {options.parquet}")
        return 0
    with exit_when_stopped(), stopped_by_signals():
        if options.remove is not None:
            index = Index.open(options.source).remove(options.remove)
        elif options.add is not None:
            before = Index.open(options.source)
            index = before.add(options.add, options.batch_size, options.resume)
            there = sum(item.id in before.galleries["images"].items.rows for item in picture_files(options.add).images)
            if there:
                print(f"not added, because the index has an image of this name: {there:,} pictures")
        else:
            index = Index.build(
                load(options.source, options.device),
                options.output,
                images=options.images,
                data=None if options.data is None else build_data(["--data", str(options.data), *rest]),
                split=options.split,
                batch_size=options.batch_size,
                resume=options.resume,
                approximate=options.approximate,
                copy_pictures=options.copy_pictures,
            )
    _show(index)
    return 0


def _check(options: Namespace, rest: list[str]) -> None:
    """Check that options are compatible and have an effect."""
    update = [f"--{name}" for name in ("add", "remove", "parquet") if getattr(options, name) is not None]
    build = [f"--{name}" for name in ("images", "data", "output", "device") if getattr(options, name) is not None]
    build += [f"--{name}" for name in ("approximate", "copy-pictures") if getattr(options, name.replace("-", "_"))]
    if len(update) > 1 or (update and build):
        raise ValueError(
            f"{' and '.join([*update, *build])} do not go together: build an index, add to it, remove, or write a table"
        )
    if update and update != ["--add"] and options.resume:
        raise ValueError(f"--resume continues a build or --add, not {update[0]}: leave it out")
    if not update and ((options.images is None) == (options.data is None) or options.output is None):
        raise ValueError(
            "to build an index give --output and one of --images and --data; to update one, --add or --remove"
        )
    if options.data is None and (options.split != "test" or rest):
        raise ValueError(f"{(rest or ['--split'])[0]} is an option of --data, which is not given")


def _show(index: Index) -> None:
    from sdr_lightning.retrieval.index import KINDS

    numbers = " and ".join(f"{len(index.galleries[kind]):,} {kind}" for kind in KINDS)
    print(f"{numbers} in {index.folder} ({index.record['model']['width']} dimensions)")
    for kind in KINDS:
        recall = index.record[kind].get("graph_recall_at_10")
        if recall is not None:
            print(f"approximate search in {kind}: recall@10 against exact search {recall:.1f} %")
    if index.left_out:
        print(f"left out, because they cannot be read: {len(index.left_out):,} pictures (all are listed in index.json)")
        for item in index.left_out[:_SHOWN]:
            print(f"    {item.name}: {item.reason}")
