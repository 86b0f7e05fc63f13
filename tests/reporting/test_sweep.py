"""Reports of sweeps: the role of each parameter, and means over seeds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.reporting.sweep import axes_of, build_sweep_report, load_sweep

RATIO, KIND, SEED = "data.init_args.imbalance.ratio", "data.init_args.imbalance.kind", "seed_everything"


def write_sweep(folder: Path, runs: list[dict[str, Any]]) -> Path:
    """Write the folder of ``sdr sweep``; val/rsum of a run is its number."""
    parts = []
    for number, parameters in enumerate(runs):
        (folder / str(number)).mkdir(parents=True)
        kept = {"val/rsum": float(number), "val/i2t_R@1": number / 2, "val/modality_gap": None}  # an undefined metric
        (folder / str(number) / "results.json").write_text(json.dumps({"training": {"kept": kept}}))
        parts.append({"parameters": parameters, "folder": str(number), "state": "finished"})
    (folder / "sweep.json").write_text(json.dumps({"name": "some", "config": {}, "runs": parts}))
    return folder


def page_data(folder: Path) -> Any:
    page = build_sweep_report(folder).read_text()
    return json.loads(page[page.index("const data = ") + 13 :].split(", colours = ")[0])


def test_ratios_give_curves_with_a_panel_per_kind_and_a_line_per_method(tmp_path: Path) -> None:
    runs = [
        {"config": f"methods/{method}.yaml", KIND: kind, RATIO: ratio, SEED: seed}
        for method in ("itc", "sdr")
        for kind in ("mismatch", "blur")
        for ratio in (0.0, 0.5)
        for seed in (0, 1)
    ]
    data = page_data(write_sweep(tmp_path, runs))
    assert (data["curves"], data["x"], data["panel"]) == (True, [RATIO], KIND)
    assert {(p["panel"], p["line"]) for p in data["points"]} == {
        (k, m) for k in ("mismatch", "blur") for m in ("itc", "sdr")
    }
    at = {(p["line"], p["panel"], p["x"]): p for p in data["intervals"]["val/rsum"]}
    assert at["itc", "mismatch", 0.5]["mean"] == 2.5  # runs 2 and 3
    assert at["itc", "mismatch", 0.5]["n"] == 2


def test_methods_give_categories(tmp_path: Path) -> None:
    runs = [{"config": f"methods/{m}.yaml", SEED: seed} for m in ("sdr", "itc") for seed in range(3)]
    data = page_data(write_sweep(tmp_path, runs))
    assert data["categories"] == ["itc", "sdr"]
    assert [(p["x"], p["mean"], p["n"]) for p in data["intervals"]["val/rsum"]] == [(0, 4, 3), (1, 1, 3)]
    assert len((tmp_path / "sweep.csv").read_text().splitlines()) == 7


def test_numbers_of_a_search_give_a_panel_each(tmp_path: Path) -> None:
    data = page_data(write_sweep(tmp_path, [{"a.weight": 0.5, "b.tau": 0.1}, {"a.weight": 1, "b.tau": 0.2}]))
    assert (data["curves"], data["x"]) == (False, ["a.weight", "b.tau"])


def test_intervals_are_over_runs_that_differ_in_the_seed_alone(tmp_path: Path) -> None:
    grid = [{"a.rate": rate, "b.decay": decay, SEED: seed} for rate in (1, 2) for decay in (0, 1) for seed in (0, 1)]
    intervals = page_data(write_sweep(tmp_path, grid))["intervals"]["val/rsum"]
    assert sorted((p["name"], p["x"], p["mean"], p["n"]) for p in intervals if p["x"] == 1) == [
        ("a.rate", 1, 0.5, 2),  # runs 0 and 1
        ("a.rate", 1, 2.5, 2),
        ("b.decay", 1, 2.5, 2),
        ("b.decay", 1, 6.5, 2),
    ]


def test_a_run_that_a_random_search_repeats_counts_once(tmp_path: Path) -> None:
    runs = [{RATIO: ratio, SEED: seed} for ratio, seed in ((0, 0), (0, 1), (0.5, 0), (0, 0), (0, 0))]
    intervals = page_data(write_sweep(tmp_path, runs))["intervals"]["val/rsum"]
    assert [(p["x"], p["n"]) for p in intervals] == [(0, 2), (0.5, 1)]


def test_different_values_have_different_labels(tmp_path: Path) -> None:
    """Files of the same name, and numbers that are equal in six digits."""
    runs = [{"config": file, "a.w": w} for file in ("a/sdr.yaml", "b/sdr.yaml", "c/itc.yaml") for w in (0.1, 0.1000001)]
    _, loaded = load_sweep(write_sweep(tmp_path, runs))
    axes = axes_of(loaded)
    assert [axes.label(run.parameters["config"]) for run in loaded[::2]] == ["a/sdr.yaml", "b/sdr.yaml", "itc"]
    assert [axes.label(run.parameters["a.w"]) for run in loaded[:2]] == ["0.1", "0.1000001"]


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ("[]", "expected an object, found list"),
        ('{"name": "x", "runs": [{"folder": "0"}]}', r"runs\[0\]: 'parameters' must be an object"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, record: str, complaint: str) -> None:
    (tmp_path / "sweep.json").write_text(record)
    with pytest.raises(ValueError, match=f"sweep.json: {complaint}"):
        load_sweep(tmp_path)


def test_one_finished_run_gives_a_report(tmp_path: Path) -> None:
    weights = '{"itc": 1, "itm": 2}'
    data = page_data(write_sweep(tmp_path, [{"a.weights": weights, "a.rate": 1, SEED: 0}]))
    assert [(p["name"], p["mean"], p["low"]) for p in data["intervals"]["val/rsum"]] == [("a.rate", 0, None)]
    with (tmp_path / "sweep.csv").open(newline="") as table:
        (row,) = csv.DictReader(table)
    assert (row["a.weights"], row["a.rate"]) == (weights, "1")


def test_a_ratio_that_some_runs_lack_is_no_axis(tmp_path: Path) -> None:
    _, runs = load_sweep(write_sweep(tmp_path, [{RATIO: None, "a.rate": 1}, {RATIO: 0.4, "a.rate": 2}]))
    assert axes_of(runs).x == ("a.rate",)


def test_a_single_varied_parameter_is_the_x_axis(tmp_path: Path) -> None:
    base: dict[str, Any] = {SEED: 0, KIND: "mismatch", "config": "x.yaml"}
    for name, value in {SEED: 1, KIND: "blur"}.items():
        _, runs = load_sweep(write_sweep(tmp_path / name, [base, base | {name: value}]))
        axes = axes_of(runs)
        assert (axes.x, axes.panel, axes.seed, len(axes.categories)) == ((name,), None, None, 2)
    with pytest.raises(ValueError, match="no parameter differs between the runs"):
        axes_of(runs[:1] * 2)
