"""``sdr push``: upload an exported model to the hub."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path


def parser() -> ArgumentParser:
    """Return the parser of ``sdr push``."""
    parser = ArgumentParser(
        prog="sdr push",
        description="Upload a folder of sdr export to the hub, with the hub's own client. Log in before, with `hf auth login` or "
        "the environment variable HF_TOKEN. sdr_lightning.load('USER/NAME') reads it.",
    )
    parser.add_argument("folder", type=Path, help="folder of sdr export")
    parser.add_argument("name", help="USER/NAME")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    return parser


def run(arguments: list[str]) -> int:
    """Upload a folder of ``sdr export``; see ``sdr push --help``.

    Raises:
        ValueError: no exported model, or the hub refuses or cannot be reached.
    """
    options = parser().parse_args(arguments)
    from sdr_lightning.retrieval.exported import push

    print(push(options.folder, options.name, private=options.private))
    return 0
