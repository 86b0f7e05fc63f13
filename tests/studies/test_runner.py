"""The folder of a study and what is said of its progress; whole studies run in tests/e2e."""

import io
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sdr_lightning.studies import jobs
from sdr_lightning.studies.plan import plan
from sdr_lightning.studies.runner import Runner
from sdr_lightning.studies.spec import Study

SUITE = Study.load(Path(__file__).parents[2] / "experiments/scenes/study.yaml")
CELL = "cells/ITC/mismatch-0.3/seed-0"


def runner(folder: Path, console: Console | None = None) -> Runner:
    return Runner(SUITE, plan(SUITE, folder), folder, 1, console)


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        ("study.json", "study.json exists and was not written by this command"),
        ("report.html", "report.html exists and was not written by this command"),
        ("report.md", "report.md exists and was not written by this command"),
        ("figures/rsum.png", "rsum.png exists and was not written by this command"),
        (f"{CELL}/notes.txt", r"seed-0 has no begun\.json, so no job of this study wrote it: move it away, or choose"),
        (f"{CELL}/results.json", r"seed-0 has no begun\.json"),
        ("teachers/image/notes.txt", r"image has no begun\.json"),
    ],
)
def test_a_file_of_another_origin_is_refused_before_the_work(tmp_path: Path, file: str, complaint: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=complaint):
        runner(tmp_path).run()
    assert (tmp_path / file).read_text() == "{}"
    assert not multiprocessing.active_children()


def test_files_beside_those_of_a_study_are_left_alone(tmp_path: Path) -> None:
    for name in ("notes.txt", "cells/notes.txt", f"{CELL}/.begun-abc.json"):  # the last is of an interrupted start
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    runner(tmp_path)._check_folder()


def test_a_log_tells_how_far_the_study_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "run_cell", lambda *_: None)
    printed = io.StringIO()
    running = runner(tmp_path, Console(file=printed, width=60))
    running._cells_before = 10
    work: list[Any] = [("image clean", lambda: None, ()), ("SDR, mismatch 0.3, seed 1", jobs.run_cell, ())]
    monkeypatch.setattr(time, "monotonic", iter([100.0, *[116.0] * 1000]).__next__)  # 16 s for the first of 95 cells
    with ThreadPoolExecutor(1) as pool:
        running._phase(pool, "banks and cells", work)  # type: ignore[arg-type]
    assert "1/2 banks and cells: image clean\n" in printed.getvalue()
    assert "11/105 cells, 26 min left: SDR, mismatch 0.3, seed 1\n" in printed.getvalue()
