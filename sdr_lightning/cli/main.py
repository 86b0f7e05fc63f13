"""Entry point of ``sdr``. The modules of a command are imported when it runs."""

from __future__ import annotations

import os
import signal
import sys
from argparse import ArgumentParser
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from sdr_lightning import __version__
from sdr_lightning.cli.commands import COMMANDS, help_screen
from sdr_lightning.configure.shipped import with_experiments
from sdr_lightning.imports import install

install()  # in workers too, which import this module first


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: command and options; ``sys.argv`` if None.

    Returns:
        Exit status: 0 on success, 1 on failure, 2 on invalid arguments or input, 130 on interruption, 141 if the reader of
        the output, such as ``head``, has closed it.
    """
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_screen())
        return 0
    if arguments[0] == "--version":
        print(f"sdr_lightning {__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        near = get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"sdr: unknown command {arguments[0]!r}{hint} (commands: {', '.join(COMMANDS)})", file=sys.stderr)
        return 2
    try:
        arguments = [arguments[0], *with_experiments(arguments[1:])]
        if arguments[0] in _LIGHTNING:
            return _lightning(arguments)
        if any(section in arguments for section in _SECTIONS.get(arguments[0], ())):
            return _help(arguments)
        module = import_module(f"sdr_lightning.cli.{arguments[0].replace('-', '_')}")
        return int(module.run(arguments[1:]))
    except KeyboardInterrupt:
        print("sdr: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        if os.environ.get("SDR_TRACEBACK"):
            raise
        message = str(error)
        if isinstance(error, OSError) and error.filename is not None and error.strerror:
            message = f"cannot use {error.filename}: {error.strerror}"
        if message.startswith("Caught "):  # an error in a worker includes its traceback
            message = message.rpartition("Error: ")[2]
        print(f"sdr {arguments[0]}: error: {' '.join(message.split())}", file=sys.stderr)
        print("(set SDR_TRACEBACK=1 for the traceback)", file=sys.stderr)
        return 2


def _lightning(arguments: list[str]) -> int:
    from sdr_lightning.configure.first_options import is_help, is_short_help, short_help

    if is_short_help(arguments):
        print(short_help(arguments[0], arguments[1:]))
        return 0
    if is_help(arguments):
        return _help(arguments)
    arguments, output = _without_export(arguments)
    from sdr_lightning.configure import run
    from sdr_lightning.reporting.wandb_summary import publish

    made = run(arguments, exports=output is not None)
    publish(made)
    if output is None or not made.trainer.is_global_zero:
        return 0
    from sdr_lightning.cli import export

    return export.run([str(made.run_dir), "--output", str(output), *(["--wandb"] if made.tracked() else [])])


def _without_export(arguments: list[str]) -> tuple[list[str], Path | None]:
    """Split ``--export FOLDER`` of ``sdr fit`` off its options.

    Raises:
        ValueError: the folder exists, or the command is another one.
    """
    parser = ArgumentParser(prog=f"sdr {arguments[0]}", add_help=False, allow_abbrev=False)
    parser.add_argument("--export", type=Path, metavar="FOLDER")
    options, rest = parser.parse_known_args(arguments)
    if options.export is not None and arguments[0] != "fit":
        raise ValueError(f"--export is an option of sdr fit, not of sdr {arguments[0]}: use sdr export")
    if options.export is not None and options.export.exists():
        raise ValueError(f"{options.export} exists already: choose a new folder")
    return rest, options.export


def _help(arguments: list[str]) -> int:
    """Print the keys of a configuration."""
    from sdr_lightning.configure.help import help_text

    print(help_text(arguments[0], arguments[1:]))
    return 0


_LIGHTNING = ("fit", "validate", "test")
_SECTIONS = {
    **dict.fromkeys(("clean", "data", "noise"), ("--data.help",)),
    "extract": ("--data.help", "--model.help"),
}
"""Options that print one section of the configuration, of other commands than Lightning's."""
