"""Leaderboards: rows from the records of studies and evaluations, aggregates, and the page."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sdr_lightning.cli.main import main
from sdr_lightning.functional.aggregates import interquartile_mean, probability_of_improvement
from sdr_lightning.reporting.evaluation_files import load_systems
from sdr_lightning.reporting.findings import headline
from sdr_lightning.reporting.leaderboard.entries import METRICS, Entry, Group
from sdr_lightning.reporting.leaderboard.evaluations import evaluations_group
from sdr_lightning.reporting.leaderboard.output import Leaderboard, leaderboard_markdown, leaderboard_page
from sdr_lightning.reporting.leaderboard.quoted import quoted_tables, read_quoted
from sdr_lightning.reporting.leaderboard.studies import noise_meaning, study_group
from sdr_lightning.reporting.statistics import Interval
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition, Study
from tests.reporting.fake_evaluation import write_evaluation
from tests.reporting.fake_study import edit_json, folder, metrics_of, write_study

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs/results/flickr8k-weak-text"
SCRIPT = ROOT / "sdr_lightning/reporting/pages/templates/leaderboard.js"
MISMATCH = {"kind": "mismatch", "modality": "pair", "level": "caption", "severity": 5, "splits": ["train"]}
WALL_TIMES = {"InfoNCE": (100.0, 200.0, 100.0), "SDR": (150.0, 500.0, 190.0)}  # ratios 1.5, 2.5, 1.9


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a published tuned study, at 40 % alone: what is measured later changes nothing here."""
    folder = tmp_path_factory.mktemp("published") / PUBLISHED.name
    shutil.copytree(PUBLISHED, folder)
    edit_json(folder / "study.json", ratios=[0.4])
    for file in (folder / "results.jsonl", folder / "trials.jsonl"):
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if json.loads(line)["ratio"] == 0.4))
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A study whose methods have overlays, and whose mismatch is of captions."""
    root = write_study(tmp_path / "study", ratios=(0, 0.3, 0.6))
    record = json.loads((root / "study.json").read_text())
    for method, overlay in (("InfoNCE", "infonce"), ("SDR", "sdr")):
        record["methods"][method]["stages"][0]["config"] = [f"experiments/scenes/../methods/{overlay}.yaml"]
    record["imbalances"]["mismatch"]["parts"] = [MISMATCH]
    edit_json(root / "study.json", **record)
    for method, times in WALL_TIMES.items():
        for seed, wall_time_s in enumerate(times):
            edit_json(folder(root, method, "mismatch", 0.6, seed) / "results.json", wall_time_s=wall_time_s)
    return root


def entry(group: Group, method: str, ratio: float | None) -> Entry:
    (found,) = [each for each in group.entries if (each.method, each.ratio) == (method, ratio)]
    return found


def bounds(found: Interval | None) -> tuple[float, float, float]:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    return found.mean, found.low, found.high


def test_a_family_is_compared_with_the_baseline_of_the_same_value() -> None:
    study = load_study(ROOT / "docs/results/flickr8k-capacity")
    group = study_group(study)
    for entry in group.entries:
        width = entry.method.rpartition(" ")[2]
        assert entry.baseline == f"InfoNCE, width {width}"
        assert (entry.scores["rsum"].difference is None) == (entry.method == entry.baseline)
    assert "| SDR, width 512 (against InfoNCE, width 512) |" in leaderboard_markdown(Leaderboard((group,), None), ROOT)
    assert "InfoNCE, width 512" in headline(replace(study, candidate="SDR, width 512"))


def test_entries_equal_an_independent_computation(root: Path) -> None:
    group = study_group(load_study(root), base=ROOT)
    assert [(e.method, e.noise, e.ratio) for e in group.entries] == [
        (method, noise, ratio)
        for kind, noise, ratio in (
            ("none", "none", 0),
            ("mismatch", "mismatch, caption level", 0.3),
            ("mismatch", "mismatch, caption level", 0.6),
        )
        for _, method in sorted(  # the highest mean first
            (
                (np.mean([metrics_of(name, kind, ratio, s)["rsum"] for s in range(3)]), name)
                for name in ("InfoNCE", "SDR")
            ),
            reverse=True,
        )
    ]
    found = entry(group, "SDR", 0.6)
    for key, names in (("rsum", ["rsum"]), ("single_modal", ["i2i_NDCG@10", "t2t_NDCG@10"]), ("i2t_R@1", ["i2t_R@1"])):
        values = {
            method: [np.mean([metrics_of(method, "mismatch", 0.6, seed)[name] for name in names]) for seed in range(3)]
            for method in ("InfoNCE", "SDR")
        }
        own = stats.t.interval(0.95, 2, np.mean(values["SDR"]), stats.sem(values["SDR"]))
        paired = stats.ttest_rel(values["SDR"], values["InfoNCE"]).confidence_interval()
        difference = np.mean(values["SDR"]) - np.mean(values["InfoNCE"])
        assert bounds(found.scores[key].mean) == pytest.approx((np.mean(values["SDR"]), *own))
        assert bounds(found.scores[key].difference) == pytest.approx((difference, paired.low, paired.high))
    assert (found.seeds, found.tuning, found.overlays, found.cost) == (3, "untuned", ("sdr",), 1.9)
    assert entry(group, "InfoNCE", 0.6).cost == 1
    assert entry(group, "InfoNCE", 0.6).scores["rsum"].difference is None
    assert [link.path for link in found.records] == [
        folder(root, "SDR", "mismatch", 0.6, seed) / "results.json" for seed in range(3)
    ]
    assert [link.path for link in found.configuration] == [ROOT / "experiments/methods/sdr.yaml"]


def test_cost_needs_infonce_with_the_same_seed_on_the_same_hardware(root: Path) -> None:
    edit_json(folder(root, "SDR", "mismatch", 0.6, 2) / "results.json", hardware="another")
    shutil.rmtree(folder(root, "InfoNCE", "mismatch", 0.6, 1))
    assert entry(study_group(load_study(root)), "SDR", 0.6).cost == 1.5
    record = json.loads((root / "study.json").read_text())
    record["methods"]["InfoNCE"]["stages"][0]["config"] = ["experiments/methods/gce.yaml"]
    edit_json(root / "study.json", **record)
    assert entry(study_group(load_study(root)), "SDR", 0.6).cost is None


@pytest.mark.parametrize(
    ("parts", "meaning"),
    [
        ([MISMATCH | {"level": "image"}], "mismatch, image level"),
        ([MISMATCH | {"partner": "nearest"}], "mismatch, caption level, partner nearest"),
        ([MISMATCH | {"file": "noise/inx_{ratio}.npy"}], "file inx_{ratio}.npy"),
        ([{"kind": "drop_words", "severity": 5}], "drop words, severity 5"),
        ([{"kind": "missing", "modality": "image", "severity": 5}], "missing images"),
        ([MISMATCH, {"kind": "blur", "severity": 2}], "mismatch, caption level + blur, severity 2"),
        ([{"kind": "blur", "severity": 2, "splits": ["train", "test"]}], "blur, severity 2, in train, test"),
        ([], "mismatch"),
    ],
    ids=str,
)
def test_noise_is_named_by_its_meaning(root: Path, parts: list[dict[str, Any]], meaning: str) -> None:
    record = json.loads((root / "study.json").read_text())
    record["imbalances"]["mismatch"]["parts"] = parts
    edit_json(root / "study.json", **record)
    assert noise_meaning(load_study(root), Condition("mismatch", 0.6)) == meaning


def test_a_published_tuned_study_links_to_its_lines_and_names_its_trials(published: Path) -> None:
    group = study_group(load_study(published), base=ROOT)
    lines = [json.loads(line) for line in (published / "results.jsonl").read_text().splitlines()]
    assert len(group.entries) == 9
    for each in group.entries:
        assert each.tuning == "tuned with 4 trials"
        runs = [lines[(link.line or 0) - 1] for link in each.records]
        assert {(run["method"], run["imbalance"], run["ratio"]) for run in runs} == {(each.method, "mismatch", 0.4)}
        assert [str(run["seed"]) for run in runs] == [link.text for link in each.records]
        mean = sum(run["metrics"]["rsum"] for run in runs) / len(runs)
        assert each.scores["rsum"].mean.mean == pytest.approx(mean)
        assert all(link.path is not None and link.path.is_file() for link in (*each.configuration, *each.records))
    assert entry(group, "AGREE", 0.4).options == "dropout 0.5, temperature (initial 0.15, learnable false)"
    assert "detection_auc" in entry(group, "AGREE", 0.4).scores
    assert "detection_auc" not in entry(group, "InfoNCE", 0.4).scores


def rsums(study: Study, method: str, condition: Condition) -> np.ndarray:
    return np.array([run.metrics["rsum"] for run in study.runs_of(method, condition)])


def test_aggregates_are_relative_to_the_baseline_over_conditions_with_two_seeds(root: Path) -> None:
    for seed in (0, 1):
        shutil.rmtree(folder(root, "SDR", "mismatch", 0.3, seed))
    study = load_study(root)
    used = [Condition("none", 0.0), Condition("mismatch", 0.6)]
    found = {each.method: each for each in study_group(study).aggregates if each.metric == "rsum"}
    baseline = [rsums(study, "InfoNCE", condition) for condition in used]
    own = [rsums(study, "SDR", condition) for condition in used]
    normalised = [values / level.mean() for values, level in zip(own, baseline, strict=True)]
    one = found["SDR"]
    assert (one.conditions, one.runs) == (2, 6)
    assert one.normalised.value == pytest.approx(interquartile_mean(normalised))
    assert one.normalised.low < one.normalised.value < one.normalised.high
    assert one.improvement is not None
    assert one.improvement.value == pytest.approx(probability_of_improvement(own, baseline))
    assert one.improvement.low <= one.improvement.value <= one.improvement.high
    assert found["InfoNCE"].improvement is None
    assert found["InfoNCE"].normalised.value == pytest.approx(1, abs=0.02)
    for path in root.glob("cells/**/seed-[12]"):
        shutil.rmtree(path)
    assert study_group(load_study(root)).aggregates == ()  # one seed has no spread


TRAINING = {
    "data": "Flickr30K",
    "noise": "mismatch, caption level",
    "ratio": 0.4,
    "trials": 3,
    "command": "python x.py",
}


def test_evaluations_of_others_are_rows_with_what_they_state(tmp_path: Path) -> None:
    for seed in (3, 5):
        write_evaluation(tmp_path / f"a{seed}.json", seed=seed, training=TRAINING | {"seed": seed})
    write_evaluation(tmp_path / "b.json", graded=False)
    files = [tmp_path / f"a{seed}.json" for seed in (3, 5)]
    systems = load_systems([f"Mine={files[0]},{files[1]}"]) + load_systems([str(tmp_path / "b.json")])
    stated, bare = evaluations_group(systems).entries
    assert (stated.method, stated.noise, stated.ratio, stated.tuning) == (
        "Mine",
        "mismatch, caption level",
        0.4,
        "tuned with 3 trials",
    )
    assert [(link.text, link.path) for link in stated.records] == [("3", files[0]), ("5", files[1])]
    values = [json.loads(file.read_text())["rsum"] for file in files]
    assert stated.scores["rsum"].mean.mean == pytest.approx(np.mean(values))
    assert (bare.noise, bare.ratio, bare.tuning, bare.student) == ("not stated", None, "not stated", "not stated")
    assert bare.scores["rsum"].mean.half is None
    assert "single_modal" not in bare.scores
    edit = json.loads(files[1].read_text())
    edit["meta"]["training"]["ratio"] = 0.2
    files[1].write_text(json.dumps(edit))
    with pytest.raises(ValueError, match="state different trainings: give files that differ in the seed only"):
        evaluations_group(load_systems([f"Mine={files[0]},{files[1]}"]))


def test_evaluate_writes_the_stated_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.save("image.npy", rng.normal(size=(12, 4)))
    np.save("text.npy", rng.normal(size=(24, 4)))
    command = [
        "evaluate",
        "--image-embeddings",
        "image.npy",
        "--text-embeddings",
        "text.npy",
        "--captions-per-image",
        "2",
    ]
    command += ["--training", "t.yaml"]
    for text, message in (
        ("ratios: 0.4", "t.yaml has an unknown key 'ratios': expected some of data, model, noise"),
        ("ratio: 40", "t.yaml: ratio must lie in [0, 1], got 40"),
        ("- 1", "t.yaml: expected an object, found list"),
    ):
        Path("t.yaml").write_text(text)
        assert main([*command, "--output", "m.json"]) == 2
        assert message in capsys.readouterr().err
    Path("t.yaml").write_text("noise: mismatch, caption level\nratio: 0.4\n")
    assert main(command) == 2
    assert "--training is written to --output, which is not given" in capsys.readouterr().err
    assert main([*command, "--output", "m.json"]) == 0
    (only,) = evaluations_group(load_systems(["m.json"])).entries
    assert (only.noise, only.ratio) == ("mismatch, caption level", 0.4)


QUOTED = """
note: mixed
tables:
  - source: A, table 1
    data: D
    noise: not stated
    rows: [{method: M, ratio: 0.4, metrics: {i2t_R@1: 12.3, rsum: 456.7}}]
"""


def test_quoted_numbers_have_tables_of_their_own(root: Path, tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text(QUOTED)
    board = Leaderboard((study_group(load_study(root)),), read_quoted(tmp_path / "q.yaml"))
    text = leaderboard_markdown(board, tmp_path)
    own, _, others = text.partition("## Published numbers of others")
    assert "| M | 40 % | 12.3 | 456.7 |" in others
    assert "Noise: not stated. Source: A, table 1" in others
    assert "456.7" not in own
    page = leaderboard_page(board, tmp_path)
    assert page.index('<section id="quoted">') < page.index("456.7")
    assert "456.7" not in json.dumps(page_data(page))


def test_quoted_numbers_of_the_repository_name_source_and_noise() -> None:
    quoted = read_quoted(ROOT / "docs/published_numbers.yaml")
    for table, shown in zip(quoted.tables, quoted_tables(quoted), strict=True):
        assert table.noise
        assert table.source in shown.caption
        for row in table.rows:
            assert 0 < row.metrics["i2t_R@1"] + row.metrics["t2i_R@1"] < row.metrics["rsum"] <= 600


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("note: mixed", "notes: mixed", "q.yaml has an unknown key 'notes': expected some of note, tables"),
        ("noise: not stated", "", r"q.yaml: tables\[0\]: 'noise' must be a string, the key is missing"),
        ("ratio: 0.4", "ratio: 40", r"tables\[0\]: rows\[0\]: the ratio of M must lie in \[0, 1\], got 40"),
        ("rsum: 456.7", "rsum: x", "'rsum' must be a finite number, found 'x'"),
        ("rows: [", "rows: 5 # [", "rows must be a list with entries, found 5"),
    ],
)
def test_malformed_quoted_numbers_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "q.yaml").write_text(QUOTED.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_quoted(tmp_path / "q.yaml")


class Script(HTMLParser):
    """The text of the script with the id ``data``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self._inside = "", False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag: str) -> None:
        self._inside = False

    def handle_data(self, data: str) -> None:
        self.text += data if self._inside else ""


def page_data(page: str) -> Any:
    return json.loads(Script(page).text)


def test_command_writes_a_page_and_markdown_of_studies_and_evaluations(
    root: Path, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_evaluation(tmp_path / "other/metrics.json", training=TRAINING)
    output = tmp_path / "board"
    inputs = [str(root), str(published), str(tmp_path / "other/metrics.json")]
    assert main(["report", *inputs, "--output", str(output)]) == 0
    assert f"leaderboard in {output / 'leaderboard.html'}" in capsys.readouterr().out
    data, text = page_data((output / "leaderboard.html").read_text()), (output / "leaderboard.md").read_text()
    assert set(data["metrics"]) == set(METRICS)
    assert len(data["rows"]) == 6 + 9 + 1
    for row in data["rows"]:
        assert row["noise"]
        assert row["tuning"]
        for link in (*row["configuration"], *row["records"]):
            if link["href"] is not None:
                path, _, line = link["href"].partition("#")
                assert (output / path).resolve().is_file()
                assert bool(line) == path.endswith(".jsonl")
    by_command = {row["command"] for row in data["rows"]}
    assert by_command == {load_study(root).command, load_study(published).command, "python x.py"}
    linked = re.findall(r"\]\((?!leaderboard)([^)#]+)", text)
    assert linked
    assert all((output / path).resolve().exists() for path in linked)
    for part in (
        "## Weak text tower on Flickr8k",
        "## Evaluations of others",
        "**Weak text tower on Flickr8k, over 1 condition",
    ):
        assert part in text
    assert "| mismatch, image level 40 % | NCR | 81.2 [74.7, 87.7] | −11.1 [−14.9, −7.4] lower |" in text

    assert main(["report", str(root), f"{root}/", "--output", str(output)]) == 2
    assert "is given twice: give each study once" in capsys.readouterr().err
    copied = shutil.copytree(root, tmp_path / "copy")
    assert main(["report", str(root), str(copied), "--output", str(output)]) == 0
    titles = {row["study"] for row in page_data((output / "leaderboard.html").read_text())["rows"]}
    assert titles == {f"{load_study(root).title} ({path})" for path in (root, copied)}
    shutil.rmtree(copied / "cells")
    assert main(["report", str(copied), "--output", str(output)]) == 2
    assert "has no finished cell with the code of its study: run sdr reproduce first" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_page_filters_and_sorts(root: Path, published: Path, tmp_path: Path) -> None:
    data = page_data(
        leaderboard_page(Leaderboard((study_group(load_study(root)), study_group(load_study(published)))), tmp_path)
    )
    (tmp_path / "data.json").write_text(json.dumps(data))

    sort, difference = ("sort", "Mean [95 %]"), ("sort", "Minus baseline [95 %]")
    mixed = (("filter", "noise", "mismatch, image level"), ("filter", "metric", "mixed"), sort)
    scenarios = (
        (),
        mixed,
        (*mixed, sort),
        (("filter", "method", "NCR"),),
        (difference,),
        (difference, difference),
        (("filter", "metric", "detection_auc"),),
    )
    driver = Path(__file__).with_name("leaderboard_page.js")
    command = ["node", str(driver), str(SCRIPT), str(tmp_path / "data.json"), json.dumps(scenarios)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, some, again, ncr, best, worst, detected = json.loads(done.stdout)

    assert first["count"] == "15 of 15 rows, rsum, of 600"
    assert first["filters"]["ratio"] == ["all", "0 %", "30 %", "40 %", "60 %"]
    assert first["filters"]["noise"] == ["all", "none", "mismatch, caption level", "mismatch, image level"]
    assert len(first["filters"]["metric"]) == len(METRICS)
    assert all(len(links) >= 4 for links in first["links"])  # the mean, and each seed

    assert some["sorted"]["Mean [95 %]"] == "descending"
    assert [row[0] for row in some["rows"]][:2] == ["InfoNCE + structure", "SDR"]
    means = [float(row[4].split()[0]) for row in some["rows"]]
    assert means == sorted(means, reverse=True)
    assert len(means) == 9
    assert [row[0] for row in again["rows"]] == [row[0] for row in some["rows"]][::-1]

    expected = ["mismatch, image level", "40 %", "81.2 [74.7, 87.7]", "−11.1 [−14.9, −7.4] lower", "1.10"]
    assert [row[2:7] for row in ncr["rows"]] == [expected]
    for ordered in (best, worst):  # baselines have no difference: they are last in both directions
        assert [row[5] == "–" for row in ordered["rows"]] == [False] * 11 + [True] * 4
    assert len(detected["rows"]) == sum("detection_auc" in row["scores"] for row in data["rows"]) > 0
