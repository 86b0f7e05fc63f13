"""Every file in experiments/ is parsed and becomes what it describes."""

from pathlib import Path

import pytest
import yaml

from sdr_lightning.configure import build
from sdr_lightning.suite.plan import plan
from sdr_lightning.suite.spec import Suite

ROOT = Path(__file__).parent.parent / "experiments"
FILES = sorted(ROOT.rglob("*.yaml"))
SUITES = [path for path in FILES if path.stem.startswith("suite")]
OVERLAYS = sorted((ROOT / "_base").glob("*.yaml"))
FRAGMENTS = sorted([*(ROOT / "models").glob("*.yaml"), *(ROOT / "data").glob("*.yaml")])
EXPERIMENTS = [path for path in FILES if path not in {*SUITES, *OVERLAYS, *FRAGMENTS}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_it_opens_with_what_it_is(path: Path) -> None:
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [*EXPERIMENTS, *SUITES], ids=lambda path: str(path.relative_to(ROOT)))
def test_it_names_its_command_its_duration_and_its_result(path: Path) -> None:
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for label in ("# Command:", "# Duration:", "# Result:"):
        assert any(line.startswith(label) for line in header), f"no line {label!r}"


@pytest.mark.parametrize("path", SUITES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_study_has_its_cells(path: Path, tmp_path: Path) -> None:
    suite = Suite.load(path)
    conditions = len(suite.imbalances) * len([ratio for ratio in suite.ratios if ratio]) + (0 in suite.ratios)
    assert len(plan(suite, tmp_path).cells) == len(suite.methods) * conditions * len(suite.seeds)
    assert len(suite.seeds) >= 3


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_is_instantiated(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Architectures get random weights where theirs are not at hand; everything else is as configured."""
    for name in ("FLICKR8K_ROOT", "FLICKR30K_ROOT", "IMAGE_WEIGHTS"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("sdr_lightning.encoders.image.load_state", lambda *_, **__: None)
    text = path.read_text()
    if "swin" in text:
        pytest.skip("needs the weights of Swin-B and BERT-base from the hub; its model is checked by the slow test")
    cli = build(["--config", str(path), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"])
    assert cli.datamodule is not None
    assert cli.model is not None


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
def test_an_overlay_changes_the_trainer_alone(path: Path) -> None:
    assert yaml.safe_load(path.read_text()).keys() == {"trainer"}
