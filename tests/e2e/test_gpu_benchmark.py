"""benchmarks/gpu.sh in miniature: every part yields its rows, and the record becomes tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ["peak", "evaluation", "search", "attention", "precision", "fit", "student"]


def gpu(*words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "FLICKR8K_ROOT"} | {
        "PYTHON": sys.executable
    }
    command = ["bash", str(ROOT / "benchmarks/gpu.sh"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_miniature_measures_every_part(tmp_path):
    output = tmp_path / "gpu.json"
    printed = gpu("--mini", str(output), "--minutes", "18", "--parts", *PARTS)
    record = json.loads(output.read_text())
    assert list(record["parts"]) == PARTS
    assert "failed: none" in printed
    assert all(part["rows"] and "error" not in part for part in record["parts"].values())
    options = [row["options"] for row in record["parts"]["student"]["rows"]]
    assert options[0] == "fp32"
    assert options[-1].endswith("activation_checkpointing")
    assert all(row["images/s"] > 0 for row in record["parts"]["student"]["rows"])
    table = gpu("--tables", str(output))
    assert "In miniature" in table
    assert all(f"**{part}**" in table for part in PARTS)


@pytest.mark.slow
def test_a_run_out_of_time_says_what_it_left_out(tmp_path):
    printed = gpu("--mini", str(tmp_path / "gpu.json"), "--minutes", "0", "--parts", "peak", "search")
    assert "left out, no time: search" in printed
