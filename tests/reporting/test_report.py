import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from sdr_lightning.reporting import build_report, draw_run, plots
from sdr_lightning.reporting.figures.curves import read_curves
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.results.loading import load_study
from tests.reporting.fake_study import PLACEBO, edit_json, folder, metrics_of, write_study


class Tables(HTMLParser):
    """The rows of every table by its id, a cell being its words; and all addresses and start tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._table = ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        if tag == "table":
            self._table = values["id"] or ""
            self.rows[self._table] = []
        elif tag == "tr":
            self.rows[self._table].append([])
        elif tag in ("td", "th"):
            self.rows[self._table][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            row = self.rows[self._table][-1]
            row[-1] = " ".join([*row[-1].split(), *data.split()])

    def row(self, table: str, first: str) -> list[str]:
        return next(row for row in self.rows[table] if row and row[0].replace("\u00a0", " ") == first)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A study with everything, built once; one run is missing."""
    root = tmp_path_factory.mktemp("study")
    write_study(root, methods=("ITC", "SDR", PLACEBO), extras=True)
    shutil.rmtree(folder(root, PLACEBO, "mismatch", 0.6, 2))
    assert build_report(root) == root / "report.html"
    return root


@pytest.fixture(scope="module")
def page(built: Path) -> Tables:
    return Tables((built / "report.html").read_text())


def signed(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]


@pytest.mark.parametrize(
    ("label", "imbalance", "ratio"), [("no imbalance", "none", 0.0), ("mismatch 60 %", "mismatch", 0.6)]
)
def test_claims_equal_an_independent_computation(page: Tables, label: str, imbalance: str, ratio: float) -> None:
    columns = (("rsum",), ("i2i_NDCG@10", "t2t_NDCG@10"), ("i2it_NDCG@10", "t2it_NDCG@10"))
    for cell, metrics in zip(page.row("claims", label)[1:], columns, strict=True):
        values = {
            method: [np.mean([metrics_of(method, imbalance, ratio, s)[m] for m in metrics]) for s in (0, 1, 2)]
            for method in ("ITC", "SDR")
        }
        test = stats.ttest_rel(values["SDR"], values["ITC"])
        interval = test.confidence_interval()
        expected = [np.mean(values["SDR"]) - np.mean(values["ITC"]), interval.low, interval.high]
        assert signed(cell) == pytest.approx(expected, abs=0.051 if metrics == ("rsum",) else 0.0051)
        verdict = "supported" if interval.low > 0 else "not supported" if interval.high < 0 else "undecided"
        assert cell.endswith(f"] {verdict}")


def test_means_equal_the_inputs(page: Tables) -> None:
    rows = page.rows["recall"]
    start = next(i for i, row in enumerate(rows) if row[0].replace("\u00a0", " ") == "mismatch 60 %")
    names = ["i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "rsum"]
    for row, method in zip(rows[start + 1 : start + 4], ("ITC", "SDR", PLACEBO), strict=True):
        assert row[0] == method
        seeds = (0, 1) if method == PLACEBO else (0, 1, 2)
        for cell, name in zip(row[1:], names, strict=True):
            values = [metrics_of(method, "mismatch", 0.6, seed)[name] for seed in seeds]
            half = stats.t.ppf(0.975, len(seeds) - 1) * np.std(values, ddof=1) / np.sqrt(len(seeds))
            assert signed(cell) == pytest.approx([np.mean(values), half], abs=0.051)
            assert ("n=2" in cell) == (method == PLACEBO)


def test_every_run_has_its_provenance(page: Tables) -> None:
    rows = page.rows["runs"][1:]
    assert len(rows) == 17
    row = page.row("runs", "cells/mismatch-0.6/SDR/seed-2")
    assert row[2:4] == ["2", "4 min"]
    assert row[5] == "0123456789 + changes"


def test_nothing_is_fetched(built: Path, page: Tables) -> None:
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    text = (built / "report.html").read_text()
    assert not re.search(r"https?://|url\(|@import", text)
    assert not page.tags & {"script", "link", "iframe", "object"}


def test_captions_are_escaped(built: Path) -> None:
    text = (built / "report.html").read_text()
    assert "two blue cylinders behind a yellow cone &lt;script&gt;" in text
    assert "<script" not in text
    markdown = (built / "report.md").read_text()
    assert "<script" not in markdown
    assert "a \\| b" in markdown


def test_sections_come_in_order(built: Path) -> None:
    text = (built / "report.html").read_text()
    order = ["claims", "rsum", "i2i_ndcg_10", "degree", "recall", "ndcg", "training", "teachers", "realised", "runs"]
    positions = [text.index(f'id="{key}"') for key in order]
    assert positions == sorted(positions)
    assert "Only 17 of 18 runs are in." in text
    assert "no correction for multiple comparisons, and this table makes 6:" in text
    assert "The imbalance protocols are this project&#39;s own." in text


def test_markdown_and_its_figures(built: Path) -> None:
    markdown = (built / "report.md").read_text()
    linked = re.findall(r"\((figures/[^)]+)\)", markdown)
    assert linked[0] == "figures/rsum.png"
    assert len(linked) == 7
    for link in linked:
        assert (built / link).read_bytes().startswith(b"\x89PNG")
    widths = [line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")]
    assert min(widths) >= 3
    assert "| SDR |" in markdown
    assert "SDR − ITC" in markdown


def files_beside(root: Path) -> set[str]:
    """All files of a study's folder save its inputs in sub-folders."""
    inputs = {"cells", "teachers", "thumbnails"}
    paths = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    return {path.as_posix() for path in paths if path.parts[0] not in inputs}


def test_no_temporary_file_is_left(built: Path) -> None:
    keys = ("rsum", "i2i_ndcg_10", "t2t_ndcg_10", "i2it_ndcg_10", "t2it_ndcg_10", "degree", "training")
    figures = {f"figures/{key}.png" for key in keys}
    assert files_beside(built) == {"study.json", "report.html", "report.md"} | figures


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0, 1), ndcg=False)
    first = build_report(tmp_path).read_bytes()
    assert build_report(tmp_path).read_bytes() == first


def test_a_bare_and_unfinished_study(tmp_path: Path) -> None:
    """One method's only seed, nothing optional: a report that says what is not there."""
    write_study(tmp_path, ndcg=False, seeds=(0,), ratios=(0.6,))
    shutil.rmtree(folder(tmp_path, "SDR", "mismatch", 0.6, 0))
    text = build_report(tmp_path).read_text()
    assert "undecided (n=0)" in text
    assert "Only 1 of 2 runs are in." in text
    assert "Single-modal NDCG: no run has these metrics, so they are left out." in text
    for sentence in ("No run there has a log.", "No run has examples.", "The study has no teachers."):
        assert sentence in text
        assert sentence in (tmp_path / "report.md").read_text()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["rsum.png"]


def test_a_study_without_any_run(tmp_path: Path) -> None:
    write_study(tmp_path)
    shutil.rmtree(tmp_path / "cells")
    text = build_report(tmp_path).read_text()
    assert "Only 0 of 12 runs are in." in text
    assert "rsum: no run has these metrics, so they are left out." in text


def test_a_malformed_file_leaves_the_former_report(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=(0,), ndcg=False)
    before = build_report(tmp_path).read_bytes()
    edit_json(folder(tmp_path, "SDR", "mismatch", 0.6, 0) / "results.json", metrics={"rsum": "high"})
    with pytest.raises(ValueError, match=r"results\.json: metrics: 'rsum' must be a finite number"):
        build_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_an_interrupted_call_leaves_the_former_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_study(tmp_path, seeds=(0,), ndcg=False)
    before = build_report(tmp_path).read_bytes()
    edit_json(tmp_path / "study.json", title="Another title")

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:9])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        build_report(tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "report.html").read_bytes() == before
    assert files_beside(tmp_path) == {"study.json", "report.html", "report.md", "figures/rsum.png"}


@pytest.mark.parametrize("name", ["report.html", "report.md", "figures/rsum.png"])
def test_a_file_of_another_origin_is_not_replaced(tmp_path: Path, name: str) -> None:
    write_study(tmp_path, seeds=(0,), ndcg=False)
    build_report(tmp_path)
    build_report(tmp_path)  # its own files are
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"{name} exists and was not written by this command"):
        build_report(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_the_picture_of_a_run_does_not_replace_another(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/rsum\n0,9,100\n1,19,120\n")
    draw_run(tmp_path)
    draw_run(tmp_path)
    (tmp_path / "training.png").write_text("mine")
    with pytest.raises(ValueError, match=r"training\.png exists and was not written by this command"):
        draw_run(tmp_path)


def panels(figure: Figure) -> list[Axes]:
    return [panel for panel in figure.axes if panel.get_visible()]


def is_empty(panel: Axes) -> bool:
    """Without a line that can be seen, or a word on why there is none."""
    lines = [np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() for line in panel.get_lines()]
    markers = [line.get_marker() not in ("", "None") for line in panel.get_lines()]
    seen = any(points > (0 if marked else 1) for points, marked in zip(lines, markers, strict=True))
    return not seen and not panel.texts


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_no_panel_of_the_training_is_empty(tmp_path: Path, protocol: str) -> None:
    """A log ends with the final test, at one epoch, whatever the protocol; one imbalance has not been run yet."""
    write_study(tmp_path, imbalances=("mismatch", "gaussian_noise"), seeds=(0,), extras=True)
    edit_json(tmp_path / "study.json", protocol=protocol)
    for path in tmp_path.glob("cells/**/results.json"):
        edit_json(path, protocol=protocol)
        log = path.with_name("metrics.csv")
        head, *rows = log.read_text().splitlines()
        head = head.replace("val/rsum", "test/rsum") if protocol == "paper" else f"{head},test/rsum"
        last = ",".join(["12", "1199", *[""] * (head.count(",") - 2), "215.6"])
        log.write_text("\n".join([head, *rows, last]) + "\n")
    shutil.rmtree(tmp_path / "cells/gaussian_noise-0.6")
    study = load_study(tmp_path)
    figure = plots.training_figure(study)
    assert figure is not None
    selected = {"clean": "rsum, validation", "paper": "rsum, test (selected on)"}[protocol]
    assert [panel.get_ylabel() for panel in panels(figure)] == [selected, *plots.CURVES.values()]
    figures = [figure, plots.ratio_figure(study, RSUM, 4.0), plots.degree_figure(study, RSUM)]
    assert not any(is_empty(panel) for drawn in figures if drawn for panel in panels(drawn))


def test_a_training_of_one_epoch_is_drawn_as_points(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/rsum\n0,9,100\n")
    figure = plots.run_figure(read_curves(tmp_path / "metrics.csv"))
    assert figure is not None
    assert not any(map(is_empty, panels(figure)))


def test_importing_the_package_is_light() -> None:
    code = "import sys, json, sdr_lightning.reporting; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "scipy", "jinja2", "numpy", "torch"} & set(json.loads(done.stdout))
