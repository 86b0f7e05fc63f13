"""Which changes of a copy of the package change its code fingerprint."""

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from sdr_lightning.studies.code import PACKAGE, CodeReader

CLASSES = (
    "sdr_lightning.data.RetrievalDataModule",
    "sdr_lightning.data.SceneSource",
    "sdr_lightning.methods.SDR",
    "sdr_lightning.training.RetrievalModule",
)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / PACKAGE.name


def code_fingerprint(classes: Iterable[str], package: Path = PACKAGE) -> str:
    return CodeReader(package).fingerprint(classes)


def changed(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def test_fingerprint_depends_on_neither_place_nor_order(package: Path) -> None:
    assert code_fingerprint(CLASSES, package) == code_fingerprint(reversed(CLASSES)) == code_fingerprint(CLASSES)


UNUSED = "_UNUSED = 1\n\n\n"


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("methods/sdr.py", "TERMS", "_UNUSED = 1\nTERMS"),  # a class of the configuration, through its package
        ("functional/contrastive.py", "def ", f"{UNUSED}def "),  # imported by it
        ("studies/jobs.py", "def ", f"{UNUSED}def "),
    ],
)
def test_code_that_decides_a_result_counts(package: Path, file: str, old: str, new: str) -> None:
    changed(package / file, f"\n{old}", f"\n{new}")
    assert code_fingerprint(CLASSES, package) != code_fingerprint(CLASSES)


def test_comments_messages_reports_and_unused_readers_do_not_count(package: Path) -> None:
    for file, old, new in (
        ("methods/sdr.py", '"""', '"""Other words. '),
        ("methods/sdr.py", "\nTERMS", "\n# A comment.\nTERMS"),
        ("data/scenes.py", 'raise ValueError(f"', 'raise ValueError(f"Other words. '),
        ("data/tabular.py", "\nclass ", f"\n{UNUSED}class "),
        ("data/__init__.py", "\n__all__", "\nfrom sdr_lightning.data.check import *\n\n__all__"),
        ("reporting/figures/style.py", "WIDTH = 11.0", "WIDTH = 12.0"),
        ("results/schema.py", "\nclass ", f"\n{UNUSED}class "),
        ("cli/main.py", "\ndef ", f"\n{UNUSED}def "),
        ("configure/parser_errors.py", "\ndef ", f"\n{UNUSED}def "),
    ):
        changed(package / file, old, new)
        assert code_fingerprint(CLASSES, package) == code_fingerprint(CLASSES), file


def test_reader_counts_where_the_study_uses_it(package: Path) -> None:
    classes = (*CLASSES, "sdr_lightning.data.TabularSource")
    changed(package / "data/tabular.py", "\nclass ", f"\n{UNUSED}class ")
    assert code_fingerprint(classes, package) != code_fingerprint(classes)


def test_class_outside_the_package_counts_with_its_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_installed_packages_and_unknown_names_do_not_count() -> None:
    names = ("timm.models.ResNet", "no_such_package.Tower", "Tower")
    assert code_fingerprint((*CLASSES, *names)) == code_fingerprint(CLASSES)
