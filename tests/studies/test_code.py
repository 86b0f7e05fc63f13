"""What makes another code fingerprint and what does not: sources changed in a copy of the package."""

import shutil
import sys
import time
from pathlib import Path

import pytest

from sdr_lightning.studies.code import PACKAGE, code_fingerprint

CLASSES = (
    "sdr_lightning.data.RetrievalDataModule",
    "sdr_lightning.data.SceneSource",
    "sdr_lightning.losses.RebalancingObjective",
    "sdr_lightning.training.RetrievalModule",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / PACKAGE.name


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_a_copy_has_the_fingerprint_of_the_original_and_order_does_not_count(package: Path) -> None:
    assert code_fingerprint(CLASSES, package) == code_fingerprint(reversed(CLASSES)) == code_fingerprint(CLASSES)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("losses/objective.py", "\nTERMS", "\n_UNUSED = 1\nTERMS"),  # a class of the configuration, through its package
        ("functional/contrastive.py", "\ndef ", "\n_UNUSED = 1\n\n\ndef "),  # what it imports
        ("metrics/evaluation.py", "\ndef ", "\n_UNUSED = 1\n\n\ndef "),
        ("data/scenes.py", "\nclass ", "\n_UNUSED = 1\n\n\nclass "),
        ("study/jobs.py", "\ndef ", "\n_UNUSED = 1\n\n\ndef "),
    ],
)
def test_code_that_decides_a_result_counts(package: Path, file: str, old: str, new: str) -> None:
    changed(package / file, old, new)
    assert code_fingerprint(CLASSES, package) != code_fingerprint(CLASSES)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("losses/objective.py", '"""', '"""Other words. '),
        ("losses/objective.py", "\nTERMS", "\n# A comment.\nTERMS"),
        ("data/scenes.py", 'raise ValueError(f"', 'raise ValueError(f"Other words. '),
        ("data/tabular.py", "\nclass ", "\n_UNUSED = 1\n\n\nclass "),  # a reader that the study does not use
        ("data/__init__.py", "\n__all__", "\nfrom sdr_lightning.data.check import *\n\n__all__"),
        ("reporting/figures/style.py", "WIDTH = 11.0", "WIDTH = 12.0"),
        ("cli/main.py", "\ndef ", "\n_UNUSED = 1\n\n\ndef "),
        ("configure/complaints.py", "\ndef ", "\n_UNUSED = 1\n\n\ndef "),
    ],
)
def test_words_reports_and_other_readers_do_not_count(package: Path, file: str, old: str, new: str) -> None:
    changed(package / file, old, new)
    assert code_fingerprint(CLASSES, package) == code_fingerprint(CLASSES)


def test_a_reader_counts_where_the_study_uses_it(package: Path) -> None:
    classes = (*CLASSES, "sdr_lightning.data.TabularSource")
    changed(package / "data/tabular.py", "\nclass ", "\n_UNUSED = 1\n\n\nclass ")
    assert code_fingerprint(classes, package) != code_fingerprint(classes)


def test_a_class_outside_the_package_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "towers_of_mine"
    (own / "parts").mkdir(parents=True)
    for name, text in {
        "__init__.py": "from .tower import Tower\n",
        "tower.py": "import torch\n\nfrom .parts.layer import WIDTH\n\n\nclass Tower(torch.nn.Module):\n    width = WIDTH\n",
        "parts/layer.py": "WIDTH = 8\n",
        "other.py": "UNUSED = 1\n",
    }.items():
        (own / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def fingerprint() -> str:
        return code_fingerprint((*CLASSES, "towers_of_mine.Tower"))

    before = fingerprint()
    assert before != code_fingerprint(CLASSES)
    changed(own / "other.py", "1", "2")
    assert fingerprint() == before
    changed(own / "parts/layer.py", "8", "16")
    assert fingerprint() != before
    assert "towers_of_mine" not in sys.modules  # it is read, not run


@pytest.mark.parametrize("name", ["timm.models.ResNet", "no_such_package.Tower", "Tower"])
def test_installed_packages_and_names_that_lead_nowhere_do_not_count(name: str) -> None:
    assert code_fingerprint((*CLASSES, name)) == code_fingerprint(CLASSES)


def test_it_is_quick() -> None:
    started = time.monotonic()
    code_fingerprint(CLASSES)
    assert time.monotonic() - started < 1
