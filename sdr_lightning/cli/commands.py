"""The commands of ``sdr``, and its help on one screen."""

_GROUPS = {
    "Training and evaluation": {
        "init": ("DIR --table FILE", "write an experiment for a table of your own"),
        "fit": ("--config FILE", "train a student or a teacher"),
        "validate": ("--config FILE", "compute recall on the validation split"),
        "test": ("--config FILE", "compute all metrics on the test split"),
        "evaluate": ("...", "compute all metrics of any model or embeddings"),
        "relevance": ("...", "compute graded relevance of captions and images"),
        "extract": ("...", "write the features of a teacher"),
        "import-checkpoint": ("FILE", "convert weights of the authors' public code"),
    },
    "Use of a trained model": {
        "index": ("MODEL", "embed images and captions; update; write a table"),
        "search": ("INDEX WORDS", "search by words, or by --image FILE"),
        "serve": ("INDEX", "search on a page, and through a JSON interface"),
        "export": ("RUN", "write a folder that stands alone, as ONNX too"),
        "push": ("DIR USER/NAME", "upload such a folder to the hub"),
    },
    "Data and corruption": {
        "data": ("check | prepare | shard", "check data; cache it; write it as shards"),
        "clean": ("--data FILE", "find wrong pairs, duplicates and leakage"),
        "noise": ("make | show", "write and describe the items of a corruption"),
    },
    "Studies": {
        "reproduce": ("STUDY.yaml", "run teachers, all cells and the report; resumes"),
        "sweep": ("SWEEP.yaml", "run the sweep of a W&B sweep file on this machine"),
        "runs": ("[FOLDER]", "list, filter and compare runs"),
        "report": ("FOLDER", "write the report of a study, sweep or run"),
        "bench": ("NAME", "measure the speed claims on this machine"),
    },
    "This program": {
        "completion": ("SHELL", "print a script that completes words in a shell"),
    },
}
"""Commands by group, each with its arguments and what it does."""
COMMANDS = tuple(name for commands in _GROUPS.values() for name in commands)
SUBCOMMANDS = {
    "data": ("check", "prepare", "shard"),
    "noise": ("make", "show"),
    "bench": ("evaluate", "data", "losses", "training", "epochs", "processes", "detection", "search", "shards"),
    "completion": ("bash", "zsh", "fish"),
}
"""The words that may follow some commands."""


def help_screen() -> str:
    """Return the text of ``sdr --help``: every command on a line."""
    lines = [
        "usage: sdr COMMAND [options]      options of a command: sdr COMMAND --help",
        "",
        "Image-text retrieval when one modality is poor: train, compare, clean, search.",
    ]
    for group, commands in _GROUPS.items():
        lines += ["", f"{group}:"]
        for name, (arguments, meaning) in commands.items():
            lines.append(f"  {f'{name} {arguments}':23} {meaning}")
    lines += ["", "FILE may name an experiment of the project: sdr:scenes/sdr.yaml. sdr --version"]
    return "\n".join(lines)
