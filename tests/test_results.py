"""Published results: text is generated from the records, and outdated results are marked."""

import importlib
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdr_lightning.reporting import build_report
from sdr_lightning.reporting.leaderboard.studies import retitled, study_group
from sdr_lightning.results.loading import load_study
from sdr_lightning.studies.plan import plan
from sdr_lightning.studies.spec import read_study
from tests.reporting.fake_study import edit_json, write_study

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))
texts: Any = importlib.import_module("published")
make: Any = importlib.import_module("make_results")
check: Any = importlib.import_module("check_results")

STUDIES = {study.record["name"]: study for study in texts.published()}


@pytest.mark.slow  # plans every published study
def test_results_in_the_text_are_those_of_the_records() -> None:
    """Fails as well when the code of a published study has changed and its text does not mark it."""
    stale = [
        str(path.relative_to(ROOT)) for path in texts.files(STUDIES) if path.read_text() != texts.filled(path, STUDIES)
    ]
    assert not stale, "run make results"


def test_every_published_study_is_shown() -> None:
    assert {study.folder for study in STUDIES.values()} == {path for path in texts.RESULTS.iterdir() if path.is_dir()}
    pages = (texts.RESULTS / "README.md").read_text()  # test_results_in_the_text_are_those_of_the_records
    for name, study in STUDIES.items():
        assert study.folder.name == name == study.study.name
        assert f"| [{study.record['title']}](" in pages
        assert f"<!-- results: {name} -->" in pages
        assert f"<!-- state: {name} -->" in (study.folder / "report.md").read_text()


@pytest.mark.slow
def test_the_leaderboard_is_that_of_the_records() -> None:
    assert not [path.name for path, text in texts.leaderboard(STUDIES).items() if path.read_text() != text], (
        "run make results"
    )


def test_every_page_of_a_method_shows_its_results() -> None:
    overlays = {path.stem for path in (ROOT / "experiments/methods").glob("*.yaml")}
    for page in (path for path in (ROOT / "docs/methods").glob("*.md") if path.stem in overlays):
        assert f"<!-- leaderboard: {page.stem} -->" in page.read_text(), page


def test_the_block_of_a_method_has_its_rows_of_every_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Up-to-date studies come first, outdated ones are marked; a method without rows has a sentence."""
    monkeypatch.setattr(texts, "ROOT", tmp_path)
    for name in ("infonce", "siglip"):
        (tmp_path / "experiments/methods").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"experiments/methods/{name}.yaml").touch()
    group = study_group(load_study(ROOT / "docs/results/flickr8k-weak-text"))
    studies = {
        title: SimpleNamespace(
            group=retitled(group, title), stale=stale, link=f"docs/results/{title}/report.md", folder=tmp_path
        )
        for title, stale in (("old", "the code"), ("new", ""))
    }
    studies["without cells"] = SimpleNamespace(group=None, stale="", link="", folder=tmp_path)
    page = tmp_path / "docs/methods/page.md"
    page.parent.mkdir(parents=True)
    page.write_text(
        "".join(f"<!-- leaderboard: {n} -->\nx\n<!-- end of leaderboard -->\n" for n in ("infonce", "siglip"))
    )
    text = texts.filled(page, studies)
    rows = [line for line in text.splitlines() if line.startswith("| [") and "| InfoNCE | 92.3 [86.5, 98.1] |" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| [new](../../docs/results/new/report.md)",
        "| [old](../../docs/results/old/report.md); the code has changed since",
    ]
    assert all("tuned with 4 trials" in row for row in rows)
    assert text.endswith(f"<!-- leaderboard: siglip -->\n{texts.NO_RESULT}\n<!-- end of leaderboard -->\n")
    assert "\nx\n" not in text
    page.write_text("<!-- leaderboard: infonec -->\n<!-- end of leaderboard -->\n")
    with pytest.raises(ValueError, match="of 'infonec', which is no overlay: infonce, siglip"):
        texts.filled(page, studies)


def test_prose_of_the_readme_has_no_numbers() -> None:
    """Numbers with a decimal are measurements."""
    prose = re.sub(
        r"<!-- (results|methods):.*?<!-- end of \1 -->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL
    )
    found = prose[prose.index("## Results") : prose.index("## Documentation")]
    assert not re.search(r"\d\.\d", found)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study with the code and configuration of the scenes, and made-up numbers."""
    study = read_study(ROOT / "experiments/scenes/study.yaml")
    tmp_path = tmp_path_factory.mktemp("built")
    planned = plan(study, tmp_path)
    imbalances, methods = tuple(study.imbalances), tuple(study.methods)
    folder = write_study(tmp_path / "scenes", methods, imbalances, study.ratios, study.seeds, extras=True)
    edit_json(folder / "study.json", code=planned.code)
    for path in folder.glob("teachers/**/teacher.json"):
        edit_json(path, code=planned.code)
    for path, cell in zip(sorted(folder.glob("cells/**/results.json")), planned.cells, strict=True):
        git = {"commit": "0123456789abcdef", "dirty": False}
        selected = {"on": "val/rsum", "score": 1.0, "epoch": 7, "epochs": 8}
        edit_json(path, code=planned.code, fingerprint=cell.fingerprint, git=git, selected=selected)
    build_report(folder)
    return folder


@pytest.fixture
def study(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / built.name))


@pytest.mark.slow
def test_published_records_rebuild_the_report_and_go_out_of_date(study: Path, tmp_path: Path) -> None:
    target = make.publish(study, tmp_path / "results")
    assert target == make.publish(study, tmp_path / "results")  # over an earlier one
    assert {path.name for path in target.iterdir()} == {
        "study.json",
        "results.jsonl",
        "teachers.jsonl",
        "report.md",
        "figures",
    }
    record = json.loads((target / "study.json").read_text())
    lines = [json.loads(line) for line in (target / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 120
    report = (target / "report.md").read_text()
    assert "Example retrievals" not in report
    assert report.index("<!-- state: scenes -->") < report.index("## Differences from the baseline")
    one = texts.Published(target, record)
    assert (one.state, one.tuning) == ("measured at commit 0123456789", "untuned")
    means = record["conditions"][1]["comparisons"]["rsum"]
    by_seed = [
        line["metrics"]["rsum"]
        for line in lines
        if (line["method"], line["imbalance"], line["ratio"]) == ("SDR", "mismatch", 0.6)
    ]
    assert means["candidate"] == pytest.approx(sum(by_seed) / 10)
    assert means["difference"] == pytest.approx(means["candidate"] - means["baseline"])

    shown = {figure.name: figure.read_bytes() for figure in (study / "figures").iterdir()}
    assert {figure.name: figure.read_bytes() for figure in (target / "figures").iterdir()} == shown
    complete = (study / "report.md").read_text()
    for section in (
        "Differences from the baseline",
        "Means over seeds",
        "Training",
        "Teachers and corrupted training data",
    ):
        found = re.search(rf"^## {section}$.*?(?=^## )", complete, flags=re.MULTILINE | re.DOTALL)
        assert found is not None
        assert found[0] in report, section
    make.write_report(target)  # once more
    assert (target / "report.md").read_text() == report

    for change, state in (
        ({"code": "other"}, "measured at commit 0123456789; the code has changed since"),
        ({"fingerprint": "other"}, "measured at commit 0123456789; the configuration has changed since"),
        ({"dirty": True}, "measured at commit 0123456789 with changes"),
    ):
        assert texts.Published(target, record | change).state == state


def test_highest_mean_counts_conditions() -> None:
    means: list[dict[str, float]] = [
        {"InfoNCE": 3.0, "SDR": 2.0},
        {"InfoNCE": 1.0, "SDR": 2.0},
        {"InfoNCE": 3.0, "SDR": 3.0},
    ]
    found = texts.Published(Path(), {"conditions": [{"rsum": by_method} for by_method in means]}).highest()
    assert found == "InfoNCE in 2 of 3 conditions; SDR in 2 of 3 conditions"


def foreign_file(results: Path) -> None:
    (results / "scenes").mkdir(parents=True)
    (results / "scenes/notes.txt").write_text("mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda study, _: next(study.glob("cells/**/results.json")).unlink(), "has 119 of 120 cells"),
        (lambda study, _: edit_json(study / "study.json", name="mine"), "no study in experiments/ is called 'mine'"),
        (lambda _, results: foreign_file(results), r"notes\.txt is not of a published study: move it away"),
    ],
    ids=["unfinished", "unknown", "foreign-file"],
)
def test_publishing_is_refused_and_writes_nothing(study: Path, tmp_path: Path, spoil: Any, complaint: str) -> None:
    results = tmp_path / "results"
    spoil(study, results)
    before = sorted(results.rglob("*"))
    with pytest.raises(ValueError, match=complaint):
        make.publish(study, results)
    assert sorted(results.rglob("*")) == before


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("results", "sceens", "a block of results of 'sceens', which is not published: "),
        ("differences", "plug-in-swin-fusion", "'plug-in-swin-fusion', whose report has no such table"),
    ],
)
def test_block_that_cannot_be_filled_is_refused(tmp_path: Path, kind: str, name: str, message: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"<!-- {kind}: {name} -->\n<!-- end of {kind} -->\n")
    with pytest.raises(ValueError, match=message):
        texts.filled(page, STUDIES)


@pytest.mark.slow  # plans every published study
def test_checked_cells_are_cells_of_the_study() -> None:
    for study in STUDIES.values():
        found = plan(check.one_cell_each(study, study.study.methods), Path())
        assert [cell.method for cell in found.cells] == list(study.study.methods)
        if study.confirmed:  # the fingerprints are those of earlier code
            assert all(check.published_metrics(study, cell) for cell in found.cells)
        elif not study.stale:
            assert {cell.fingerprint for cell in found.cells} <= {cell.fingerprint for cell in study.plan.cells}


@pytest.mark.slow
def test_cells_must_lie_within_the_spread_unless_outdated(study: Path, tmp_path: Path) -> None:
    target = make.publish(study, tmp_path / "results")
    record = json.loads((target / "study.json").read_text())
    one = texts.Published(target, record)
    cell = plan(check.one_cell_each(one, ("InfoNCE", "SDR")), tmp_path).cells[0]
    metrics = check.published_metrics(one, cell)
    far = metrics | {"rsum": metrics["rsum"] + 11}
    assert check.faults(one, cell, metrics, metrics) == []
    assert check.faults(one, cell, metrics, far) == [
        "InfoNCE, mismatch 0.6, seed 0: the second run differs from the first"
    ]
    assert [fault.split(": ")[1] for fault in check.faults(one, cell, far, far)] == [
        "rsum is +11.00 from its published value, more than 10"
    ]
    assert check.faults(texts.Published(target, record | {"code": "other"}), cell, far, far) == []
    (target / "results.jsonl").unlink()  # only means are published
    assert check.faults(one, cell, far, far) == []


@pytest.mark.slow
@pytest.mark.parametrize(("moved", "same"), [(0.0, "is the same"), (0.06, "differs by at most 0.06 rsum")])
def test_changed_code_is_confirmed_by_cells_that_hardly_differ(
    study: Path, tmp_path: Path, moved: float, same: str
) -> None:
    target = make.publish(study, tmp_path / "results")
    outdated = json.loads((target / "study.json").read_text()) | {"code": "other"}
    one = texts.Published(target, outdated)
    assert check.has_same_jobs(one)
    cells = plan(check.one_cell_each(one, one.study.methods), tmp_path).cells

    def shifted(difference: float) -> list[Any]:
        measured = ((cell, check.published_metrics(one, cell)) for cell in cells)
        return [(cell, metrics | {"rsum": metrics["rsum"] + difference}) for cell, metrics in measured]

    assert "InfoNCE, mismatch 0.6, seed 0: rsum is +0.30 from its published value: run the study again" in check.note(
        one, shifted(0.3)
    )
    assert texts.Published(target, outdated).stale == "the code"
    assert check.note(one, shifted(moved)) == []
    state = texts.Published(target, outdated).state
    assert re.fullmatch(
        f"measured at commit 0123456789; a cell of each method {same} at commit [0-9a-f]{{10}}.*", state
    )
    lines = (target / "results.jsonl").read_text().splitlines()
    (target / "results.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert not check.has_same_jobs(texts.Published(target, outdated))
