"""Help on one screen: the options of ``sdr fit``, ``validate`` and ``test`` that are changed first. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sdr_lightning.configure.files import merged_settings

GROUPS = {
    "Run": {
        "config FILE": "experiment or overlay; may be repeated, later ones override",
        "run_dir DIR": "folder of the run (default: named by date)",
        "ckpt_path FILE": "checkpoint to test, or to continue; for fit also last",
        "seed_everything INT": "seed of weights, batch order and corruption",
        "protocol clean|paper": "paper: choices of the authors' public code",
    },
    "Training": {
        "trainer.max_epochs INT": "number of epochs",
        "trainer.devices INT": "number of GPUs, or of processes with accelerator cpu",
        "model.init_args.optimisation.init_args.learning_rate FLOAT": "peak learning rate",
        "model.init_args.method.init_args.weights JSON": "weights of the loss terms",
    },
    "Data": {
        "data.init_args.batch_size INT": "pairs in a batch, over all processes",
        "data.init_args.workers INT": "processes that read images",
        "data.init_args.imbalance.kind NAME": "corruption of the training data, see docs/imbalance.md",
        "data.init_args.imbalance.ratio FLOAT": "corrupted fraction, in [0, 1]",
    },
}
"""Options by group, each with the form of its value and its meaning."""

_EXAMPLES = """\
Examples:
  sdr {command} --config sdr:scenes/sdr.yaml --config sdr:methods/infonce.yaml{checkpoint}
  sdr init mine --table pairs.csv         write an experiment for your own table

More: every key of an experiment is an option.
  --help=all                              all keys; with --config FILE, their values
  --model.help  --data.help [CLASS]  --trainer.help    keys of one section, of one class
  --config FILE --print_config            the whole configuration as YAML"""
_NAME = 38  # columns


def is_help(arguments: Sequence[str]) -> bool:
    """Return whether the arguments contain a help option."""
    asked = ("-h", "--help", "--model.help", "--data.help", "--trainer.help")
    return any(word.partition("=")[0] in asked for word in arguments)


def is_short_help(arguments: Sequence[str]) -> bool:
    """Return whether help on one screen is asked for: ``--help`` without ``all`` and without a section.

    Raises:
        ValueError: ``--help`` has another value.
    """
    given = [word for word in arguments if word.partition("=")[0] in ("-h", "--help")]
    wrong = [word for word in given if "=" in word and word != "--help=all"]
    if wrong:
        raise ValueError(f"{wrong[0]}: expected --help or --help=all; --data.help CLASS shows the options of one class")
    is_section = any(word.partition("=")[0].endswith(".help") for word in arguments)
    follows = any(pair == ("--help", "all") for pair in pairwise(arguments))
    return bool(given) and "--help=all" not in given and not follows and not is_section


def short_help(command: str, arguments: Sequence[str]) -> str:
    """Return the options that are changed first, on one screen.

    Args:
        command: ``fit``, ``validate`` or ``test``.
        arguments: its arguments; the values of ``--config`` files are shown.

    Raises:
        ValueError: a configuration cannot be read.
    """
    words = [part for word in arguments for part in ([word] if not word.startswith("--") else word.split("=", 1))]
    settings = merged_settings(words)
    lines = [f"usage: sdr {command} --config FILE [--config FILE ...] [--KEY VALUE ...]"]
    for group, options in GROUPS.items():
        lines += ["", f"{group}:"]
        for option, meaning in options.items():
            name = f"  --{option}"
            value = _value(settings, option.partition(" ")[0].split("."))
            meaning += f" (here {value})" if value else ""
            lines += [f"{name:{_NAME}}  {meaning}"] if len(name) <= _NAME else [name, f"{'':{_NAME}}  {meaning}"]
    checkpoint = "" if command == "fit" else " --ckpt_path best.ckpt"
    return "\n".join([*lines, "", _EXAMPLES.format(command=command, checkpoint=checkpoint)])


def _value(settings: Any, keys: Sequence[str]) -> str:
    """The value of a dotted name, shortened; empty if the configuration has none."""
    for key in keys:
        if not isinstance(settings, dict) or key not in settings:
            return ""
        settings = settings[key]
    text = "null" if settings is None else str(settings).lower() if isinstance(settings, bool) else str(settings)
    return text if len(text) <= 40 else f"{text[:40]} ..."
