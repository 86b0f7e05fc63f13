"""``sdr serve``: search an index on a page, and through a JSON interface."""

from __future__ import annotations

import errno
import ipaddress
import sys
from argparse import ArgumentParser
from pathlib import Path


def parser() -> ArgumentParser:
    """Return the parser of ``sdr serve``."""
    parser = ArgumentParser(
        prog="sdr serve",
        description="Search an index on a page in the browser, and through a JSON interface. Ctrl-C stops it.",
    )
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of sdr index")
    parser.add_argument("--port", type=int, default=8080, help="port; 0 for any free one (default: 8080)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)"
    )
    return parser


def run(arguments: list[str]) -> int:
    """Serve until stopped; return the exit status. See ``sdr serve --help``.

    Raises:
        ValueError: an index that cannot be used, or a port that is in use.
    """
    options = parser().parse_args(arguments)
    if not 0 <= options.port < 2**16:
        raise ValueError(f"--port is {options.port}, expected 0 to 65535")
    from sdr_lightning.retrieval import Index
    from sdr_lightning.retrieval.serve import SearchServer
    from sdr_lightning.training.checkpoints.interruption import Stopped, stopped_by_signals

    index = Index.open(options.index)
    try:
        server = SearchServer(index, options.host, options.port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ValueError(f"port {options.port} is in use: choose another with --port") from error
        raise ValueError(f"cannot listen on {options.host}: {error.strerror}; choose another --host") from error
    with server:
        print(f"{options.index} is served at {server.url} (Ctrl-C stops it)", flush=True)
        if not _is_loopback(options.host):
            print("note: everyone who reaches this address can search, and see the pictures", file=sys.stderr)
        try:
            with stopped_by_signals():
                server.serve_forever()
        except Stopped:
            print("stopped", file=sys.stderr)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
