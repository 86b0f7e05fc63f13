import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sdr_lightning.reporting.claims import compare_claims
from sdr_lightning.reporting.findings import scope
from sdr_lightning.reporting.notes import caveats
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition, StudyMethod, Swept
from tests.reporting.fake_study import edit_json, folder, realised_of, write_study

HARD = Condition("mismatch", 0.6)


def test_runs_without_partner_are_not_compared(tmp_path: Path) -> None:
    write_study(tmp_path)
    for method, seed in (("SDR", 0), ("InfoNCE", 1)):
        shutil.rmtree(folder(tmp_path, method, "mismatch", 0.6, seed))
    study = load_study(tmp_path)
    comparison = compare_claims(study)["Cross-modal retrieval"][1]
    assert (comparison.condition, comparison.difference.n) == (HARD, 1)
    assert "10 of 12 runs finished" in scope(study)


def test_caveats_report_unequal_training_data_and_corrupted_evaluation_data(tmp_path: Path) -> None:
    write_study(tmp_path)
    other = realised_of("mismatch", 0.6, 1, measured=False) | {"sha256": "other"}
    noisy = {"test": realised_of("image noise", 0.5, 0, measured=False)}
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 1) / "results.json", realised=other, evaluated_under=noisy)
    notes = caveats(load_study(tmp_path))
    assert [note for note in notes if "pairing" in note] == [
        "mismatch 60\u00a0%, seed 1: the methods were trained on different corrupted data, so pairing may be invalid."
    ]
    assert "The evaluation data is corrupted in 1 of 12 runs: test: image noise, 10000 of 20000." in notes


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        (
            ("InfoNCE", "SDR"),
            {
                "InfoNCE, width 8": "InfoNCE, width 8",
                "SDR, width 8": "InfoNCE, width 8",
                "SDR, width 64": "InfoNCE, width 64",
            },
        ),
        (("InfoNCE",), {"InfoNCE, width 8": "InfoNCE, width 64", "InfoNCE, width 64": "InfoNCE, width 64"}),
    ],
    ids=["two families", "one family"],
)
def test_a_member_of_a_family_is_compared_with_that_of_the_baseline(
    tmp_path: Path, families: tuple[str, ...], expected: dict[str, str]
) -> None:
    members = [StudyMethod(f"{name}, width {w}", (), swept=Swept("width", w)) for name in families for w in (8, 64)]
    methods = {method.name: method for method in [*members, StudyMethod("Oracle", ())]}
    study = replace(
        load_study(write_study(tmp_path)), methods=methods, baseline="InfoNCE, width 64", candidate="InfoNCE, width 8"
    )
    assert {name: study.baseline_of(name) for name in expected} == expected
    assert study.baseline_of("Oracle") == "InfoNCE, width 64"


def test_degree_is_the_mean_over_seeds_that_measured_it(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, extras=True))
    assert study.degree(HARD) == pytest.approx(0.3 + 0.5 * 0.6 + 0.05 + 0.01)
    assert load_study(write_study(tmp_path / "plain")).degree(HARD) is None
