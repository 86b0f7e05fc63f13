"""Contents of a study report: numbers, sections, figures and missing inputs."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy import stats

from sdr_lightning.reporting import build_report, write_page
from sdr_lightning.reporting.figures import report, training
from sdr_lightning.reporting.figures.curves import curve_labels, read_curves
from sdr_lightning.reporting.figures.study import degree_figure, method_figure, ratio_figure
from sdr_lightning.reporting.figures.style import STYLE, legend_above
from sdr_lightning.reporting.formatting import condition_label
from sdr_lightning.reporting.quantities import RSUM
from sdr_lightning.reporting.running import Running
from sdr_lightning.reporting.tables.results import detection_table
from sdr_lightning.results.loading import load_study
from tests.browser import browsing
from tests.reporting.fake_study import METHODS, PLACEBO, edit_json, folder, metrics_of, write_study

DETECTION_AUC = (90.0, 92.0, 97.0)  # by seed


class Tables(HTMLParser):
    """The text of every table cell by table id, row and column; and the order of all ids."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.ids: list[str] = []
        self._table = ""
        self._in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag == "table":
            self._table = values.get("id") or ""
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
        return next(row for row in self.rows[table] if row and row[0] == first)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with all optional files, of which one run is missing."""
    root = tmp_path_factory.mktemp("study")
    write_study(root, methods=("InfoNCE", "SDR", PLACEBO), extras=True)
    shutil.rmtree(folder(root, PLACEBO, "mismatch", 0.6, 2))
    for seed, auc in enumerate(DETECTION_AUC):
        found = {"detection_AUC": auc, "detection_estimated_share": 66.0, "detection_true_share": 60.0}
        metrics = metrics_of("SDR", "mismatch", 0.6, seed) | found
        edit_json(folder(root, "SDR", "mismatch", 0.6, seed) / "results.json", metrics=metrics)
    assert build_report(root) == root / "report.html"
    return root


@pytest.fixture(scope="module")
def page(built: Path) -> Tables:
    return Tables((built / "report.html").read_text())


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"[+−]?\d+\.\d+", text)]


def test_claims_equal_an_independent_computation(page: Tables) -> None:
    columns = (("rsum",), ("i2i_NDCG@10", "t2t_NDCG@10"), ("i2it_NDCG@10", "t2it_NDCG@10"))
    for label, imbalance, ratio in (("data as given", "none", 0.0), ("mismatch 60 %", "mismatch", 0.6)):
        for cell, metrics in zip(page.row("claims", label)[1:], columns, strict=True):
            values = {
                method: [np.mean([metrics_of(method, imbalance, ratio, s)[m] for m in metrics]) for s in (0, 1, 2)]
                for method in ("InfoNCE", "SDR")
            }
            interval = stats.ttest_rel(values["SDR"], values["InfoNCE"]).confidence_interval()
            expected = [np.mean(values["SDR"]) - np.mean(values["InfoNCE"]), interval.low, interval.high]
            assert numbers(cell) == pytest.approx(expected, abs=0.051 if metrics == ("rsum",) else 0.0051)
            verdict = "higher" if interval.low > 0 else "lower" if interval.high < 0 else "undecided"
            assert cell.endswith(f"] {verdict}")
        column = page.rows["against-baseline"][0].index(label)
        assert page.row("against-baseline", "SDR − InfoNCE")[column] == page.row("claims", label)[1]


def test_means_and_intervals_equal_an_independent_computation(page: Tables) -> None:
    rows = page.rows["recall"]
    start = next(i for i, row in enumerate(rows) if row[0] == "mismatch 60 %")
    names = ["i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "rsum"]
    for row, method in zip(rows[start + 1 : start + 4], ("InfoNCE", "SDR", PLACEBO), strict=True):
        assert row[0] == method
        seeds = (0, 1) if method == PLACEBO else (0, 1, 2)
        for cell, name in zip(row[1:], names, strict=True):
            values = [metrics_of(method, "mismatch", 0.6, seed)[name] for seed in seeds]
            half = stats.t.ppf(0.975, len(seeds) - 1) * np.std(values, ddof=1) / np.sqrt(len(seeds))
            assert numbers(cell) == pytest.approx([np.mean(values), half], abs=0.051)
            assert ("n=2" in cell) == (method == PLACEBO)


def test_mixed_retrieval_is_shown_as_trained_and_centred_with_the_temperature(page: Tables) -> None:
    rows = page.rows["mixed"]
    assert rows[0][1:] == ["i2it", "i2it, centred", "t2it", "t2it, centred", "modality gap", "temperature τ"]
    row = rows[next(i for i, row in enumerate(rows) if row[0] == "mismatch 60 %") + 2]
    tasks = ("i2it", "centred_i2it", "t2it", "centred_t2it")
    means = [np.mean([metrics_of("SDR", "mismatch", 0.6, s)[f"{task}_NDCG@10"] for s in range(3)]) for task in tasks]
    assert [numbers(cell)[0] for cell in row[1:5]] == pytest.approx(means, abs=0.051)
    assert numbers(row[6]) == pytest.approx([0.051, 0.002], abs=0.001)


def test_the_highest_mean_of_a_block_is_bold(built: Path) -> None:
    text = (built / "report.md").read_text()
    block = text[text.index("**Cross-modal retrieval: recall and rsum**") :].split("**mismatch")[1].splitlines()[1:4]
    assert [line.split("|")[-2].strip().startswith("**") for line in block] == [False, True, False]  # SDR


def test_tables_describe_methods_and_runs(page: Tables) -> None:
    terms = ", ".join(f"{term} {weight:g}" for term, weight in METHODS["SDR"][1].items())
    assert page.row("methods", "SDR (candidate)") == ["SDR (candidate)", "All terms", terms]
    assert len(page.rows["runs"][1:]) == 17
    (row,) = [row for row in page.rows["runs"] if "cells/mismatch-0.6/SDR/seed-2" in row]
    assert row[:3] == ["SDR", "mismatch 60 %", "2"]
    assert (row[5], row[7]) == ("4 min", "0123456789 + changes")


def test_detection_of_corrupted_pairs_has_a_table_where_a_method_estimates_them(
    page: Tables, built: Path, tmp_path: Path
) -> None:
    (row,) = [row for row in page.rows["detection"] if numbers(" ".join(row))]
    assert row[0] == "SDR"
    assert numbers(row[1]) == [93.0, round(stats.t.ppf(0.975, 2) * np.std(DETECTION_AUC, ddof=1) / 3**0.5, 1)]
    assert [numbers(cell)[0] for cell in row[2:]] == [66.0, 60.0]
    assert "**Detection of corrupted pairs**" in (built / "report.md").read_text()
    assert detection_table(load_study(write_study(tmp_path))) is None


def test_sections_are_in_order_in_html_and_markdown(built: Path, page: Tables) -> None:
    order = ["figure", "claims", "recall", "ndcg", "training", "methods", "teachers", "realised", "runs"]
    assert [key for key in page.ids if key in order] == order
    text, markdown = (built / "report.html").read_text(), (built / "report.md").read_text()
    for sentence in (
        "17 of 18 runs finished; untuned",
        "Untuned: every method is used as configured.",
        "no correction for multiple comparisons (6 in this table)",
        "The imbalance protocols are not those of the paper.",
    ):
        assert sentence in text
        assert sentence in markdown
    headings = [line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")]
    assert [head for head in headings if f"<h2>{head}</h2>" not in text] == ["Metrics under each condition"]
    assert "two blue cylinders behind a yellow cone &lt;script&gt;" in text
    assert "a \\| b" in markdown
    linked = re.findall(r"\((figures/[^)]+)\)", markdown)
    assert [Path(link).stem for link in linked] == [
        "rsum", "i2i_ndcg_10", "t2t_ndcg_10", "i2it_ndcg_10", "t2it_ndcg_10", "degree", "training"
    ]  # fmt: skip
    assert all((built / link).read_bytes().startswith(b"\x89PNG") for link in linked)


def data_of(page: Path) -> dict[str, Any]:
    """The data of the page's script."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    return dict(json.loads(found[1]))


def test_the_page_holds_every_number_with_the_runs_behind_it(built: Path) -> None:
    data = data_of(built / "report.html")
    methods, conditions = [m["name"] for m in data["methods"]], [c["label"] for c in data["conditions"]]
    cell = data["cells"]["rsum"][methods.index("SDR")][conditions.index("mismatch 60\N{NO-BREAK SPACE}%")]
    values = {seed: metrics_of("SDR", "mismatch", 0.6, seed)["rsum"] for seed in (0, 1, 2)}
    assert cell["values"] == {str(seed): pytest.approx(value, abs=1e-4) for seed, value in values.items()}
    test = stats.ttest_rel(
        [*values.values()], [metrics_of("InfoNCE", "mismatch", 0.6, seed)["rsum"] for seed in values]
    )
    low, high = test.confidence_interval()
    difference = cell["difference"]
    assert [difference["mean"] - difference["half"], difference["mean"] + difference["half"]] == pytest.approx(
        [low, high], abs=1e-3
    )
    runs = data["runs"][methods.index("SDR")][conditions.index("mismatch 60\N{NO-BREAK SPACE}%")]
    assert [(run["seed"], run["folder"], run["files"]) for run in runs] == [
        (seed, f"cells/mismatch-0.6/SDR/seed-{seed}", ["results.json", "metrics.csv"]) for seed in values
    ]
    keys = set(re.findall(r'data-runs="([^"]+)"', (built / "report.html").read_text()))
    assert len(keys) > 100
    for key in keys:  # of all tables and tiles
        quantity, method, condition = key.split("|")
        assert data["cells"][quantity][methods.index(method)][conditions.index(condition)] is not None


def test_the_page_of_a_running_study_says_how_far_it_is_and_loads_itself_again(tmp_path: Path) -> None:
    write_study(tmp_path)
    shutil.rmtree(folder(tmp_path, "SDR", "mismatch", 0.6, 0))
    page = write_page(tmp_path, Running("11 of 12 runs finished", 11 / 12, "about 20 s left", "12:00:00")).read_text()
    assert re.search(r"<h1>So far: .*beats InfoNCE", page)
    assert "<strong>11 of 12 runs finished</strong>, about 20 s left." in page
    assert 'http-equiv="refresh"' in page
    assert not (tmp_path / "report.md").exists()
    for again in (write_page(tmp_path), build_report(tmp_path)):
        assert not re.search('http-equiv="refresh"|So far: |id="running"', again.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("view", ["differences", "means", "ratio", "degree"])
def test_a_browser_draws_the_views_of_the_figure(built: Path, view: str) -> None:
    address = f"{(built / 'report.html').as_uri()}#metric=rsum&view={view}&hide={PLACEBO.replace(' ', '+')}"
    with browsing() as page:
        page.open(address)
        shown = page.evaluate("document.documentElement.outerHTML")
    chart = shown[shown.index('<div id="chart">') : shown.index('id="chart-note"')]
    names = ("InfoNCE", "SDR") if view == "means" else ("SDR",)
    if view in ("differences", "means"):
        rows = re.findall(r'data-runs="rsum\|([^|]*)\|([^"]*)"[^>]*>([^<]+)<', chart)
        assert {(method, condition) for method, condition, _ in rows} == set(
            product(names, ("data as given", "mismatch 60&nbsp;%"))
        )
        data = data_of(built / "report.html")
        sdr = data["cells"]["rsum"][1][1]
        expected = sdr["difference"]["mean"] if view == "differences" else sdr["mean"]
        (value,) = [value for method, condition, value in rows if method == "SDR" and condition != "data as given"]
        assert numbers(value) == [pytest.approx(expected, abs=0.051)]
    else:
        assert chart.count("<path transform") + chart.count('transform="translate') >= 4  # two methods, two conditions
    assert shown.count('class="example') - shown.count('hidden=""></article') >= 1


def panels(figure: Figure) -> list[Axes]:
    return [panel for panel in figure.axes if panel.get_visible()]


def is_empty(panel: Axes) -> bool:
    """Return whether a panel has neither a visible line nor a text."""
    lines = [np.isfinite(np.asarray(line.get_ydata(), dtype=float)).sum() for line in panel.get_lines()]
    markers = [line.get_marker() not in ("", "None") for line in panel.get_lines()]
    seen = any(points > (0 if marked else 1) for points, marked in zip(lines, markers, strict=True))
    return not seen and not panel.texts


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_figures_have_no_empty_panel(tmp_path: Path, protocol: str) -> None:
    """Logs end with the final test at one epoch; one imbalance has no runs."""
    write_study(tmp_path, imbalances=("mismatch", "image noise"), seeds=(0,), extras=True)
    edit_json(tmp_path / "study.json", protocol=protocol)
    for path in tmp_path.glob("cells/**/results.json"):
        edit_json(path, protocol=protocol)
        log = path.with_name("metrics.csv")
        head, *rows = log.read_text().splitlines()
        head = head.replace("val/rsum", "test/rsum") if protocol == "paper" else f"{head},test/rsum"
        last = ",".join(["12", "1199", *[""] * (head.count(",") - 2), "215.6"])
        log.write_text("\n".join([head, *rows, last]) + "\n")
    shutil.rmtree(tmp_path / "cells/image noise-0.6")
    study = load_study(tmp_path)
    figure = training.training_figure(study)
    assert figure is not None
    labels = [panel.get_ylabel() for panel in panels(figure)]
    assert labels == list(curve_labels(protocol).values())
    assert labels[0] == {"clean": "rsum, validation", "paper": "rsum, test (used for selection)"}[protocol]
    figures = [figure, ratio_figure(study, RSUM, 4.0), degree_figure(study, RSUM)]
    assert not any(is_empty(panel) for drawn in figures if drawn for panel in panels(drawn))


def test_many_methods_are_drawn_in_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are in the order of the mean; a condition without runs says so; curves are those of the best methods."""
    study = load_study(write_study(tmp_path, tuple(METHODS), ("mismatch", "image noise"), ndcg=False, extras=True))
    figure = method_figure(study, RSUM, {"a teacher": 300.0})
    assert [panel.get_title("left") for panel in panels(figure)] == list(map(condition_label, study.conditions))
    means = {m: np.mean([run.metrics["rsum"] for run in study.runs.values() if run.method == m]) for m in METHODS}
    assert [label.get_text() for label in panels(figure)[0].get_yticklabels()] == sorted(METHODS, key=means.get)[::-1]
    assert "no run yet" not in [text.get_text() for panel in panels(figure) for text in panel.texts]
    monkeypatch.setattr(report, "MAX_LINES", len(METHODS) - 1)
    monkeypatch.setattr(training, "COLOURS", ("#000000",))
    figures = report.report_figures(study)
    assert figures.results[0].caption.startswith("rsum of each method, in the order of the mean")
    assert figures.training is not None
    assert figures.training.caption.endswith("Shown are InfoNCE, SDR and the methods of the highest mean rsum.")
    best = max(set(METHODS) - {"InfoNCE", "SDR"}, key=means.get)
    assert set(training.methods_in_curves(study)) == {"InfoNCE", "SDR", best}
    shutil.rmtree(tmp_path / "cells/image noise-0.6")
    assert [text.get_text() for text in panels(method_figure(load_study(tmp_path), RSUM))[2].texts] == ["no run yet"]


def test_a_legend_lies_within_its_figure() -> None:
    figure = Figure(figsize=(11, 4), layout="constrained")
    labels = [f"a method with a long name, number {i}" for i in range(10)]
    with rc_context(STYLE):
        legend_above(figure, figure.subplots().plot(np.zeros((2, len(labels)))), labels)
        FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_curves_of_one_epoch_are_drawn_as_points(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,val/rsum\n0,9,100\n")
    figure = training.run_figure(read_curves(tmp_path / "metrics.csv"))
    assert figure is not None
    assert not any(map(is_empty, panels(figure)))


def test_importing_the_package_imports_no_heavy_package() -> None:
    code = "import sys, json, sdr_lightning.reporting; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"matplotlib", "scipy", "jinja2", "numpy", "torch"} & set(json.loads(done.stdout))
