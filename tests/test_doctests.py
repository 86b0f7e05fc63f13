"""Run the examples in the docstrings of the package."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import sdr_lightning

ROOT = Path(sdr_lightning.__file__).parent
MODULES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in sorted(ROOT.rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    results = doctest.testmod(import_module(name))
    assert results.attempted
    assert results.failed == 0
