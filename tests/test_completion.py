"""Completion of commands in bash."""

import importlib
import subprocess

import pytest

from sdr_lightning.cli.bench import BENCHMARKS
from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS
from sdr_lightning.cli.completion import SHELLS, script


def completed(*words: str) -> set[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("sdr", *words))
    code = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _sdr; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", f"{script('bash')}\n{code}"], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_commands_and_the_words_after_them_are_completed() -> None:
    assert completed("") == set(COMMANDS)
    assert completed("re") == {"relevance", "reproduce", "report"}
    assert completed("noise", "") == {"make", "show"}
    assert completed("noise", "s") == {"show"}
    assert completed("fit", "") == set()  # bash completes files


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command(shell: str) -> None:
    assert set(COMMANDS) <= set(script(shell).replace('"', " ").split())


def test_the_words_are_those_of_the_commands() -> None:
    assert set(SUBCOMMANDS["bench"]) == set(BENCHMARKS)
    assert SUBCOMMANDS["completion"] == SHELLS
    for command in COMMANDS:
        if command not in ("fit", "validate", "test"):
            assert importlib.import_module(f"sdr_lightning.cli.{command.replace('-', '_')}").run
