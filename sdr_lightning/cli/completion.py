"""``sdr completion``: scripts that complete commands, options and files in a shell."""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction
from importlib import import_module

from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS
from sdr_lightning.configure.first_options import GROUPS

_BASH = """\
# Completion of sdr in bash: source <(sdr completion bash)
_sdr() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  elif [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{options}
    esac
  elif [ "$COMP_CWORD" -eq 2 ]; then
    case "${{COMP_WORDS[1]}}" in
{subcommands}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _sdr sdr
"""
_ZSH = """\
# Completion of sdr in zsh: source <(sdr completion zsh)
_sdr() {{
  if (( CURRENT == 2 )); then
    compadd {commands}
  elif [[ "$words[CURRENT]" == -* ]]; then
    case "$words[2] $words[3]" in
{options}
    esac
  elif (( CURRENT == 3 )); then
    case "$words[2]" in
{subcommands}
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
{subcommands}
{options}
"""
SHELLS = ("bash", "zsh", "fish")
_FIT = ("fit", "validate", "test")


def parser() -> ArgumentParser:
    """Return the parser of ``sdr completion``."""
    parser = ArgumentParser(
        prog="sdr completion",
        description="Print a script that completes the commands of sdr and their options, and files elsewhere: "
        "source <(sdr completion bash).",
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
    if shell == "bash":
        template, case, options = _BASH, '      {0}) words="{1}" ;;', _cases('words="{}"')
    elif shell == "zsh":
        template, case, options = _ZSH, "      {0}) compadd {1} ;;", _cases("compadd -- {}")
    else:
        template, case, options = (
            _FISH,
            'complete -c sdr -n "__fish_seen_subcommand_from {0}" -f -a "{1}"',
            _fish_options(),
        )
    subcommands = "\n".join(case.format(command, " ".join(names)) for command, names in SUBCOMMANDS.items())
    return template.format(commands=" ".join(COMMANDS), subcommands=subcommands, options=options)


def _cases(action: str) -> str:
    """The options as cases of the first two words, in bash and zsh."""
    lines = []
    for command, names in options_by_command().items():
        pattern = f'"{command}"' if " " in command else f'"{command} "*'
        lines.append(f"      {pattern}) {action.format(' '.join(names))} ;;")
    return "\n".join(lines)


def _fish_options() -> str:
    lines = []
    for command, names in options_by_command().items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.split())
        for name in names:
            option = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            lines.append(f'complete -c sdr -n "{seen}" {option}')
    return "\n".join(lines)


def options_by_command() -> dict[str, list[str]]:
    """Return the options of every command; those of nested commands by both words, such as ``data check``.

    Of ``fit``, ``validate`` and ``test``, where every key of an experiment is an option, the ones of their short help are
    returned; of ``bench``, whose options are those of the benchmark, none.
    """
    first = [f"--{option.partition(' ')[0]}" for group in GROUPS.values() for option in group]
    found = {command: [*first, "--help", "--print_config"] for command in _FIT}
    for command in COMMANDS:
        if command in (*_FIT, "bench"):
            continue
        own: ArgumentParser = import_module(f"sdr_lightning.cli.{command.replace('-', '_')}").parser()
        nested = [action.choices for action in own._actions if isinstance(action, _SubParsersAction)]
        parsers = {f"{command} {name}": inner for name, inner in nested[0].items()} if nested else {command: own}
        found |= {
            words: [option for option in each._option_string_actions if option != "-h"]
            for words, each in parsers.items()
        }
    return found
