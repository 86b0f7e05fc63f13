"""Experiments by name, ``sdr:NAME``."""

from pathlib import Path

import pytest

from sdr_lightning.configure.shipped import experiment_names, experiment_path, with_experiments
from sdr_lightning.studies.spec import read_study


def test_every_experiment_of_the_checkout_has_a_name(experiments: Path) -> None:
    assert "methods/infonce.yaml" in experiment_names()
    assert [Path(experiment_path(f"sdr:{name}")) for name in experiment_names()] == sorted(experiments.rglob("*.yaml"))


def test_names_are_resolved_as_words_and_values_of_options(experiments: Path) -> None:
    words = ["--config", "sdr:scenes/sdr.yaml", "--data=sdr:data/scenes.yaml", "--x=1", "a=sdr:b", "my.yaml"]
    scenes, data = (str(experiments / name) for name in ("scenes/sdr.yaml", "data/scenes.yaml"))
    assert with_experiments(words) == ["--config", scenes, f"--data={data}", "--x=1", "a=sdr:b", "my.yaml"]


def test_an_unknown_name_is_answered_with_similar_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no experiment sdr:methods/infonec\.yaml: did you mean sdr:methods/infonce\."
    ):
        experiment_path("sdr:methods/infonec.yaml")
    with pytest.raises(ValueError, match=r"no experiment sdr:\.\./README\.md"):
        experiment_path("sdr:../README.md")


def test_a_study_of_ones_own_names_experiments_of_the_project(tmp_path: Path, experiments: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "{name: mine, title: Mine, student: 'sdr:scenes/sdr.yaml', baseline: A, candidate: B, ratios: [0], seeds: [0], "
        "methods: {A: {config: 'sdr:methods/infonce.yaml'}, B: {config: own.yaml}}, imbalances: {mismatch: {kind: mismatch}}}"
    )
    (tmp_path / "own.yaml").write_text("{}")
    study = read_study(file)
    assert study.student == (experiments / "scenes/sdr.yaml",)
    assert study.methods["A"].stages[0].config == (experiments / "methods/infonce.yaml",)
    assert study.methods["B"].stages[0].config == (tmp_path / "own.yaml",)
