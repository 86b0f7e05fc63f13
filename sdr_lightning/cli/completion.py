"""``sdr completion``: scripts that complete commands and files in a shell."""

from __future__ import annotations

from argparse import ArgumentParser

from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS

_BASH = """\
# Completion of sdr in bash: source <(sdr completion bash)
_sdr() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" command="${{COMP_WORDS[1]}}"
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
  elif [ "$COMP_CWORD" -eq 2 ]; then
    case "$command" in
{cases}
    esac
  fi
}}
complete -o default -F _sdr sdr
"""
_ZSH = """\
# Completion of sdr in zsh: source <(sdr completion zsh)
_sdr() {{
  if (( CURRENT == 2 )); then
    compadd {commands}
  elif (( CURRENT == 3 )); then
    case "$words[2]" in
{cases}
      *) _files ;;
    esac
  else
    _files
  fi
}}
compdef _sdr sdr
"""
_FISH = """\
# Completion of sdr in fish: sdr completion fish | source
complete -c sdr -n __fish_use_subcommand -f -a "{commands}"
{cases}
"""
SHELLS = ("bash", "zsh", "fish")


def parser() -> ArgumentParser:
    """Return the parser of ``sdr completion``."""
    parser = ArgumentParser(
        prog="sdr completion",
        description="Print a script that completes the commands of sdr, and files elsewhere: source <(sdr completion bash).",
    )
    parser.add_argument("shell", choices=SHELLS)
    return parser


def run(arguments: list[str]) -> int:
    """Print the script; return the exit status."""
    print(script(parser().parse_args(arguments).shell), end="")
    return 0


def script(shell: str) -> str:
    """Return the completion script of a shell.

    Args:
        shell: ``bash``, ``zsh`` or ``fish``.
    """
    words = {command: " ".join(names) for command, names in SUBCOMMANDS.items()}
    if shell == "bash":
        template, case = _BASH, '      {0}) COMPREPLY=($(compgen -W "{1}" -- "$word")) ;;'
    elif shell == "zsh":
        template, case = _ZSH, "      {0}) compadd {1} ;;"
    else:
        template, case = _FISH, 'complete -c sdr -n "__fish_seen_subcommand_from {0}" -f -a "{1}"'
    cases = "\n".join(case.format(command, names) for command, names in words.items())
    return template.format(commands=" ".join(COMMANDS), cases=cases)
