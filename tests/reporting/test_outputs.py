"""What holds for the files of every report: origin, self-contained pages, escaping, equal bytes, atomic writes."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

from sdr_lightning.reporting import build_report, draw_run
from sdr_lightning.reporting.comparison import check_comparison, compare_systems, write_comparison
from sdr_lightning.reporting.evaluation_files import load_systems
from sdr_lightning.reporting.leaderboard.output import Leaderboard, check_leaderboard, write_leaderboard
from sdr_lightning.reporting.leaderboard.studies import study_group
from sdr_lightning.reporting.sweep import build_sweep_report
from sdr_lightning.results.loading import load_study
from tests.reporting.fake_evaluation import write_evaluation
from tests.reporting.fake_study import edit_json, folder, write_study
from tests.reporting.test_sweep import write_sweep

UNSAFE = "a|b <script>alert(1)"


def write_inputs(root: Path) -> None:
    study = write_study(root / "study", seeds=(0,), ndcg=False)
    edit_json(study / "study.json", title=UNSAFE, description=UNSAFE)
    (root / "run").mkdir()
    (root / "run/metrics.csv").write_text("epoch,step,val/rsum\n0,9,100\n1,19,120\n")
    write_sweep(root / "sweep", [{"ratio": 0.0, "config": UNSAFE}, {"ratio": 0.5, "config": "b"}])
    write_evaluation(root / "comparison/a.json")
    (root / "leaderboard").mkdir()


def build_comparison(root: Path) -> None:
    check_comparison(root)
    write_comparison(compare_systems(load_systems([f"{UNSAFE}={root / 'a.json'}"]), replicates=100), root)


def build_leaderboard(root: Path) -> None:
    check_leaderboard(root)
    write_leaderboard(Leaderboard((study_group(load_study(root.parent / "study")),)), root)


class Kind(NamedTuple):
    build: Callable[[Path], object]
    files: tuple[str, ...]

    @property
    def page(self) -> str | None:
        return next((name for name in self.files if name.endswith(".html")), None)


KINDS = {
    "study": Kind(build_report, ("report.html", "report.md", "figures/rsum.png")),
    "run": Kind(draw_run, ("training.png",)),
    "sweep": Kind(build_sweep_report, ("sweep.html", "sweep.csv", "sweep.png")),
    "comparison": Kind(build_comparison, ("comparison.html", "comparison.md")),
    "leaderboard": Kind(build_leaderboard, ("leaderboard.html", "leaderboard.md")),
}
PAGES = [name for name, kind in KINDS.items() if kind.page]


class Elements(HTMLParser):
    """Tags and addresses of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", KINDS)
def test_a_report_overwrites_only_its_own_files_and_is_reproducible(tmp_path: Path, name: str) -> None:
    write_inputs(tmp_path)
    root, kind = tmp_path / name, KINDS[name]
    before = contents(root)
    kind.build(root)
    first = contents(root)
    assert first.keys() - before.keys() == set(kind.files)
    kind.build(root)
    assert contents(root) == first
    for file in kind.files:
        (root / file).write_text("other")
        with pytest.raises(ValueError, match=f"{file} exists and was not written by this command"):
            kind.build(root)
        assert contents(root) == first | {file: b"other"}
        (root / file).write_bytes(first[file])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_self_contained_and_escaped(tmp_path: Path, name: str) -> None:
    write_inputs(tmp_path)
    root, kind = tmp_path / name, KINDS[name]
    kind.build(root)
    page = (root / str(kind.page)).read_text()
    elements = Elements(page)
    assert all(address.startswith(("#", "data:")) for address in elements.addresses)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|url\(|@import", page)
    assert not set(elements.tags) & {"link", "iframe", "object"}
    assert elements.tags.count("script") == {"study": 3, "sweep": 1, "leaderboard": 2}.get(name, 0)  # others hold data
    assert "<script>alert" not in page
    for file in root.glob("*.md"):
        assert "<script" not in file.read_text()
        assert "a\\|b &lt;script&gt;" in file.read_text()


@pytest.mark.parametrize("name", PAGES)
def test_an_interrupted_write_keeps_the_previous_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_inputs(tmp_path)
    root, kind = tmp_path / name, KINDS[name]
    kind.build(root)
    before = contents(root)

    def fail(self: Path, content: str | bytes, *_: object, **__: object) -> int:
        with self.open("wb") as file:
            file.write(b"partial")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        kind.build(root)
    monkeypatch.undo()
    assert contents(root) == before


def test_a_malformed_study_keeps_the_previous_report(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    root = tmp_path / "study"
    build_report(root)
    edit_json(folder(root, "SDR", "mismatch", 0.6, 0) / "results.json", metrics={"rsum": "high"})
    before = contents(root)
    with pytest.raises(ValueError, match=r"results\.json: metrics: 'rsum' must be a finite number"):
        build_report(root)
    assert contents(root) == before
