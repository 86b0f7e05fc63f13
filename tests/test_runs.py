"""``sdr runs`` on folders of runs, study cells and teachers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sdr_lightning.cli.main import main
from sdr_lightning.cli.runs import run

GIT = {"git": {"commit": "0123456789", "dirty": False}, "data": {"train": {"sha256": "a"}}}


def folder(path: Path, imbalance: Any, metrics: str = "", **files: Any) -> Path:
    """Write the folder of a run."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"imbalance": imbalance}}, "seed": 0}))
    (path / "run.json").write_text(json.dumps(GIT))
    if metrics:
        (path / "metrics.csv").write_text(metrics)
    for name, content in files.items():
        (path / f"{name}.json").write_text(json.dumps(content))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    kind = {"kind": "mismatch"}
    curves = "epoch,step,train/loss,val/rsum\n0,1,3.5,90\n1,3,2.25,120\n2,5,2.0,110\n3,5,,\n"
    trained = {"kept": {"val/rsum": 150.0}, "epochs": 4, "wall_time_s": 7.2, "peak_memory_mib": 1234.0}
    folder(tmp_path / "plain", {**kind, "ratio": 0.3}, results={"training": trained})
    selected = {"on": "val/rsum", "score": 120.0, "epoch": 1, "epochs": 3}
    cell = {"metrics": {"rsum": 99.5, "i2t_MdR": None}, "selected": selected, "wall_time_s": 61.0}
    folder(tmp_path / "cells/a", [{**kind, "ratio": 0.3}], curves, results=cell)
    folder(tmp_path / "cells/a/stage-1", [{**kind, "ratio": 0.3}], curves)
    folder(tmp_path / "cells/b", [{**kind, "ratio": 0.6}, {"kind": "blur", "ratio": 0.3}])
    teacher = {"metrics": {"NDCG@10": 61.5}, "wall_time_s": 12.0}
    folder(tmp_path / "teachers/text", None, "epoch,step,train/loss\n0,1,3.5\n1,3,2.5\n", teacher=teacher)
    return tmp_path


def listed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, str]:
    """Return the printed text by its first word: a run, an option or a metric."""
    assert run([str(argument) for argument in arguments]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {line[0]: " ".join(line[1].split()) for line in lines if len(line) == 2}


def test_state_epochs_metrics_and_cost_of_each_run_are_listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {
        name: text.split(maxsplit=2)[2] for name, text in listed(capsys, runs).items() if "/" in name or name == "plain"
    }
    assert shown == {
        "plain": "finished 4 150 7 s 1,234 MiB 01234567",
        "cells/a": "finished 3 120 2.25 61 s 01234567",  # at the selected epoch
        "cells/a/stage-1": "finished 3 01234567",
        "cells/b": "unfinished 01234567",
        "teachers/text": "finished 2 12 s 01234567",
    }


def test_where_finds_an_imbalance_alone_or_in_a_list(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for condition, expected in {
        "imbalance.ratio=0.3": {"plain", "cells/a", "cells/a/stage-1", "cells/b"},
        "imbalance.ratio=0.6": {"cells/b"},
        "imbalance.1.ratio=0.3": {"cells/b"},
        "kind=blur": {"cells/b"},
    }.items():
        names = listed(capsys, runs, "--where", condition)
        assert {name for name in names if name == "plain" or "/" in name} == expected, condition


def test_what_is_no_run_or_no_value_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(runs), "--where", "ratio=["]) == 2
    assert "--where ratio=[: the value is not YAML" in capsys.readouterr().err
    (runs / "foreign").mkdir()
    (runs / "foreign/run.json").write_text("{}")
    (runs / "foreign/config.yaml").write_text("a: 1")
    assert main(["runs", str(runs)]) == 0
    assert "foreign" not in capsys.readouterr().out


@pytest.mark.parametrize("record", ["3", '{"git": {}, "data": {"train": 1}}'])
def test_a_malformed_record_does_not_hide_the_other_runs(
    record: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "cells/b/run.json").write_text(record)
    assert main(["runs", str(runs)]) == 0
    printed = capsys.readouterr()
    assert "4 of 4 runs" in printed.out
    assert printed.err.startswith(f"sdr runs: {runs / 'cells/b/run.json'}")


def test_brackets_in_names_and_values_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("run[sdr]", "[/b]"):
        folder(tmp_path / name, f"[/{name}]")
    assert {"run[sdr]", "[/b]"} <= listed(capsys, tmp_path).keys()
    assert "[/run[sdr]]" in listed(capsys, tmp_path / "run[sdr]", tmp_path / "[/b]")["data.init_args.imbalance"]


def test_metrics_of_cells_are_compared(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compared = listed(capsys, runs / "cells/a", runs / "teachers/text")
    assert (compared["val/rsum"], compared["test/rsum"], compared["test/NDCG@10"]) == ("120", "99.5", "61.5")
    assert "test/i2t_MdR" not in compared  # undefined


def test_sort_lists_the_highest_first(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = list(listed(capsys, runs, "--sort", "val/rsum"))
    assert names.index("plain") < names.index("cells/a") < names.index("cells/b")
