"""The file of a sweep in the format of W&B, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdr_lightning.configure.shipped import with_experiments
from sdr_lightning.paths import read_yaml
from sdr_lightning.sweeps.distributions import Distribution, distribution

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
_HYPERBAND = {"type", "min_iter", "max_iter", "s", "eta"}
_ARGS, _ENV = "${args}", "${env}"


@dataclass(frozen=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: of the file, without its suffix.
        config: content of the file.
        method: ``grid``, ``random`` or ``bayes``.
        command: words of the command, ``${args}`` among them.
        metric: the validation metric that the search optimises.
        goal: ``minimize`` or ``maximize``.
        distributions: of the parameters, by dotted name.
        early_terminate: options of hyperband; None without.
        run_cap: greatest number of runs; None where the grid is the limit.
    """

    name: str
    config: dict[str, Any]
    method: Literal["grid", "random", "bayes"]
    command: tuple[str, ...]
    metric: str
    goal: Literal["minimize", "maximize"]
    distributions: Mapping[str, Distribution]
    early_terminate: Mapping[str, Any] | None
    run_cap: int | None

    @classmethod
    def load(cls, path: Path) -> Sweep:
        """Read and check a file.

        Raises:
            ValueError: no such file, or one that W&B or ``sdr fit`` cannot run; the message is one line.
        """
        config = read_yaml(path, "sweep")
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
            raise ValueError(f"a sweep optimises a validation metric, such as val/rsum_best, got {metric['name']!r}")
        if metric.get("goal", "minimize") not in ("maximize", "minimize"):
            raise ValueError(f"the metric's goal is maximize or minimize, got {metric['goal']!r}")
        parameters = config.get("parameters")
        if not isinstance(parameters, dict) or not parameters:
            raise ValueError("parameters must name at least one option, such as data.init_args.imbalance.ratio")
        distributions = {option: distribution(option, given) for option, given in parameters.items()}
        _check_command(config.get("command"))
        values = [value for each in distributions.values() for value in each.grid or ()]
        with_experiments([str(word) for word in (*config["command"], *values)])  # the names of experiments exist
        cap = config.get("run_cap")
        if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
            raise ValueError(f"run_cap must be a positive number of runs, got {cap!r}")
        if cap is None and config["method"] != "grid":
            raise ValueError(f"a {config['method']} sweep needs run_cap, a number of runs")
        endless = [option for option, each in distributions.items() if each.grid is None]
        if endless and config["method"] == "grid":
            raise ValueError(f"a grid needs values of parameter {endless[0]!r}, got {parameters[endless[0]]!r}")
        for key in ("name", "description", "program", "project", "entity"):
            if not isinstance(config.get(key, ""), str):
                raise ValueError(f"{key} must be a string, got {config[key]!r}")
        return cls(
            name=name,
            config=config,
            method=config["method"],
            command=tuple(map(str, config["command"])),
            metric=metric["name"],
            goal=metric.get("goal", "minimize"),
            distributions=distributions,
            early_terminate=_checked_early(config["early_terminate"]) if "early_terminate" in config else None,
            run_cap=cap,
        )

    def options(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return the options of ``sdr fit`` of one run, its parameters formatted as W&B's agents do, experiments as paths."""
        arguments = [f"--{name}={value}" for name, value in parameters.items()]
        words = [word for word in self.command if word != _ENV][2:]
        return with_experiments([option for word in words for option in (arguments if word == _ARGS else [word])])


def _checked_early(early: Any) -> Mapping[str, Any]:
    if not isinstance(early, dict) or early.get("type") != "hyperband":
        raise ValueError(f"early_terminate must be {{type: hyperband, min_iter: ...}}, got {early!r}")
    unknown = early.keys() - _HYPERBAND
    if unknown:
        raise ValueError(f"early_terminate has no {min(map(str, unknown))!r}, expected some of {sorted(_HYPERBAND)}")
    if not ("min_iter" in early or {"max_iter", "s"} <= early.keys()):
        raise ValueError("early_terminate needs min_iter, or max_iter and s")
    for key in early.keys() - {"type"}:
        value, is_whole = early[key], isinstance(early[key], int) and not isinstance(early[key], bool)
        if key == "eta" and not ((is_whole or isinstance(value, float)) and value > 1):
            raise ValueError(f"early_terminate: eta must be greater than 1, got {value!r}")
        if key != "eta" and not (is_whole and value >= 1):
            raise ValueError(f"early_terminate: {key} must be a positive integer, got {value!r}")
    return early


def _check_command(command: Any) -> None:
    example = "command: [${env}, sdr, fit, --config, FILE, ${args}]"
    if not isinstance(command, list) or not command:
        raise ValueError(f"command must be a list of words: {example}")
    words = [str(word) for word in command]
    if _ARGS not in words:
        raise ValueError(f"the command must hold ${{args}}, which passes dotted names to sdr fit: {example}")
    others = [word for word in words if word.startswith("${") and word not in (_ARGS, _ENV)]
    if others:
        raise ValueError(f"{others[0]} in the command is not supported: {example}")
    if [word for word in words if word != _ENV][:2] != ["sdr", "fit"]:
        raise ValueError(f"the command must run sdr fit: {example}")
