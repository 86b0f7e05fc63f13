"""``sdr data``: check a data set for errors, cache decoded images and tokens, and write shards."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from sdr_lightning.configure.arguments import split_options
from sdr_lightning.paths import check_output, expand
from sdr_lightning.progress import progress

if TYPE_CHECKING:
    from sdr_lightning.data.check import Findings
    from sdr_lightning.data.module import RetrievalDataModule
    from sdr_lightning.data.table import Split
    from sdr_lightning.types import Modality


def parser() -> ArgumentParser:
    """Return the parser of ``sdr data``."""
    parser = ArgumentParser(
        prog="sdr data",
        description="Options of the data, such as --data.init_args.source.init_args.skip_missing true, are also accepted; "
        "--data.help lists them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    checking = commands.add_parser("check", help="report all errors of a data set")
    checking.add_argument("--fast", action="store_true", help="check that image files exist, without reading them")
    checking.add_argument("--unusable", type=Path, help="file for the ids of missing or unreadable images")
    preparing = commands.add_parser("prepare", help="cache decoded images and tokens; resumes if interrupted")
    sharding = commands.add_parser(
        "shard", help="write webdataset shards, which training streams; resumes if interrupted"
    )
    sharding.add_argument("--output", type=Path, required=True, help="folder of the shards")
    sharding.add_argument(
        "--teachers",
        type=Path,
        nargs="+",
        default=[],
        metavar="BANK",
        help="feature banks of sdr extract, of the clean training split: one of images, one of captions, or both",
    )
    sharding.add_argument("--images-per-shard", type=int, default=1000, help="images of a shard (default: 1000)")
    for command in (checking, preparing, sharding):
        command.add_argument("--data", required=True, metavar="FILE", help="data configuration")
    return parser


def run(arguments: list[str]) -> int:
    """Run ``sdr data check``, ``prepare`` or ``shard``; return the exit status."""
    rest, own = split_options(arguments, ("--data.",))
    options = parser().parse_args(own)
    from sdr_lightning.configure import build_data
    from sdr_lightning.training.checkpoints.interruption import exit_when_stopped, stopped_by_signals

    data = build_data(["--data", options.data, *rest])
    console = Console()
    if options.command == "shard":
        with exit_when_stopped(), stopped_by_signals():
            return _shard(data, console, options)
    return _prepare(data, console) if options.command == "prepare" else _check(data, console, options)


def _check(data: RetrievalDataModule, console: Console, options: Namespace) -> int:
    from sdr_lightning.data.check import check
    from sdr_lightning.data.id_list import is_id_list, write_ids

    fast, unusable = options.fast, options.unusable
    if unusable is not None:
        left_out = getattr(data.source, "leave_out", None)
        check_output(unusable, [left_out and expand(left_out)], is_id_list)
    with _Splits("images", console) as splits:
        findings = check(data, not fast, splits.show)
    _show(findings, data.source.name, console)
    if unusable is not None:
        write_ids(unusable, findings.unusable)
        console.print(f"{len(findings.unusable)} ids of unusable images in {unusable}", soft_wrap=True, markup=False)
    if findings.fatal:
        console.print("[bold]training would fail[/bold]")
        return 1
    console.print("training can start" + ("" if not fast else " (images were not read)"))
    return 0


def _show(findings: Findings, name: str, console: Console) -> None:
    if findings.sizes:
        sizes = Table(title=name, title_justify="left", title_style="bold")
        for heading in ("split", "images", "captions", "captions per image", "published size"):
            sizes.add_column(heading, justify="left" if heading == "split" else "right")
        for size in findings.sizes:
            spread = str(size.fewest) if size.fewest == size.most else f"{size.fewest} to {size.most}"
            images, captions = size.expected or (None, None)
            known = "" if images is None else f"{images:,}" + ("" if captions is None else f" / {captions:,}")
            sizes.add_row(size.split, f"{size.images:,}", f"{size.captions:,}", spread, known)
        console.print(sizes)
    if not findings.problems:
        return
    ordered = sorted(findings.problems, key=lambda problem: not problem.fatal)
    problems = Table(title="problems", title_justify="left", title_style="bold")
    for heading in ("", "split", "count", "problem"):
        problems.add_column(heading, justify="right" if heading == "count" else "left")
    for problem in ordered:
        state = "[bold red]error[/bold red]" if problem.fatal else "note"
        problems.add_row(state, problem.split, f"{problem.number:,} of {problem.of:,}", problem.what)
    console.print(problems)
    for problem in ordered:
        console.print(
            f"{problem.split}: {problem.what}; [bold]{problem.remedy}[/bold]", soft_wrap=True, highlight=False
        )
        for name in problem.first:
            console.print(f"    {name}", soft_wrap=True, highlight=False, markup=False)


def _prepare(data: RetrievalDataModule, console: Console) -> int:
    from sdr_lightning.data.tokenizer import tokenised

    for split in data.source.splits:  # report errors before starting
        data.source.table(split)
    data.prepare_data()
    for split in data.source.splits:
        wording = data.train_wording if split == "train" else data.evaluation_wording
        tokenised(data.tokenizer, wording(data.table(split).captions), data.cache, write=True)
    kept = (
        f"images at {data.cached_size} pixels and tokens"
        if data.cached_size
        else "tokens (cached_size is not set: no images)"
    )
    size = sum(file.stat().st_size for file in data.cache.rglob("*") if file.is_file())
    console.print(
        f"{data.source.name}: {kept} are kept in {data.cache} ({size / 1e9:.2f} GB with everything else there)",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _shard(data: RetrievalDataModule, console: Console, options: Namespace) -> int:
    from sdr_lightning.data.shards.writing import write_shards
    from sdr_lightning.features.bank import FeatureBank

    teachers: dict[Modality, FeatureBank] = {}
    for path in options.teachers:
        bank = FeatureBank.load(path)
        if bank.modality in teachers:
            raise ValueError(
                f"--teachers has two banks of the {bank.modality} modality, the second is {path}: give one"
            )
        teachers[bank.modality] = bank
    with _Splits("shards", console) as splits:
        written = write_shards(data.source, options.output, options.images_per_shard, teachers, splits.show)
    files = [file for file in options.output.iterdir() if not file.name.startswith(".")]
    shards, size = sum(file.suffix == ".tar" for file in files), sum(file.stat().st_size for file in files)
    console.print(
        f"{data.source.name}: {shards} shards in {options.output} ({size / 1e9:.2f} GB), {written} written now; train with "
        f"--data.init_args.source sdr_lightning.data.ShardSource --data.init_args.source.init_args.folder {options.output}",
        soft_wrap=True,
        markup=False,
    )
    return 0


class _Splits:
    """Shows the progress of one split after another.

    Args:
        what: the items that are counted.
        console: where.
    """

    def __init__(self, what: str, console: Console) -> None:
        self._what, self._console = what, console
        self._shown, self._split, self._done = ExitStack(), "", 0

    def __enter__(self) -> _Splits:
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.close()

    def show(self, split: Split, done: int, total: int) -> None:
        """Show that `done` of the `total` items of a split are finished."""
        if split != self._split:
            self._shown.close()
            what = f"{self._what} of {split}"
            self._advance = self._shown.enter_context(progress(what, total, done, self._console))
            self._split, self._done = split, done
        self._advance(done - self._done)
        self._done = done
