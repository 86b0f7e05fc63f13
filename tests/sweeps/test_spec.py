"""Sweep files: what is accepted, how mistakes are reported, and that W&B would run the same command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sdr_lightning.configure import build
from sdr_lightning.sweeps.distributions import distribution
from sdr_lightning.sweeps.search import next_parameters
from sdr_lightning.sweeps.spec import Sweep

GOOD: dict[str, Any] = {
    "method": "grid",
    "metric": {"name": "val/rsum_best", "goal": "maximize"},
    "command": ["${env}", "sdr", "fit", "--config", "x.yaml", "${args}"],
    "parameters": {"data.init_args.imbalance.ratio": {"values": [0.0, 0.3]}, "seed_everything": {"values": [0, 1]}},
}


def load(folder: Path, **changes: Any) -> Sweep:
    path = folder / "some.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}, sort_keys=False))
    return Sweep.load(path)


def parameter(**given: Any) -> dict[str, Any]:
    return {"method": "random", "run_cap": 1, "parameters": {"x": given}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "gird"}, "method must be grid, random or bayes, got 'gird'"),
        ({"metric": {"name": "test/rsum"}}, "optimises a validation metric, such as val/rsum_best, got 'test/rsum'"),
        ({"metric": {"name": "val/rsum", "goal": "up"}}, "goal is maximize or minimize, got 'up'"),
        ({"parameters": {}}, "parameters must name at least one option"),
        (parameter(values=[]), "'x' has an empty list of values"),
        (parameter(values=3), "values must be a list, got 3"),
        (parameter(value=None), 'write "null"'),
        (parameter(parameters={"y": {"value": 1}}), "write dotted names"),
        (parameter(distribution="normla"), "unknown distribution 'normla'"),
        (parameter(distribution="normal", mean=0), "distribution normal has no 'mean'"),
        (parameter(min=0.0), "distribution uniform needs max"),
        (parameter(min=1.0, max=0.0), "min 1.0 is greater than max 0.0"),
        (parameter(min=0, max=1, distribution="log_uniform_values"), "min must be positive, got 0"),
        (
            parameter(min=16, max=1024, distribution="q_log_uniform"),
            "are exponents of e, got 16 and 1024; for the values",
        ),
        (parameter(values=[1, 2], probabilities=[0.5, 0.6]), "probabilities must be >= 0 and sum to 1"),
        ({"parameters": {"x": {"min": 0.0, "max": 1.0}}}, "a grid needs values of parameter 'x'"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs min_iter, or max_iter and s"),
        ({"command": ["${env}", "sdr", "fit", "${args_no_hyphens}"]}, "must hold ${args}"),
        ({"command": ["sdr", "fit", "${args}", "${args_json}"]}, "${args_json} in the command"),
        ({"command": ["python", "train.py", "${args}"]}, "must run sdr fit"),
        ({"method": "random"}, "a random sweep needs run_cap"),
        ({"run_cap": 0}, "run_cap must be a positive number of runs, got 0"),
        ({"methods": 1}, "unknown key 'methods'"),
        (parameter(values=["sdr:methods/icc.yaml"]), "no experiment sdr:methods/icc.yaml"),
        ({"command": ["sdr", "fit", "--config=sdr:scene/sdr.yaml", "${args}"]}, "no experiment sdr:scene/sdr.yaml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_reported_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"some\.yaml: ") as error:
        load(tmp_path, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_fuzzed_files_are_accepted_or_refused_in_one_line(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    strange: list[Any] = [None, 0, -1, 1.5, "", "x", "${args}", [], [None], {}, {"a": 1}, True, [[1]], {"values": None}]
    refused: list[str] = []
    for _ in range(300):
        content: Any = yaml.safe_load(yaml.safe_dump(GOOD))
        for _ in range(int(draw.integers(1, 3))):
            at, key = content, draw.choice(list(content))
            while isinstance(at[key], dict) and at[key] and draw.random() < 0.6:
                at, key = at[key], draw.choice(list(at[key]))
            at[str(key)] = strange[int(draw.integers(len(strange)))]
            if not isinstance(content.get("parameters"), dict):
                break
        path = tmp_path / "fuzzed.yaml"
        path.write_text(yaml.safe_dump(content))
        try:
            Sweep.load(path)
        except ValueError as error:
            refused.append(str(error))
    assert not [message for message in refused if "\n" in message]
    assert 150 < len(refused) < 300


@pytest.mark.parametrize("text", ["", "a: [", "\x00"], ids=["empty", "broken", "binary"])
def test_file_that_is_no_sweep(text: str, tmp_path: Path) -> None:
    (tmp_path / "some.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"some\.yaml"):
        Sweep.load(tmp_path / "some.yaml")


@pytest.mark.slow
def test_options_equal_those_of_the_wandb_agent(tmp_path: Path) -> None:
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args  # slow to import

    sweep = load(tmp_path)
    parameters = {"config": "a b.yaml", "data.init_args.imbalance.ratio": 0.3, "x": True, "y": "null", "z": 1e-05}
    formatted = create_sweep_command_args({"args": {name: {"value": value} for name, value in parameters.items()}})
    words: list[str] = []
    for word in create_sweep_command(list(sweep.command)):
        words += formatted["args"] if word == "${args}" else [word]
    assert sweep.options(parameters) == words[words.index("fit") + 1 :]


@pytest.mark.parametrize("name", ["mini", "weights", "seeds", "imbalance_ratio"])
def test_published_sweep_is_understood_by_fit_in_any_folder(
    name: str, experiments: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = Sweep.load(experiments / f"sweeps/{name}.yaml")
    found = next_parameters(sweep, [])
    assert found is not None
    options = sweep.options(found[0])
    if name == "imbalance_ratio":  # the model of the paper, whose weights are not here
        options = ["--config", str(experiments / "scenes/sdr.yaml"), *options[4:]]
    data = build(options).datamodule
    assert [part.ratio for part in data.imbalances] == [found[0]["data.init_args.imbalance.ratio"]]


@pytest.mark.parametrize(
    ("given", "quantiles"),
    [
        ({"values": ["a", "b"]}, ["a", "b", "b"]),
        ({"values": ["a", "b"], "probabilities": [0.9, 0.1]}, ["a", "a", "b"]),
        ({"min": 1, "max": 4}, [1, 3, 4]),
        ({"min": 0.0, "max": 2.0}, [0.2, 1.0, 1.9]),
        ({"distribution": "q_uniform", "min": 0, "max": 10, "q": 2}, [0, 4, 10]),
        ({"distribution": "log_uniform", "min": -2, "max": 0}, [np.exp(-1.8), np.exp(-1), np.exp(-0.1)]),
        ({"distribution": "log_uniform_values", "min": 0.01, "max": 1}, [10**-1.8, 0.1, 10**-0.1]),
        ({"distribution": "q_log_uniform_values", "min": 1, "max": 100, "q": 5}, [0, 10, 80]),
        ({"distribution": "inv_log_uniform", "min": 0, "max": 2}, [np.exp(-1.8), np.exp(-1), np.exp(-0.1)]),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, [3 - 2 * 1.2815516, 3, 3 + 2 * 1.6448536]),
        ({"distribution": "log_normal"}, [np.exp(-1.2815516), 1, np.exp(1.6448536)]),
        ({"distribution": "beta", "a": 1, "b": 2}, [1 - 0.9**0.5, 1 - 0.5**0.5, 1 - 0.05**0.5]),
    ],
    ids=lambda value: value.get("distribution", "-".join(value)) if isinstance(value, dict) else "",
)
def test_quantiles_of_a_distribution(given: dict[str, Any], quantiles: list[Any]) -> None:
    found = [distribution("x", given).quantile(x) for x in (0.1, 0.5, 0.95)]
    assert found == (quantiles if isinstance(quantiles[0], str) else pytest.approx(quantiles))
