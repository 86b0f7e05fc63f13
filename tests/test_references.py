"""Corner cases of names, packages and variables."""

import pytest

from sdr_lightning.identity import stable_hash, stable_hashes
from sdr_lightning.paths import expand, package_path


def test_many_hashes_without_a_prefix() -> None:
    assert stable_hashes((), ["a"]).tolist() == [stable_hash("a")]


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(ValueError, match="not installed"):
        package_path("package:no_such/x")


def test_a_builtin_module_has_no_folder() -> None:
    with pytest.raises(ValueError, match="sys"):
        package_path("package:sys/x")


def test_an_empty_variable_is_not_called_unset(monkeypatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(ValueError, match="empty"):
        expand("$EMPTY/x")
