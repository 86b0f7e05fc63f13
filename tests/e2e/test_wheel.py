"""The package from a wheel, in a folder without a checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.e2e.sdr import SMALL, error_line, sdr, succeeded

ROOT = Path(__file__).parents[2]
BUILT = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "sdr_lightning", "experiments")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Build a wheel from a copy of the sources, unpack it, and return the environment that finds it."""
    sources, target = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("site-packages")
    for name in BUILT:
        found = ROOT / name
        if found.is_dir():
            shutil.copytree(found, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(found, sources / name)
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(sources / "wheel")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sources)], check=True)
    (wheel,) = (sources / "wheel").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return {"PYTHONPATH": str(target)}


def test_an_editable_installation_is_found_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    """As from the folder above a checkout, which has the name of the package and is no package itself."""
    (tmp_path / "sdr_lightning").mkdir()
    program = "import sdr_lightning; print(sdr_lightning.__version__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"install again, pip install -e .: {done.stderr}"


@pytest.mark.slow
def test_a_wheel_holds_every_experiment(installed: dict[str, str]) -> None:
    def files(root: Path) -> set[str]:
        return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}

    assert files(Path(installed["PYTHONPATH"]) / "sdr_lightning/experiments") == files(ROOT / "experiments")


@pytest.mark.slow
def test_experiments_of_a_wheel_run_by_name(installed: dict[str, str], tmp_path: Path) -> None:
    infonce = ("--config", "sdr:scenes/sdr.yaml", "--config=sdr:methods/infonce.yaml")
    short = ("--trainer.max_epochs", "1", "--run_dir", "run")
    succeeded(sdr("fit", *infonce, *SMALL, *short, cwd=tmp_path, **installed))
    assert (tmp_path / "run/checkpoints/best.ckpt").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    written = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert written["data"]["init_args"]["image_bank"].startswith(installed["PYTHONPATH"])
    printed = succeeded(sdr("reproduce", "sdr:scenes/study.yaml", "--dry-run", cwd=tmp_path, **installed))
    assert f"{installed['PYTHONPATH']}/sdr_lightning/experiments/scenes/sdr.yaml" in printed


@pytest.mark.slow
def test_benchmarks_are_refused_without_a_checkout(installed: dict[str, str], tmp_path: Path) -> None:
    assert "run sdr bench in a checkout" in error_line(sdr("bench", "losses", cwd=tmp_path, **installed))
