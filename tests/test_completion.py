"""Completion of commands and options in a shell."""

import subprocess

import pytest

from sdr_lightning.cli.bench import BENCHMARKS
from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS
from sdr_lightning.cli.completion import SHELLS, options_by_command, script


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


def test_options_are_completed() -> None:
    assert completed("evaluate", "--image-") == {"--image-embeddings", "--image-teacher"}
    assert completed("evaluate", "--split", "val", "--fo") == {"--folds"}
    assert completed("data", "check", "--") == {"--fast", "--unusable", "--data", "--help"}
    assert completed("data", "prepare", "--fa") == set()
    assert completed("fit", "--config", "a.yaml", "--trainer.max") == {"--trainer.max_epochs"}
    assert completed("evaluate", "--output", "a") == set()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command_and_option(shell: str) -> None:
    words = set(script(shell).replace('"', " ").split())
    assert set(COMMANDS) <= words
    for command, options in options_by_command().items():
        names = {option.lstrip("-") for option in options} if shell == "fish" else set(options)
        assert names <= words, command


def test_the_words_are_those_of_the_commands() -> None:
    assert set(SUBCOMMANDS["bench"]) == set(BENCHMARKS)
    assert SUBCOMMANDS["completion"] == SHELLS
    known = options_by_command().keys()
    for command in set(COMMANDS) - {"bench"}:
        nested = SUBCOMMANDS[command] if command in ("data", "noise") else ()
        assert {f"{command} {name}" for name in nested} or {command} == {
            each for each in known if each.split()[0] == command
        }
