"""``sdr noise``: write and describe noise tables, the files that list the items of a corruption."""

from __future__ import annotations

import hashlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sdr_lightning.cli.choices import KINDS, PARTNERS, SPLITS
from sdr_lightning.configure.arguments import split_options

if TYPE_CHECKING:
    from sdr_lightning.data.imbalance import NoiseTable

_BAR = 40  # characters of the longest bar


def parser() -> ArgumentParser:
    """Return the parser of ``sdr noise``."""
    parser = ArgumentParser(
        prog="sdr noise",
        description="Options of the data, such as --data.init_args.source.init_args.skip_missing true, are also accepted; "
        "--data.help lists them.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="choose the items of a corruption and write a noise table")
    making.add_argument("--data", required=True, metavar="FILE", help="data configuration")
    making.add_argument("--split", choices=SPLITS, default="train")
    making.add_argument("--kind", choices=KINDS, required=True)
    making.add_argument("--modality", choices=["image", "text", "pair"], help="modality, for kind missing")
    making.add_argument("--level", choices=["image", "caption"], help="items that are chosen")
    making.add_argument("--partner", choices=PARTNERS, default="random", help="for kind mismatch (default: random)")
    making.add_argument("--ratio", type=float, required=True, help="fraction of items, in [0, 1]")
    making.add_argument("--severity", type=int, default=5, help="1 to 5, for kinds with a severity (default: 5)")
    making.add_argument("--seed", type=int, default=0)
    making.add_argument(
        "--output", type=Path, required=True, help="noise table (.npz), or published mismatch index of the level (.npy)"
    )
    showing = commands.add_parser("show", help="describe a noise table or a published index")
    showing.add_argument("file", type=Path, help=".npz of sdr noise make, or published .npy")
    showing.add_argument("--data", metavar="FILE", help="data configuration, to verify the captions of each image")
    showing.add_argument("--split", choices=SPLITS, default="train")
    return parser


def run(arguments: list[str]) -> int:
    """Run ``sdr noise make`` or ``sdr noise show``; return the exit status."""
    rest, own = split_options(arguments, ("--data.",))
    options = parser().parse_args(own)
    if options.command == "make":
        return _make(options, rest)
    if rest and options.data is None:
        parser().error(f"unrecognized arguments: {' '.join(rest)}")
    return _show(options, rest)


def _make(options: Namespace, rest: list[str]) -> int:
    from sdr_lightning.configure import build_data
    from sdr_lightning.data.imbalance import Imbalance, NoiseTable, is_noise_table
    from sdr_lightning.paths import check_output, expand

    imbalance = Imbalance(
        kind=options.kind,
        ratio=options.ratio,
        modality=options.modality,
        level=options.level,
        severity=options.severity,
        seed=options.seed,
        splits=(options.split,),
        partner=options.partner,
    )
    data = build_data(["--data", options.data, *rest])
    check_output(options.output, [part.file and expand(part.file) for part in data.imbalances], is_noise_table)
    table = data.table(options.split)
    noise = NoiseTable.draw(table, imbalance)
    noise.save(options.output)
    print("\n".join(describe(noise, options.output)))
    return 0


def _show(options: Namespace, rest: list[str]) -> int:
    from sdr_lightning.configure import build_data
    from sdr_lightning.data.imbalance import read_noise

    table = None
    if options.data is not None:
        table = build_data(["--data", options.data, *rest]).table(options.split)
    print("\n".join(describe(read_noise(options.file, table), options.file)))
    return 0


def describe(noise: NoiseTable, file: Path) -> list[str]:
    """Describe a noise table, line by line."""
    from sdr_lightning.data.imbalance import KINDS

    imbalance = noise.imbalance
    items = "images" if imbalance.level == "image" else "captions"
    facts = {
        "imbalance": f"{imbalance.kind}, {imbalance.modality}, level {imbalance.level}",
        "meaning": imbalance.meaning,
        "realised": f"{100 * noise.ratio:.2f} % ({len(noise.rows):,} of {noise.of:,} {items})",
    }
    if file.suffix == ".npz":
        facts["asked"] = f"{100 * imbalance.ratio:g} %, seed {imbalance.seed}"
        if KINDS[imbalance.kind].has_degrees:
            facts["asked"] += f", severity {imbalance.severity}"
    if noise.partners_as_asked is not None:
        facts["partners"] = f"{100 * noise.partners_as_asked:.2f} % as asked, the others random or less similar"
    facts["made for"] = (
        f"{noise.collection} {noise.split} ({noise.fingerprint[:12]})"
        if noise.collection
        else "a collection that it does not name; read as equally many captions an image, in order"
    )
    facts["SHA-256"] = f"{hashlib.sha256(file.read_bytes()).hexdigest()} of the file"
    lines = [f"{file}", *(f"  {name:10} {value}" for name, value in facts.items())]
    if imbalance.kind == "mismatch":
        histogram = noise.wrong_captions_per_image
        most = max(histogram.values())
        lines.append("  wrong captions per image")
        for wrong, images in histogram.items():
            lines.append(f"    {wrong:2}  {images:9,} images  {'█' * max(1, round(_BAR * images / most))}")
    return lines
