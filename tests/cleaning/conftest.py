"""A user's table, cleaned with small teachers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from sdr_lightning.cleaning import Cleaned, TeacherChoice, clean, write_folder
from tests.cleaning.own import Own, own_data, write_own


@pytest.fixture(scope="session")
def choices(experiments: Path) -> dict[str, TeacherChoice]:
    """Small towers with random weights."""
    names = ("image", "text")
    return {f"{name}_teacher": TeacherChoice(str(experiments / f"scenes/{name}_teacher.yaml")) for name in names}


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Own:
    return write_own(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="session")
def cleaned(own: Own, choices: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Cleaned, Path]:
    folder = tmp_path_factory.mktemp("cleaned")
    before = content(own.folder)
    found = clean(own_data(own, folder / "cache"), **choices, near=0.9999)
    write_folder(found, folder / "clean")
    assert content(own.folder) == before  # nothing of the user's is changed
    return found, folder / "clean"


def content(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
