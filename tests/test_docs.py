"""Links, commands and Python examples of README and documentation."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdr_lightning.cli.commands import COMMANDS, SUBCOMMANDS
from sdr_lightning.configure.shipped import experiment_path

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)]
WRITTEN = [path for path in PAGES if "results" not in path.parts and path.name != "leaderboard.md"]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub forms them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every line of a page that calls ``sdr``, without comments."""
    for line in re.findall(r"^(?: {4,}|\t)(.*\bsdr .*)$", page.read_text(), flags=re.MULTILINE):
        for part in re.split(r"&&|\|\||;", line):
            words = part.strip().removesuffix("\\")
            if re.match(r"(?:[A-Z_0-9]+=\S+ )*sdr [a-z]", words):
                found = shlex.split(words, comments=True)
                yield found[found.index("sdr") + 1 :]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^()\s#:]*)(?:#([^()\s]*))?\)", page.read_text()):
        found = (page.parent / target) if target else page
        assert found.exists(), target
        assert not anchor or found.suffix != ".md" or anchor in anchors(found) | anchors(shown(found)), (
            f"{target}#{anchor}"
        )


def shown(page: Path) -> Path:
    """The file whose text a page of the site shows."""
    return ROOT / "CONTRIBUTING.md" if page == ROOT / "docs/contributing.md" else page


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_their_experiments_exist(page: Path) -> None:
    for command, *words in commands(page):
        assert command in COMMANDS, command
        if command in ("data", "noise"):
            assert words[0] in SUBCOMMANDS[command], words
        for word in words:
            if word.startswith("experiments/"):
                assert (ROOT / word).exists(), word
            elif word.startswith("sdr:"):
                assert experiment_path(word)


def test_no_page_has_marks_of_a_merge() -> None:
    assert not [page.name for page in PAGES if re.search(r"^(<{7}|>{7}) ", page.read_text(), re.MULTILINE)]


def test_the_readme_has_commands() -> None:
    assert {words[0] for words in commands(ROOT / "README.md")} >= {"init", "clean", "fit", "evaluate", "report"}


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", "docs/export.md"])
def test_python_examples_run(page: str, tmp_path: Path, experiments: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.retrieval.runs import write_fusion_run

    text = (ROOT / page).read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    write_fusion_run(tmp_path / "mine/run", experiments)
    monkeypatch.chdir(tmp_path)
    for name in ("beach.jpg", "street.jpg"):
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(name)
    found: dict[str, object] = {}
    exec(compile(code, page, "exec"), found)
    assert np.asarray(found["scores"]).shape in ((1, 2), (2, 1))
