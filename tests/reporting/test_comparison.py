import json
import math
import pickle
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.cli.main import main
from sdr_lightning.reporting.comparison import compare_systems, further_tables, main_tables, notes, summary
from sdr_lightning.reporting.evaluation_files import EvaluationSettings, load_evaluation, load_systems, sort_metrics
from sdr_lightning.results.schema import RECALLS
from tests.reporting.fake_evaluation import write_evaluation


def write_seeds(root: Path, name: str, skill: float, count: int = 3) -> str:
    """Write evaluations and return ``NAME=FILE,FILE,...``."""
    paths = [root / name / f"{seed}.json" for seed in range(count)]
    first = 1000 * sum(map(ord, name))
    return f"{name}=" + ",".join(str(write_evaluation(path, skill, first + i)) for i, path in enumerate(paths))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_queries(path: Path, **changes: np.ndarray | None) -> None:
    """Replace arrays; None removes one."""
    source = path.with_suffix(".queries.npz")
    with np.load(source) as loaded:
        arrays = dict(loaded) | changes
    np.savez(source, **{name: values for name, values in arrays.items() if values is not None})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_evaluation(tmp_path / "a.json")


def test_estimates_equal_the_metrics(path: Path) -> None:
    evaluation = load_evaluation(path)
    means = {metric: sums.sum() / counts.sum() for metric, (sums, counts) in evaluation.queries.items()}
    assert means.keys() == {*RECALLS, "i2i_NDCG@10", "t2t_NDCG@10", "i2i_NDCG_exp@25", "t2t_NDCG_exp@25"}
    assert means == pytest.approx({metric: evaluation.metrics[metric] for metric in means})
    (system,) = load_systems([str(path)])
    found = compare_systems([system], replicates=100).means["a"]
    assert {metric: entry.value for metric, entry in found.items()} == pytest.approx(
        means | {"rsum": evaluation.metrics["rsum"]}
    )
    assert all(entry.low < entry.value < entry.high for entry in found.values())


def test_undefined_queries_are_not_counted(path: Path) -> None:
    _, counts = load_evaluation(path).queries["t2t_NDCG@10"]
    assert counts.tolist() == [0.0] + [3.0] * 59


def test_one_text_query_per_image_is_accepted(path: Path) -> None:
    ranks = np.arange(60)
    edit_queries(path, t2i_rank=ranks)
    recalls = {f"t2i_R@{k}": 100 * k / 60 for k in (1, 5, 10)}
    edit(path, **recalls)
    metrics = json.loads(path.read_text())
    edit(path, rsum=sum(metrics[recall] for recall in RECALLS))
    sums, counts = load_evaluation(path).queries["t2i_R@5"]
    assert sums.tolist() == [100.0] * 5 + [0.0] * 55
    assert counts.tolist() == [1.0] * 60


def test_differences_are_paired_by_seed_and_image(tmp_path: Path) -> None:
    systems = load_systems([write_seeds(tmp_path, "InfoNCE", 0.0), write_seeds(tmp_path, "SDR", 1.0)])
    found = compare_systems(systems, replicates=300)
    for system in systems:
        mean = sum(evaluation.metrics["rsum"] for evaluation in system.evaluations) / 3
        assert found.means[system.name]["rsum"].value == pytest.approx(mean)
    assert found.baseline == "InfoNCE"
    difference = found.differences["SDR"]["rsum"]
    assert difference.value == pytest.approx(found.means["SDR"]["rsum"].value - found.means["InfoNCE"]["rsum"].value)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.direction == "higher"
    mirrored = compare_systems(systems, "SDR", 300).differences["InfoNCE"]["rsum"]
    assert (-mirrored.high, -mirrored.low) == pytest.approx((difference.low, difference.high))
    assert mirrored.direction == "lower"
    # The difficulty of an image is shared, so pairing narrows the interval.
    widths = [entry["t2t_NDCG@10"].high - entry["t2t_NDCG@10"].low for entry in found.means.values()]
    paired = found.differences["SDR"]["t2t_NDCG@10"]
    assert paired.high - paired.low < 0.6 * math.hypot(*widths)


def state_seeds(given: str) -> None:
    """State the seeds of the files of ``NAME=FILE,FILE,...``, from 0."""
    for seed, file in enumerate(given.partition("=")[2].split(",")):
        meta = json.loads(Path(file).read_text())["meta"]
        edit(Path(file), meta=meta | {"training": {"seed": seed}})


def test_files_that_state_their_seeds_are_paired_by_seed(tmp_path: Path) -> None:
    one, two = (write_seeds(tmp_path, name, skill) for name, skill in (("InfoNCE", 0.0), ("SDR", 1.0)))
    for given in (one, two):
        state_seeds(given)
    name, _, files = two.partition("=")
    shuffled = f"{name}=" + ",".join(reversed(files.split(",")))
    first, second = (
        compare_systems(load_systems([one, other]), replicates=100).differences["SDR"] for other in (two, shuffled)
    )
    assert first == second
    meta = json.loads(Path(files.split(",")[0]).read_text())["meta"]
    edit(Path(files.split(",")[1]), meta=meta)
    with pytest.raises(ValueError, match=r"0\.json and .*1\.json both have seed 0; give one file per seed of SDR"):
        load_systems([two])


def test_a_system_has_no_difference_to_itself(path: Path) -> None:
    found = compare_systems(load_systems([str(path), f"again={path}"]), replicates=100)
    assert {(entry.value, entry.low, entry.high, entry.direction) for entry in found.differences["again"].values()} == {
        (0.0, 0.0, 0.0, "")
    }


def test_metrics_of_one_system_have_no_difference(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a.json"), write_evaluation(tmp_path / "b.json")
    values = json.loads(first.read_text())
    del values["i2i_NDCG@10"], values["i2t_MdR"]
    first.write_text(json.dumps(values))
    comparison = compare_systems(load_systems([str(first), str(second)]), replicates=100)
    (estimates,), (further, others) = main_tables(comparison), further_tables(comparison)
    rows = {row[0].text: row for block in estimates.blocks for row in block.rows}
    assert [rows["i2i NDCG@10"][1].text, rows["i2i NDCG@10"][3].text] == ["–", "–"]
    assert [row[0].text for block in further.blocks for row in block.rows] == ["i2i NDCG exp@25", "t2t NDCG exp@25"]
    assert not any("exp" in name for name in rows)
    assert ["i2t MdR", "–", "3"] in [[cell.text for cell in row] for row in others.blocks[0].rows]


def test_metrics_are_sorted_by_task_and_cutoff() -> None:
    shuffled = {"zeta", "t2t_NDCG@10", "rsum", "i2i_NDCG_exp@25", "i2i_NDCG@50", "i2t_R@10", "t2i_R@1", "i2i_NDCG@10"}
    shuffled |= {"i2t_R@5"}
    assert sort_metrics(shuffled) == [
        "i2t_R@5",
        "i2t_R@10",
        "t2i_R@1",
        "rsum",
        "i2i_NDCG@10",
        "i2i_NDCG@50",
        "t2t_NDCG@10",
        "i2i_NDCG_exp@25",
        "zeta",
    ]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/metrics.json", "b.json"], ["a", "b"]),
        (["x/seed/metrics.json", "y/seed/metrics.json"], ["x/seed", "y/seed"]),
        (["a.json", "a.json"], ["a (1)", "a (2)"]),
        (["lr=1/metrics.json", "c,d.json", "a b=b.json"], ["lr=1", "c,d", "a b"]),
    ],
)
def test_default_names_are_unique(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], names: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        write_evaluation(Path(file.removeprefix("a b=")))
    assert [system.name for system in load_systems(files)] == names


def test_evaluations_with_different_settings_are_not_compared(path: Path) -> None:
    others = {
        "protocol": "paper",
        "split": None,
        "data": "99" * 32,
        "ties": "pessimistic",
        "siblings": "exclude",
        "folds": 5,
        "relevance": {"kind": "rouge-l", "fingerprint": "00" * 32},
    }
    assert {*others, "images", "texts"} == {field.name for field in fields(EvaluationSettings)}  # data covers the sizes
    other = path.parent / "b.json"
    for field, value in others.items():
        write_evaluation(other, **{field: value})
        for arguments in ([str(path), str(other)], [f"seeds={path},{other}"]):
            with pytest.raises(ValueError, match=rf"{path} and {other} are not comparable: {field} is "):
                load_systems(arguments)


def test_corruption_of_the_test_data_is_said(tmp_path: Path) -> None:
    parts = [{"kind": "drop_words", "affected": 7, "of": 180}]
    noisy = write_evaluation(tmp_path / "noisy.json", evaluated_under={"test": {"imbalances": parts}})
    clean = write_evaluation(tmp_path / "clean.json")
    note = "The test data is corrupted (clean: none; noisy: drop_words, 7 of 180 items)."
    assert note in notes(compare_systems(load_systems([str(clean), str(noisy)]), replicates=100))
    assert not any("corrupted" in each for each in notes(compare_systems(load_systems([str(clean)]), replicates=100)))


def test_the_summary_says_whether_rsum_differs(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a.json"), write_evaluation(tmp_path / "b.json")
    comparison = compare_systems(load_systems([str(first), str(second)]), replicates=100)
    assert summary(comparison).endswith("rsum of b: 0.0 [0.0, 0.0], no clear difference, the interval contains 0.")
    assert "rsum of" not in summary(compare_systems(load_systems([str(first)]), replicates=100))


def test_results_of_a_run_are_refused_with_the_file_to_give(path: Path) -> None:
    path.rename(path.with_name("metrics.json"))
    path.with_name("results.json").write_text('{"metrics": {"rsum": 1}}')
    with pytest.raises(
        ValueError, match=f"results.json is not an evaluation .*: give {path.with_name('metrics.json')}"
    ):
        load_evaluation(path.with_name("results.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rsum": 1}', "is not an evaluation .*no object 'meta'"),
        ('{"meta": {"protocol": "clean", "images": 1.5}}', "'images' must be a whole number, found 1.5"),
    ],
    ids=["meta", "images"],
)
def test_malformed_metrics_are_rejected(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_image": np.zeros(3, dtype=np.int64)}, r"must be 180 integers in \[0, 60\)"),
        ({"text_image": np.full(180, 60)}, r"must be 180 integers in \[0, 60\)"),
        ({"i2t_rank": None}, "no array 'i2t_rank'"),
        ({"i2t_rank": np.zeros(180, dtype=np.int64)}, r"'i2t_rank' must be 60 integers.*got \(180,\) int64"),
        ({"t2i_rank": np.zeros(180)}, "'t2i_rank' must be 180 or 60 integers"),
        ({"i2i_NDCG@10": np.full(60, np.nan)}, "i2i_NDCG@10 is nan from the queries"),
        ({"text_image": np.array([None] * 180)}, "is not an archive of plain arrays"),
    ],
    ids=["length", "range", "missing", "shape", "type", "nan", "objects"],
)
def test_malformed_queries_are_rejected(path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    edit_queries(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


def test_queries_must_be_an_archive_without_pickle(path: Path) -> None:
    for content in (b"", b"PK not a zip", pickle.dumps({"i2t_rank": 1})):
        path.with_suffix(".queries.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.queries\.npz is not an archive of plain arrays"):
            load_evaluation(path)


def test_metrics_must_follow_from_the_queries(path: Path) -> None:
    edit(path, rsum=600.0)
    with pytest.raises(ValueError, match=r"rsum is [\d.]+ from the queries and 600.0000 in a.json"):
        load_evaluation(path)
    other = write_evaluation(path.parent / "b.json", seed=1)
    other.with_suffix(".queries.npz").replace(path.with_suffix(".queries.npz"))
    with pytest.raises(ValueError, match=r"are from different evaluations: i2t_R@1 is [\d.]+ from the queries"):
        load_evaluation(path)


class Rows(HTMLParser):
    """The text of each table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self._in_row = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append("")
            self._in_row = True

    def handle_endtag(self, tag: str) -> None:
        self._in_row = self._in_row and tag != "tr"

    def handle_data(self, data: str) -> None:
        if self._in_row:
            self.rows[-1] = " ".join([*self.rows[-1].split(), *data.split()])


def test_command_prints_and_writes_the_same_estimates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    itc, sdr = write_seeds(tmp_path, "InfoNCE", 0.0, 2), write_seeds(tmp_path, "SDR", 1.0, 2)
    output = tmp_path / "out"
    assert main(["report", itc, sdr, "--output", str(output), "--replicates", "200"]) == 0
    printed = capsys.readouterr().out
    assert "NDCG exp@25" not in printed
    page, markdown = (output / "comparison.html").read_text(), (output / "comparison.md").read_text()
    comparison = compare_systems(load_systems([itc, sdr]), replicates=200)
    mean, difference = comparison.means["InfoNCE"]["rsum"], comparison.differences["SDR"]["rsum"]
    entries = (
        f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]",
        f"+{difference.value:.1f} [+{difference.low:.1f}, +{difference.high:.1f}] ▲",
    )
    row = next(row for row in Rows(page).rows if row.startswith("rsum"))
    for entry in entries:
        assert entry in row
        assert entry in printed
        assert entry.split()[0] in markdown
    for shown in (page, markdown, printed):
        text = " ".join(shown.replace("\u00a0", " ").split())
        for words in ("60 images and 180 texts", "split test", "200 bootstrap replicates", "2 of 2"):
            assert words in text
    for shown in (page, markdown):
        for words in (
            "i2i NDCG exp@25",
            "clean: the default",
            "index: of equally",
            "keep: other",
            "rouge-l ababababab",
        ):
            assert words in shown
        assert "01234" in shown
    (output / "comparison.md").write_text("other")
    assert main(["report", itc, sdr, "--output", str(output), "--replicates", "200"]) == 2
    assert "comparison.md exists and was not written by this command" in capsys.readouterr().err


def test_one_seed_is_stated_to_leave_out_the_variation_of_training(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(path), "--replicates", "100"]) == 0
    printed = capsys.readouterr().out
    assert "do not cover the variation between training runs" in printed
    assert "6 more metrics in the page that --output FOLDER writes" in printed
    assert "difference" not in printed


REFUSED = [
    (["none.json"], "no file at none.json (No such file or directory): expected a file of sdr evaluate"),
    (["a.json", "."], ". is a folder: give one folder, --output for a leaderboard of several studies, or metrics"),
    (["a.json", "--quoted", "n.yaml"], "--quoted applies to a leaderboard: give folders of studies and --output"),
    ([".", "--output", "b.json"], "--output must be a folder, but b.json is a file"),
    ([".", "--replicates", "200"], "--replicates applies to evaluations only, and . is not one"),
    (["a.json", "--replicates", "20"], "replicates must be at least 100, got 20"),
    (["a.json", "--baseline", "b"], "unknown baseline 'b': expected one of a"),
    (["a.json", "s=b.json,c.json"], "s has 2 evaluations and the baseline a has 1"),
    (["s=b.json,b.json"], "s=b.json,b.json: b.json is given 2 times; give one"),
    (["s=a.json", "s=b.json"], "the name 's' is given 2 times"),
    (["s=a.json", "s=b.json", "--output", "board"], "the name 's' is given 2 times"),
    (["a.json", "--output", "b.json"], "--output must be a folder, but b.json is a file"),
    (["bare.json"], "no file bare.queries.npz"),
]


def test_invalid_arguments_give_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.json", "b.json", "c.json", "bare.json")):
        write_evaluation(Path(name), seed=i)
    Path("bare.queries.npz").unlink()
    for arguments, message in REFUSED:
        assert main(["report", *arguments]) == 2, arguments
        assert capsys.readouterr().err.splitlines()[0].startswith(f"sdr report: error: {message}")
