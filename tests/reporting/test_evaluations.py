import json
import math
import pickle
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.cli.main import main
from sdr_lightning.reporting.comparison import compare, tables
from sdr_lightning.reporting.evaluation_files import in_order, load_evaluation, load_systems
from sdr_lightning.results.schema import RECALLS
from tests.reporting.fake_evaluation import write_evaluation


def seeds(root: Path, name: str, skill: float, count: int = 3) -> str:
    """``NAME=FILE,FILE,...`` of evaluations that are written here."""
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


def test_queries_give_the_metrics_they_belong_to(path: Path) -> None:
    evaluation = load_evaluation(path)
    means = {metric: sums.sum() / counts.sum() for metric, (sums, counts) in evaluation.queries.items()}
    assert means.keys() == {*RECALLS, "i2i_NDCG@10", "t2t_NDCG@10", "i2i_NDCG_exp@25", "t2t_NDCG_exp@25"}
    assert means == pytest.approx({metric: evaluation.metrics[metric] for metric in means})
    (system,) = load_systems([str(path)])
    found = compare([system], replicates=100).means["a"]
    assert {metric: entry.value for metric, entry in found.items()} == pytest.approx(
        means | {"rsum": evaluation.metrics["rsum"]}
    )
    assert all(entry.low < entry.value < entry.high for entry in found.values())


def test_undefined_queries_count_for_nothing(path: Path) -> None:
    _, counts = load_evaluation(path).queries["t2t_NDCG@10"]
    assert counts.tolist() == [0.0] + [3.0] * 59


def test_a_text_query_for_each_image_belongs_to_that_image(path: Path) -> None:
    ranks = np.arange(60)
    edit_queries(path, t2i_rank=ranks)
    recalls = {f"t2i_R@{k}": 100 * k / 60 for k in (1, 5, 10)}
    edit(path, **recalls)
    metrics = json.loads(path.read_text())
    edit(path, rsum=sum(metrics[recall] for recall in RECALLS))
    sums, counts = load_evaluation(path).queries["t2i_R@5"]
    assert sums.tolist() == [100.0] * 5 + [0.0] * 55
    assert counts.tolist() == [1.0] * 60


def test_mean_and_paired_difference_over_seeds(tmp_path: Path) -> None:
    systems = load_systems([seeds(tmp_path, "ITC", 0.0), seeds(tmp_path, "SDR", 1.0)])
    found = compare(systems, replicates=300)
    for system in systems:
        mean = sum(evaluation.metrics["rsum"] for evaluation in system.evaluations) / 3
        assert found.means[system.name]["rsum"].value == pytest.approx(mean)
    assert found.baseline == "ITC"
    difference = found.differences["SDR"]["rsum"]
    assert difference.value == pytest.approx(found.means["SDR"]["rsum"].value - found.means["ITC"]["rsum"].value)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.direction == "higher"
    mirrored = compare(systems, "SDR", 300).differences["ITC"]["rsum"]
    assert (-mirrored.high, -mirrored.low) == pytest.approx((difference.low, difference.high))
    assert mirrored.direction == "lower"
    # Some images are hard for both, which pairing removes.
    widths = [entry["t2t_NDCG@10"].high - entry["t2t_NDCG@10"].low for entry in found.means.values()]
    paired = found.differences["SDR"]["t2t_NDCG@10"]
    assert paired.high - paired.low < 0.6 * math.hypot(*widths)


def test_a_system_does_not_differ_from_itself(path: Path) -> None:
    found = compare(load_systems([str(path), f"again={path}"]), replicates=100)
    assert {(entry.value, entry.low, entry.high, entry.direction) for entry in found.differences["again"].values()} == {
        (0.0, 0.0, 0.0, "")
    }


def test_metrics_that_only_one_system_has_have_no_difference(tmp_path: Path) -> None:
    first, second = write_evaluation(tmp_path / "a.json"), write_evaluation(tmp_path / "b.json")
    values = json.loads(first.read_text())
    del values["i2i_NDCG@10"], values["i2t_MdR"]
    first.write_text(json.dumps(values))
    comparison = compare(load_systems([str(first), str(second)]), replicates=100)
    estimates, others = tables(comparison)
    row = next(row for block in estimates.blocks for row in block.rows if row[0].text == "i2i NDCG@10")
    assert [row[1].text, row[3].text] == ["–", "–"]
    assert ["i2t MdR", "–", "3"] in [[cell.text for cell in row] for row in others.blocks[0].rows]


def test_order_of_metrics() -> None:
    shuffled = {"zeta", "t2t_NDCG@10", "rsum", "i2i_NDCG_exp@25", "i2i_NDCG@50", "i2t_R@10", "t2i_R@1", "i2i_NDCG@10"}
    shuffled |= {"i2t_R@5"}
    assert in_order(shuffled) == [
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
        (["a.json", "b.json"], ["a", "b"]),
        (["a/metrics.json", "b.json"], ["a", "b"]),
        (["x/seed/metrics.json", "y/seed/metrics.json"], ["x/seed", "y/seed"]),
        (["a.json", "a.json"], ["a (1)", "a (2)"]),
        (["a.json", "a b=b.json"], ["a", "a b"]),
        (["lr=1/metrics.json", "c,d.json"], ["lr=1", "c,d"]),
    ],
)
def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], names: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for file in files:
        write_evaluation(Path(file.removeprefix("a b=")))
    assert [system.name for system in load_systems(files)] == names


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("protocol", "paper", "protocol is 'clean' in the first and 'paper' in the second"),
        ("split", "val", "split is 'test'"),
        ("split", None, "and None in the second"),
        ("data", "99" * 32, "data is"),
        ("ties", "pessimistic", "ties is"),
        ("siblings", "exclude", "siblings is"),
        ("folds", 5, "folds is None in the first and 5"),
        ("relevance", {"kind": "rouge-l", "fingerprint": "00" * 32}, "relevance is"),
    ],
)
def test_different_questions_are_not_set_side_by_side(path: Path, field: str, value: object, said: str) -> None:
    other = write_evaluation(path.parent / "b.json", **{field: value})
    with pytest.raises(ValueError, match=said) as raised:
        load_systems([str(path), str(other)])
    assert str(path) in str(raised.value)
    assert str(other) in str(raised.value)
    with pytest.raises(ValueError, match=said):
        load_systems([f"seeds={path},{other}"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not an evaluation"),
        ('{"rsum": 1}', "no object 'meta'"),
        ('{"meta": {}}', "'protocol' must be a string, the key is missing"),
        ('{"meta": {"protocol": "clean", "images": 1.5}}', "'images' must be a whole number, found 1.5"),
    ],
)
def test_malformed_metrics(path: Path, text: str, message: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_image": None}, "no array 'text_image': run sdr evaluate again"),
        ({"text_image": np.zeros(3, dtype=np.int64)}, r"must be 180 integers in \[0, 60\)"),
        ({"text_image": np.full(180, 60)}, r"must be 180 integers in \[0, 60\)"),
        ({"i2t_rank": None}, "no array 'i2t_rank'"),
        ({"i2t_rank": np.zeros(180, dtype=np.int64)}, r"'i2t_rank' must be 60 integers.*not \(180,\) int64"),
        ({"t2i_rank": np.zeros(180)}, "'t2i_rank' must be 180 or 60 integers"),
        ({"i2i_NDCG@10": None}, "no array 'i2i_NDCG@10'"),
        ({"i2i_NDCG@10": np.full(60, np.nan)}, "i2i_NDCG@10 is nan by its queries"),
        ({"text_image": np.array([None] * 180)}, "is not an archive of plain arrays"),
    ],
)
def test_malformed_queries(path: Path, changes: dict[str, np.ndarray | None], message: str) -> None:
    edit_queries(path, **changes)
    with pytest.raises(ValueError, match=message):
        load_evaluation(path)


@pytest.mark.parametrize("content", [b"", b"PK not a zip", pickle.dumps({"i2t_rank": 1})])
def test_queries_that_are_no_archive(path: Path, content: bytes) -> None:
    path.with_suffix(".queries.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.queries\.npz is not an archive of plain arrays"):
        load_evaluation(path)


def test_queries_of_another_evaluation(path: Path) -> None:
    other = write_evaluation(path.parent / "b.json", seed=1)
    other.with_suffix(".queries.npz").replace(path.with_suffix(".queries.npz"))
    with pytest.raises(ValueError, match=r"not of the same evaluation as .*a\.json: i2t_R@1 is [\d.]+ by its queries"):
        load_evaluation(path)


def test_rsum_is_the_sum(path: Path) -> None:
    edit(path, rsum=600.0)
    with pytest.raises(ValueError, match=r"rsum is [\d.]+ by its queries, 600.0000 in a.json"):
        load_evaluation(path)


class Rows(HTMLParser):
    """The words of each table row; and the addresses of anything a page would fetch."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[str] = []
        self.addresses: list[str | None] = []
        self._in_row = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag == "tr":
            self.rows.append("")
            self._in_row = True

    def handle_endtag(self, tag: str) -> None:
        self._in_row = self._in_row and tag != "tr"

    def handle_data(self, data: str) -> None:
        if self._in_row:
            self.rows[-1] = " ".join([*self.rows[-1].split(), *data.split()])


def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    itc, sdr = seeds(tmp_path, "ITC", 0.0, 2), seeds(tmp_path, "S|<b>", 1.0, 2)
    output = tmp_path / "out"
    assert main(["report", itc, sdr, "--output", str(output), "--replicates", "200"]) == 0
    printed = capsys.readouterr().out
    page, markdown = (output / "comparison.html").read_text(), (output / "comparison.md").read_text()
    assert sorted(file.name for file in output.iterdir()) == ["comparison.html", "comparison.md"]
    comparison = compare(load_systems([itc, sdr]), replicates=200)
    mean, difference = comparison.means["ITC"]["rsum"], comparison.differences["S|<b>"]["rsum"]
    entries = (
        f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}]",
        f"+{difference.value:.1f} [+{difference.low:.1f}, +{difference.high:.1f}] ▲",
    )
    read = Rows(page)
    row = next(row for row in read.rows if row.startswith("rsum"))
    assert all(entry in row for entry in entries)
    assert all(entry in printed for entry in entries)
    assert all(entry.removesuffix(" ▲").split()[0] in markdown for entry in entries)
    assert read.addresses == []
    assert "<b>" not in page + markdown
    for shown in (page, markdown, printed):
        said = " ".join(shown.replace("\u00a0", " ").split())
        for words in ("60 images and 180 texts", "split test", "protocol clean", "200 bootstrap replicates", "2 of 2"):
            assert words in said
    for shown in (page, markdown):
        assert all(words in shown for words in ("index: an equally", "keep: the other", "rouge-l ababababab"))
        assert "01234" in shown
    first = page
    assert main(["report", itc, sdr, "--output", str(output), "--replicates", "200"]) == 0
    assert (output / "comparison.html").read_text() == first
    (output / "comparison.md").write_text("mine")
    assert main(["report", itc, sdr, "--output", str(output), "--replicates", "200"]) == 2
    assert "comparison.md exists and was not written by this command" in capsys.readouterr().err
    assert (output / "comparison.md").read_text() == "mine"


def test_one_seed_says_nothing_about_training_again(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(path), "--replicates", "100"]) == 0
    printed = capsys.readouterr().out
    assert "says nothing about training again" in printed
    assert "difference" not in printed


def test_a_failed_write_leaves_the_former_page(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = path.parent / "out"
    command = ["report", str(path), "--output", str(output), "--replicates", "100"]
    assert main(command) == 0
    former = (output / "comparison.html").read_text()

    def full(self: Path, text: str, encoding: str) -> int:
        self.write_bytes(text[:10].encode())
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    assert main(command) == 2
    assert (output / "comparison.html").read_text() == former
    assert sorted(file.name for file in output.iterdir()) == ["comparison.html", "comparison.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "no file at none.json (No such file or directory): expected what sdr evaluate --output wrote"),
        (["a.json", "."], ". is a folder: give one folder, or files"),
        ([".", "--replicates", "200"], "--replicates is for evaluations, and . is a folder"),
        (["a.json", "--replicates", "20"], "replicates must be at least 100, not 20"),
        (["a.json", "--baseline", "b"], "no system is called 'b' to be the baseline; there are a"),
        (["a.json", "s=b.json,c.json"], "s has 2 evaluations and the baseline a has 1"),
        (["s=b.json,b.json"], "b.json is given 2 times; give one file per seed"),
        (["s=a.json", "s=b.json"], "the name 's' is given 2 times"),
        (["a.json", "--output", "b.json"], "--output names a folder, and b.json is a file"),
        (["bare.json"], "no queries at bare.queries.npz"),
    ],
)
def test_refusals_of_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.json", "b.json", "c.json", "bare.json")):
        write_evaluation(Path(name), seed=i)
    Path("bare.queries.npz").unlink()
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith("sdr report: error: ")
    assert message in error
