"""The words at the top of a report are those of the verdicts."""

import json
import shutil
from pathlib import Path

import pytest

from sdr_lightning.reporting.findings import headline, scope, sentences, tiles
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Study
from tests.reporting.fake_study import PLACEBO, edit_json, folder, write_json, write_study

BETTER, WORSE, UNDECIDED = (5.0, 6.0, 5.5), (-5.0, -6.0, -5.5), (5.0, -6.0, 2.0)


def study_with(root: Path, differences: dict[tuple[str, float], tuple[float, ...]]) -> Study:
    """Write a study with given SDR − InfoNCE in rsum, by condition and seed, and without recalls."""
    ratios = sorted({ratio for _, ratio in differences})
    imbalances = tuple(dict.fromkeys(name for name, ratio in differences if ratio))
    write_study(root, imbalances=imbalances, ratios=tuple(ratios))
    for (imbalance, ratio), values in differences.items():
        for seed, difference in enumerate(values):
            level = 100.0 + 50 * seed  # seeds differ more than methods
            for method, rsum in (("InfoNCE", level), ("SDR", level + difference)):
                edit_json(folder(root, method, imbalance, ratio, seed) / "results.json", metrics={"rsum": rsum})
    return load_study(root)


CLEAN, LOW, HIGH = ("none", 0.0), ("mismatch", 0.3), ("mismatch", 0.6)
TASK = "InfoNCE in cross-modal retrieval"


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ({CLEAN: BETTER, LOW: BETTER, HIGH: BETTER}, f"SDR beats {TASK} everywhere"),
        ({CLEAN: WORSE, HIGH: BETTER}, f"SDR beats {TASK} under mismatch 60 %; falls behind on the data as given"),
        (
            {CLEAN: UNDECIDED, LOW: BETTER, HIGH: BETTER},
            f"SDR beats {TASK} under mismatch 30 and 60 %; no clear difference on the data as given",
        ),
        (
            {CLEAN: WORSE, HIGH: UNDECIDED},
            f"SDR falls behind {TASK} on the data as given; no clear difference under mismatch 60 %",
        ),
        ({CLEAN: UNDECIDED, HIGH: UNDECIDED}, f"No clear difference between SDR and {TASK}"),
        ({HIGH: BETTER}, f"SDR beats {TASK} under mismatch 60 %"),
        (
            {
                CLEAN: UNDECIDED,
                LOW: UNDECIDED,
                HIGH: BETTER,
                ("image noise", 0.3): UNDECIDED,
                ("image noise", 0.6): WORSE,
            },
            f"SDR beats {TASK} under mismatch 60 %; falls behind under image noise 60 %; "
            "no clear difference under the other 3 conditions",
        ),
    ],
)
def test_the_headline_states_the_verdicts(
    tmp_path: Path, differences: dict[tuple[str, float], tuple[float, ...]], expected: str
) -> None:
    assert headline(study_with(tmp_path, differences)).replace("\N{NO-BREAK SPACE}", " ") == expected


def test_a_study_without_runs_has_no_result_yet(tmp_path: Path) -> None:
    shutil.rmtree(write_study(tmp_path) / "cells")
    study = load_study(tmp_path)
    assert headline(study) == "SDR and InfoNCE: no pair of runs to compare yet"
    assert sentences(study) == ()
    assert tiles(study) == ()
    assert scope(study).startswith(
        "2 methods, 2 conditions, 3 seeds; 0 of 12 runs finished; untuned; Scenes, 4,000 training"
    )


@pytest.mark.parametrize(
    ("missing", "expected", "verdicts"),
    [
        (
            (("SDR", *CLEAN),),
            "SDR beats InfoNCE in cross-modal retrieval under mismatch 60 %",
            "higher in 1 of 2 conditions, 1 not measured yet",
        ),
        ((("SDR", *CLEAN), ("InfoNCE", *HIGH)), "SDR and InfoNCE: no pair of runs to compare yet", None),
    ],
)
def test_a_running_study_states_what_is_there(
    tmp_path: Path, missing: tuple[tuple[str, str, float], ...], expected: str, verdicts: str | None
) -> None:
    study_with(tmp_path, {CLEAN: WORSE, HIGH: BETTER})
    for method, name, ratio in missing:
        for seed in (0, 1, 2):
            shutil.rmtree(folder(tmp_path, method, name, ratio, seed))
    study = load_study(tmp_path)
    assert headline(study).replace("\N{NO-BREAK SPACE}", " ") == expected
    assert [tile.verdicts for tile in tiles(study)] == ([verdicts] if verdicts else [])


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    assert headline(load_study(write_study(tmp_path, seeds=(0,)))) == "SDR and InfoNCE: too few seeds for a verdict"


def test_sentences_give_the_largest_gain_the_control_and_the_best_methods(tmp_path: Path) -> None:
    study_with(tmp_path, {CLEAN: WORSE, HIGH: BETTER})
    record = json.loads((tmp_path / "study.json").read_text())
    placebo = {**record["methods"]["SDR"], "teachers": "placebo"}
    edit_json(tmp_path / "study.json", methods=record["methods"] | {PLACEBO: placebo})
    for name, ratio in (CLEAN, HIGH):
        for seed, rsum in enumerate((540.0, 541.0, 540.5) if ratio else (20.0, 70.0, 120.0)):
            run = json.loads((folder(tmp_path, "InfoNCE", name, ratio, seed) / "results.json").read_text())
            write_json(
                folder(tmp_path, PLACEBO, name, ratio, seed) / "results.json",
                run | {"method": PLACEBO, "metrics": {"rsum": rsum}},
            )
    found = [sentence.replace("\N{NO-BREAK SPACE}", " ") for sentence in sentences(load_study(tmp_path))]
    assert found == [
        # Half-width: t(2, 0.975) * 0.5 / sqrt(3).
        "Mean rsum under mismatch 60 %: 155.5 with SDR, 150.0 with InfoNCE; difference +5.5 [4.3, 6.7].",
        f"With random features in place of those of the teachers ({PLACEBO}), rsum against InfoNCE is higher in 1, lower in 1 of "
        "2 conditions.",
        f"Highest mean rsum of the 3 methods: InfoNCE in 1 and {PLACEBO} in 1 of 2 conditions.",
    ]


def test_methods_that_share_the_highest_mean_are_all_named(tmp_path: Path) -> None:
    study_with(tmp_path, {CLEAN: (0.0, 0.0, 0.0), HIGH: WORSE})
    record = json.loads((tmp_path / "study.json").read_text())
    edit_json(tmp_path / "study.json", methods=record["methods"] | {"AGREE": record["methods"]["SDR"]})
    *_, found = sentences(load_study(tmp_path))
    assert found == "Highest mean rsum of the 3 methods: InfoNCE in 2 and SDR in 1 of 2 conditions."


def test_a_tile_has_the_difference_of_each_condition_with_its_mark(tmp_path: Path) -> None:
    (tile,) = tiles(study_with(tmp_path, {CLEAN: UNDECIDED, HIGH: BETTER, LOW: WORSE}))
    assert (tile.title, tile.verdicts) == (
        "Cross-modal retrieval",
        "higher in 1, lower in 1, undecided in 1 of 3 conditions",
    )
    assert [(row.mark, row.value, row.detail) for row in tile.rows] == [
        ("○", "+0.3", "[−13.8, 14.5]"),
        ("▼", "−5.5", "[−6.7, −4.3]"),
        ("▲", "+5.5", "[4.3, 6.7]"),
    ]
    assert tile.rows[2].runs == "rsum|SDR|mismatch 60\N{NO-BREAK SPACE}%"


def test_tiles_of_many_conditions_list_no_imbalance_and_the_highest_ratios(tmp_path: Path) -> None:
    write_study(tmp_path, imbalances=("mismatch", "image noise"), ratios=(0, 0.3, 0.6))
    labels = [row.label.replace("\N{NO-BREAK SPACE}", " ") for row in tiles(load_study(tmp_path))[0].rows]
    assert labels == ["data as given", "mismatch 60 %", "image noise 60 %"]
