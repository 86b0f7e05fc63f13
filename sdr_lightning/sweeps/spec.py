"""A sweep's file: what W&B takes, checked before anything runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_KEYS = {
    "name",
    "description",
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "run_cap",
    "project",
    "entity",
}
_ARGS, _ENV = "${args}", "${env}"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: of the file, without its ending.
        config: as W&B takes it.
        command: words of the command, ``${args}`` among them.
        metric: what the search goes by, and what is better: a validation metric.
        run_cap: how many runs at most; None for a grid's end, or no end.
    """

    name: str
    config: dict[str, Any]
    command: tuple[str, ...]
    metric: str
    goal: str
    run_cap: int | None

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read and check a file.

        Raises:
            ValueError: no such file, or one that W&B or ``sdr fit`` could not run; what is wrong, in one line.
        """
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"no sweep at {path} ({error.strerror})") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML in UTF-8: {' '.join(str(error).split())}") from error
        if not isinstance(config, dict):
            raise ValueError(f"{path}: expected a mapping with method, metric, parameters and command")
        try:
            return cls._checked(path.stem, config)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def _checked(cls, name: str, config: dict[str, Any]) -> Sweep:
        unknown = config.keys() - _KEYS
        if unknown:
            raise ValueError(f"unknown key {min(map(str, unknown))!r}, expected some of {', '.join(sorted(_KEYS))}")
        if config.get("method") not in ("grid", "random", "bayes"):
            raise ValueError(f"method must be grid, random or bayes, got {config.get('method')!r}")
        metric = config.get("metric")
        if not isinstance(metric, dict) or not isinstance(metric.get("name"), str):
            raise ValueError("metric needs a name, such as {name: val/rsum_best, goal: maximize}")
        if not metric["name"].startswith("val/"):
            raise ValueError(f"a sweep goes by a validation metric, such as val/rsum_best, never by {metric['name']!r}")
        if metric.get("goal", "minimize") not in ("maximize", "minimize"):
            raise ValueError(f"the metric's goal is maximize or minimize, got {metric['goal']!r}")
        _check_parameters(config.get("parameters"))
        _check_command(config.get("command"))
        cap = config.get("run_cap")
        if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
            raise ValueError(f"run_cap must be a positive number of runs, got {cap!r}")
        if cap is None and config["method"] != "grid":
            raise ValueError(f"a {config['method']} sweep has no end of its own: give run_cap, a number of runs")
        endless = [key for key, given in config["parameters"].items() if not given.keys() & {"value", "values"}]
        if endless and config["method"] == "grid":
            raise ValueError(
                f"a grid needs values of parameter {endless[0]!r}, got {config['parameters'][endless[0]]!r}"
            )
        _check_by_wandb(config)
        command = tuple(map(str, config["command"]))
        return cls(name, config, command, metric["name"], metric.get("goal", "minimize"), cap)

    @property
    def searched(self) -> dict[str, Any]:
        """What the search engine reads of the file."""
        kept = ("method", "metric", "parameters", "early_terminate")
        return {key: self.config[key] for key in kept if key in self.config}

    def words(self, parameters: Mapping[str, Any]) -> list[str]:
        """The command of one run, its parameters formatted as W&B's agents do."""
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        words: list[str] = []
        for word in self.command:
            words += arguments if word == _ARGS else [] if word == _ENV else [word]
        if words[0] == "sdr":  # this one, whatever is first on the path
            words[:1] = [sys.executable, "-m", "sdr_lightning"]
        return words


def _check_parameters(parameters: Any) -> None:
    if not isinstance(parameters, dict) or not parameters:
        raise ValueError("parameters must name at least one option, such as data.init_args.imbalance.ratio")
    for name, given in parameters.items():
        if not isinstance(given, dict) or not given:
            raise ValueError(f"parameter {name!r} needs value, values, or min and max, got {given!r}")
        if "parameters" in given:
            raise ValueError(f"parameter {name!r} is nested: write dotted names, such as model.init_args.x")
        values = given.get("values", [given["value"]] if "value" in given else [])
        if not isinstance(values, list):
            raise ValueError(f"parameter {name!r}: values must be a list, got {values!r}")
        if "values" in given and not values:
            raise ValueError(f"parameter {name!r} has an empty list of values")
        if None in values:
            raise ValueError(f'parameter {name!r}: W&B writes None for null, which sdr fit does not read; write "null"')


def _check_command(command: Any) -> None:
    example = "command: [${env}, sdr, fit, --config, FILE, ${args}]"
    if not isinstance(command, list) or not command:
        raise ValueError(f"command must be a list of words: {example}")
    words = [str(word) for word in command]
    if _ARGS not in words:
        raise ValueError(f"the command must hold ${{args}}, which passes dotted names to sdr fit: {example}")
    others = [word for word in words if word.startswith("${") and word not in (_ARGS, _ENV)]
    if others:
        raise ValueError(f"{others[0]} in the command is nothing that sdr fit could read: {example}")
    if [word for word in words if word != _ENV][:2] != ["sdr", "fit"]:
        raise ValueError(f"the command must run sdr fit: {example}")


def _check_by_wandb(config: dict[str, Any]) -> None:
    violations = engine().schema_violations_from_proposed_config({k: v for k, v in config.items() if k != "run_cap"})
    if violations:
        raise ValueError(" ".join(str(violations[0]).split()))


def engine() -> Any:
    """W&B's search engine, the package ``sweeps``.

    Raises:
        ValueError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it was written for an older pydantic
            import sweeps
    except ModuleNotFoundError as error:
        raise ValueError("sweeps on this machine need W&B's engine: pip install 'sdr_lightning[sweeps]'") from error
    return sweeps
