"""sdr evaluate, sdr relevance and sdr report from the command line, on files of several formats."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr_lightning.cli.main import main
from sdr_lightning.metrics import RougeLRelevance, evaluate
from sdr_lightning.metrics.evaluation import cross_modal_folds
from sdr_lightning.metrics.paper_protocol import evaluate_published
from sdr_lightning.metrics.structure import preserved
from tests.reference import evaluation as reference

COUNTS = [5, 6, 5, 7, 5, 70, 5, 5, 5, 5, 5, 5]  # one image has more than 64 captions
N, C = len(COUNTS), sum(COUNTS)
INDEX = torch.arange(N).repeat_interleave(torch.tensor(COUNTS))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Embeddings, scores, and annotations in the format of Karpathy and as a list."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    images = draw.normal(size=(N, 8)).astype(np.float32)
    texts = images[INDEX] + draw.normal(size=(C, 8)).astype(np.float32)
    np.save("img.npy", images)
    np.save("txt.npy", texts)
    np.save("half.npy", texts.astype(np.float16))
    np.save("i2t.npy", images @ texts.T)
    np.save("t2i.npy", (images @ texts.T).T + 0.1 * draw.normal(size=(C, N)).astype(np.float32))
    np.save("map.npy", INDEX.numpy())
    words = np.array(["a", "red", "blue", "dog", "cat", "runs", "sits", "on", "the", "grass", "snow"])
    captions = [" ".join(words[draw.integers(0, len(words), 6)]) + "." for _ in range(C)]
    own = [[c for c in range(C) if INDEX[c] == i] for i in range(N)]
    entries = [
        {"filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": captions[c], "sentid": c} for c in own[i]]}
        for i in range(N)
    ]
    Path("karpathy.json").write_text(json.dumps({"dataset": "x", "images": entries}))
    listed = [{"image": f"{i}.jpg", "caption": [captions[c] for c in own[i]]} for i in range(N)]
    Path("list.json").write_text(json.dumps(listed))
    Path("reversed.json").write_text(json.dumps({"dataset": "x", "images": entries[::-1]}))
    return captions


def sdr(*words):
    return main([str(word) for word in words])


EMBEDDINGS = ("evaluate", "--image-embeddings", "img.npy", "--text-embeddings", "txt.npy")


def results(path="metrics.json"):
    values = json.loads(Path(path).read_text())
    return values, values.pop("meta")


@pytest.mark.parametrize("annotations", ["karpathy.json", "list.json"])
def test_metrics_of_embeddings_equal_the_library(folder, annotations, capsys):
    assert sdr("relevance", "--annotations", annotations, "--output", "rouge.npy", "--tokenizer", "tern") == 0
    options = ("--annotations", annotations, "--relevance", "rouge.npy", "--folds", 3, "--output", "out/metrics.json")
    assert sdr(*EMBEDDINGS, *options) == 0
    found, meta = results("out/metrics.json")
    relevance = RougeLRelevance(folder, INDEX, N, "tern")
    images, texts = torch.from_numpy(np.load("img.npy")), torch.from_numpy(np.load("txt.npy"))
    assert found == pytest.approx(
        evaluate(images, texts, INDEX, relevance) | cross_modal_folds(images, texts, INDEX, 3), rel=1e-6
    )
    assert meta["protocol"] == "clean"
    assert (meta["images"], meta["texts"], meta["split"]) == (N, C, "test")
    assert (meta["ties"], meta["siblings"], meta["folds"]) == ("index", "keep", 3)
    assert meta["relevance"]["kind"] == "rouge-l tern"
    assert set(meta["inputs"]) == {"img.npy", "txt.npy", annotations}
    assert meta["code"]["version"]
    printed = capsys.readouterr()
    assert "they are normalised" in printed.err
    assert f"{found['rsum']:.2f}" in printed.out
    assert sdr("report", "out/metrics.json") == 0
    assert not list(Path("out").glob(".*"))


def test_half_precision_and_raw_relevance_give_the_same_metrics(folder):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "r32.npy")
    sdr("relevance", "--annotations", "karpathy.json", "--output", "r16.npy", "--dtype", "float16")
    assert np.load("r16.npy").dtype == np.float16
    Path("tern.bin").write_bytes(np.load("r32.npy").tobytes())  # the format of TERN: float32 without a header
    found = {}
    for name in ("r32.npy", "r16.npy", "tern.bin"):
        assert sdr(*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", name, "--output", "metrics.json") == 0
        found[name] = results()[0]
    assert found["tern.bin"] == found["r32.npy"]
    assert found["r16.npy"] == pytest.approx(found["r32.npy"], rel=1e-3)


# protocol, ties, siblings, folds, with relevance, number of score files; pairwise.
COMBINATIONS = [
    ("clean", "index", "keep", None, False, None),
    ("clean", "pessimistic", "keep", 3, True, None),
    ("clean", "index", "exclude", 3, True, None),
    ("clean", "pessimistic", "exclude", None, True, None),
    ("scores", "index", "keep", None, False, 2),
    ("scores", "pessimistic", "keep", None, True, 1),
    ("paper", "pessimistic", "keep", None, True, None),
    ("paper", "index", "keep", None, True, 1),
    ("paper", "pessimistic", "keep", None, False, 2),
    ("paper", "pessimistic", "keep", None, True, 2),
]


@pytest.fixture(scope="module")
def grid():
    """Unit vectors and scores on a coarse grid, with many ties; one caption and one image without relevance."""
    draw = np.random.default_rng(3)
    index = np.arange(14).repeat(5)
    images = draw.choice([-1.0, 1.0], (14, 16))
    texts = images[index] * draw.choice([-1.0, 1.0], (70, 16), p=[0.35, 0.65])
    i2t, t2i = draw.integers(-4, 9, (14, 70)) / 4, draw.integers(-4, 9, (70, 14)) / 4
    rouge = draw.integers(0, 5, (70, 14)) * draw.integers(0, 2, (70, 14)) / 4
    rouge[9], rouge[:, 6] = 0, 0
    return images / 4, texts / 4, index, rouge, i2t, t2i


@pytest.mark.parametrize(("protocol", "ties", "siblings", "folds", "graded", "scores"), COMBINATIONS)
def test_metrics_equal_the_reference_for_all_options(
    grid, tmp_path, monkeypatch, protocol, ties, siblings, folds, graded, scores
):
    monkeypatch.chdir(tmp_path)
    images, texts, index, rouge, i2t, t2i = grid
    for name, array in {"img": 3 * images, "txt": texts, "i2t": i2t, "t2i": t2i, "rouge": rouge}.items():
        np.save(f"{name}.npy", array)
    words = ["--captions-per-image", 5, "--ties", ties, "--siblings", siblings, "--output", "metrics.json"]
    words += ["--relevance", "rouge.npy"] if graded else []
    words += ["--folds", folds] if folds else []
    words += ["--scores", *("i2t.npy", "t2i.npy")[:scores]] if scores else []
    words += ["--protocol", "paper"] if protocol == "paper" else []
    assert sdr(*(("evaluate",) if protocol == "scores" else EMBEDDINGS), *words) == 0
    relevance, given = rouge if graded else None, (i2t, i2t.T if scores == 1 else t2i)
    if protocol == "clean":
        expected = reference.clean(images, texts, index, relevance, ties, siblings, folds)
    elif protocol == "scores":
        expected = reference.scores_alone(*given, index, relevance, ties)
    else:
        expected = reference.paper(images, texts, index, relevance, ties, given if scores else None)
    found, meta = results()
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert (meta["ties"], meta["siblings"], meta["folds"]) == (ties, siblings, folds)


def test_half_precision_embeddings_are_computed_in_fp32(folder):
    words = ("evaluate", "--image-embeddings", "img.npy", "--text-to-image", "map.npy", "--output", "metrics.json")
    assert sdr(*words, "--text-embeddings", "half.npy") == 0
    texts = torch.from_numpy(np.load("half.npy")).float()
    assert results()[0] == pytest.approx(evaluate(torch.from_numpy(np.load("img.npy")), texts, INDEX))


def test_protocol_paper_takes_recall_from_the_given_scores(folder):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "rouge.npy", "--tokenizer", "tern")
    words = (
        "--protocol",
        "paper",
        "--text-to-image",
        "map.npy",
        "--relevance",
        "rouge.npy",
        "--output",
        "metrics.json",
    )
    assert sdr(*EMBEDDINGS, "--scores", "i2t.npy", "t2i.npy", *words) == 0
    arrays = [torch.from_numpy(np.load(name)) for name in ("img.npy", "txt.npy", "i2t.npy", "t2i.npy")]
    expected = evaluate_published(*arrays[:2], INDEX, RougeLRelevance(folder, INDEX, N, "tern"), *arrays[2:]).metrics
    found, meta = results()
    assert found == pytest.approx(expected)
    assert (meta["protocol"], meta["texts"]) == ("paper", 5 * N)
    assert sdr("report", "metrics.json") == 0
    sdr(*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", "rouge.npy", "--output", "clean.json")
    assert sdr("report", "clean.json", "metrics.json") == 2  # not comparable


def test_diagnostics_siblings_and_ties_change_their_metrics(folder):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "rouge.npy")
    words = ("--text-to-image", "map.npy", "--relevance", "rouge.npy")
    assert sdr(*EMBEDDINGS, *words, "--output", "a.json") == 0
    changed = ("--siblings", "exclude", "--ties", "pessimistic", "--diagnostics")
    assert sdr(*EMBEDDINGS, *words, *changed, "--output", "b.json") == 0
    (plain, _), (found, meta) = results("a.json"), results("b.json")
    assert (meta["siblings"], meta["ties"]) == ("exclude", "pessimistic")
    assert found["t2t_NDCG@10"] != plain["t2t_NDCG@10"]
    assert found["i2i_NDCG@10"] == plain["i2i_NDCG@10"]
    assert {"alignment", "t2i_hubness@10"} <= found.keys() - plain.keys()


def test_agreement_with_teachers_is_computed(folder):
    draw = np.random.default_rng(1)
    rotation = np.linalg.qr(draw.normal(size=(8, 8)))[0]
    np.save("same.npy", unit(np.load("img.npy")) @ rotation * 3)
    np.save("other.npy", draw.normal(size=(C, 5)))
    teachers = ("--image-teacher", "same.npy", "--text-teacher", "other.npy")
    assert sdr(*EMBEDDINGS, "--text-to-image", "map.npy", *teachers, "--output", "a.json") == 0
    found, meta = results("a.json")
    assert found["image_teacher_kNN@10"] == 100
    assert found["image_teacher_CKA"] == pytest.approx(100)
    expected = preserved(torch.from_numpy(unit(np.load("txt.npy"))), torch.from_numpy(np.load("other.npy")))
    assert {name: found[f"text_teacher_{name}"] for name in expected} == pytest.approx(expected)
    assert max(expected.values()) < 50
    assert {"same.npy", "other.npy"} < meta["inputs"].keys()


def shuffled_coco(path, captions, order):
    """Write a COCO-style file with captions in the given order and one rejected caption."""
    images = [{"id": 100 + i, "file_name": f"{i}.jpg"} for i in range(N)]
    entries = [{"id": c, "image_id": 100 + int(INDEX[c]), "caption": captions[c]} for c in order]
    entries.insert(3, {"id": C, "image_id": 100, "caption": "spam", "is_rejected": True})
    Path(path).write_text(json.dumps({"images": images, "annotations": entries}))


def shuffled_list(path, captions, order):
    """Write a list with one entry per caption, after one entry per image."""
    firsts = [{"image": f"./{i}.jpg", "caption": []} for i in range(N)]
    entries = [{"image": f"{int(INDEX[c])}.jpg", "caption": captions[c]} for c in order]
    Path(path).write_text(json.dumps(firsts + entries))


@pytest.mark.parametrize("write", [shuffled_coco, shuffled_list])
def test_interleaved_captions_are_reordered_in_every_input(folder, write, capsys):
    """Rows in file order and rows image by image give equal metrics; without --caption-order a note is printed."""
    order = np.random.default_rng(5).permutation(C)
    write("mixed.json", folder, order.tolist())
    within = np.lexsort(
        (np.argsort(order), INDEX.numpy())
    )  # image by image, an image's captions in the order of the file
    texts, scores = np.load("txt.npy"), np.load("i2t.npy")
    for name, rows in (("file", order), ("image", within)):
        np.save(f"txt-{name}.npy", texts[rows])
        np.save(f"scores-{name}.npy", scores[:, rows])
        np.save(f"map-{name}.npy", INDEX[rows])
    sdr("relevance", "--annotations", "mixed.json", "--output", "rouge.npy")
    found = {}
    for name, more in {
        "file": ("--caption-order", "file"), "image": ("--caption-order", "image"), "silent": ()
    }.items():  # fmt: skip
        of = "file" if name == "file" else "image"
        words = (f"txt-{of}.npy", "--text-teacher", f"txt-{of}.npy", "--relevance", "rouge.npy", "--folds", 2, *more)
        capsys.readouterr()
        words = (*EMBEDDINGS[:-1], *words, "--annotations", "mixed.json", "--output", f"{name}.json")
        assert sdr(*words) == 0
        found[name] = results(f"{name}.json")
        noted = "does not list its captions image by image" in capsys.readouterr().err
        assert noted == ("does not list" in " ".join(found[name][1]["notes"])) == (name == "silent")
        with np.load(f"{name}.queries.npz") as queries:
            assert queries["text_image"].tolist() == INDEX.tolist()
    assert found["file"][0] == found["image"][0] == found["silent"][0]
    assert [found[name][1]["caption_order"] for name in found] == ["file", "image", "image"]
    assert found["file"][1]["data"] == found["image"][1]["data"]  # so sdr report accepts both
    assert sdr(*EMBEDDINGS[:-1], "txt-file.npy", "--text-to-image", "map-file.npy", "--output", "map.json") == 0
    mapped = results("map.json")[0]
    assert mapped == pytest.approx({name: found["file"][0][name] for name in mapped})
    words = ("evaluate", "--scores", "scores-file.npy", "--annotations", "mixed.json", "--caption-order", "file")
    assert sdr(*words, "--output", "scores.json") == 0
    assert (
        sdr("evaluate", "--scores", "scores-image.npy", "--text-to-image", "map-image.npy", "--output", "s.json") == 0
    )
    assert results("scores.json")[0] == results("s.json")[0]


@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u4", ">u8", ">f2", "<f8"])
def test_scores_of_any_type_and_byte_order_are_exact(folder, dtype):
    """Scores are near the largest value of the type, where fp32 cannot distinguish them."""
    kind = np.dtype(dtype)
    ranks = np.random.default_rng(7).integers(0, 60, (N, C))
    if kind.kind == "f":
        greatest, step = 1.0, np.finfo(kind).eps
    else:
        greatest, step = np.iinfo(kind).max, 1
    array = np.array([[greatest - step * int(rank) for rank in row] for row in -ranks + 60], dtype=object).astype(kind)
    assert len(np.unique(array)) == len(np.unique(ranks))
    np.save("exact.npy", array)
    np.save("map.npy", INDEX.numpy().astype(kind.newbyteorder() if kind.kind != "f" else ">i4"))
    np.save("graded.npy", np.random.default_rng(8).integers(0, 4, (C, N)).astype(">f4"))
    words = ("--text-to-image", "map.npy", "--relevance", "graded.npy", "--output", "metrics.json")
    assert sdr("evaluate", "--scores", "exact.npy", *words) == 0
    expected = reference.scores_alone(ranks, ranks.T, INDEX.numpy(), np.load("graded.npy"), "index")
    assert results()[0] == pytest.approx(expected, rel=1e-6)


def test_undefined_metrics_are_null(folder, capsys):
    np.save("zero.npy", np.zeros((C, N), np.float32))
    assert sdr(*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", "zero.npy", "--output", "metrics.json") == 0
    assert "NaN" not in Path("metrics.json").read_text()
    found, meta = results()
    assert {name for name, value in found.items() if value is None} == {name for name in found if "NDCG" in name}
    assert found["rsum"] > 0
    assert "no query has a relevant item" in meta["notes"][-1]
    printed = capsys.readouterr()
    assert meta["notes"][-1] in printed.err
    assert "nan" not in printed.out
    assert sdr("report", "metrics.json") == 0


def test_commands_overwrite_only_their_own_outputs(folder, capsys):
    relevance = ("relevance", "--annotations", "list.json", "--output")
    evaluate = (*EMBEDDINGS, "--annotations", "list.json", "--relevance", "own.npy", "--output")
    for _ in range(2):
        assert sdr(*relevance, "own.npy") == 0
        assert sdr(*evaluate, "own-metrics.json") == 0
    Path("text.json").write_text("not JSON")
    Path("list-of-mine.npy").write_bytes(b"mine")
    np.savez("mine.queries.npz", ranks=np.arange(3))
    np.save("changed.npy", np.load("own.npy") + 1)
    Path("changed.json").write_text(Path("own.json").read_text())
    Path("folder.json").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().iterdir()}
    reads, exists = "is a file that this command reads", "was not written by this command"
    for words, message in (
        ((*relevance, "list.npy"), reads),
        ((*relevance, "text.npy"), exists),
        ((*relevance, "list-of-mine.npy"), exists),
        ((*relevance, "changed.npy"), exists),
        ((*relevance, "own-metrics.npy"), exists),
        ((*relevance, "folder.npy"), "is a folder"),
        ((*evaluate, "list.json"), reads),
        ((*evaluate, "own.json"), reads),
        ((*evaluate, "karpathy.json"), exists),
        ((*evaluate, "mine.json"), exists),
    ):
        capsys.readouterr()
        assert sdr(*words) == 2, words
        assert message in capsys.readouterr().err.splitlines()[0]
        assert {path: path.is_file() and path.read_bytes() for path in Path().iterdir()} == before


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


PAIRED = (*EMBEDDINGS, "--text-to-image", "map.npy")
SCORES = ("evaluate", "--scores", "i2t.npy", "--text-to-image", "map.npy")
INVALID = {
    "options": [
        (("evaluate",), "nothing to evaluate"),
        (("evaluate", "--image-embeddings", "img.npy"), "one modality alone"),
        ((*SCORES, "--protocol", "paper"), "needs --image-embeddings"),
        ((*PAIRED, "--protocol", "paper", "--folds", "2"), "does not support --folds"),
        ((*SCORES, "--diagnostics"), "need embeddings, not scores"),
        ((*PAIRED, "--folds", "13"), "folds must be from 1 to the 12 images"),
        ((*SCORES, "--folds", "2"), "needs embeddings, not scores"),
        ((*SCORES, "--siblings", "exclude"), "needs embeddings and"),
        ((*PAIRED, "--siblings", "exclude"), "needs embeddings and --relevance"),
        ((*PAIRED, "--caption-order", "file"), "--annotations, which are not given"),
        ((*PAIRED, "--output", "metrics.txt"), "should end with .json"),
        (("relevance", "--annotations", "karpathy.json", "--output", "rouge.txt"), "should end with .npy"),
        (("relevance", "--annotations", "bad.json", "--output", "x.npy"), "in an unknown format"),
    ],
    "pairing": [
        (EMBEDDINGS, "which caption is of which image"),
        ((*PAIRED, "--captions-per-image", "5"), "which caption is of which image"),
        ((*EMBEDDINGS, "--captions-per-image", "5"), "12 images with 5 captions each are not the 128 captions"),
        ((*EMBEDDINGS, "--annotations", "absent.json"), "no file at absent.json"),
        ((*EMBEDDINGS, "--annotations", "karpathy.json", "--split", "val"), "has no val split; it has test"),
        ((*EMBEDDINGS, "--annotations", "short.json"), "has 11 images and"),
        ((*EMBEDDINGS, "--text-to-image", "img.npy"), "expected the image of each caption: numbers with 1 dimension"),
    ],
    "relevance": [
        ((*EMBEDDINGS, "--annotations", "list.json", "--relevance", "absent.npy"), "no relevance file at absent.npy"),
        ((*PAIRED, "--relevance", "other.npy"), "another split or transposed"),
        ((*PAIRED, "--relevance", "raw.bin"), "another split, or truncated"),
        ((*PAIRED, "--relevance", "nan.npy"), "finite and not negative"),
        ((*EMBEDDINGS, "--annotations", "reversed.json", "--relevance", "rouge.npy"), "captions in another order"),
        ((*EMBEDDINGS, "--annotations", "karpathy.json", "--relevance", "changed.npy"), "has changed since"),
    ],
    "arrays": [
        (("evaluate", "--image-embeddings", "pickled.npy", "--text-embeddings", "txt.npy"), "holds pickled objects"),
        (("evaluate", "--image-embeddings", "list.json", "--text-embeddings", "txt.npy"), "not a plain .npy array"),
        (("evaluate", "--image-embeddings", "wide.npy", "--text-embeddings", "txt.npy"), "must be of one width"),
        (("evaluate", "--image-embeddings", "zero.npy", *PAIRED[3:]),
         "1 of 12 image embeddings are all zero or not finite, the first is row 2"),
        (("evaluate", "--image-embeddings", "long.npy", "--text-embeddings", "txt.npy"), "long.npy holds float128"),
        (("evaluate", "--scores", "complex.npy", *SCORES[3:]), "complex.npy holds (12, 128) complex64"),
        (("evaluate", "--scores", "i2t.npy", "i2t.npy", *SCORES[3:]), "text-to-image scores must be"),
        (("evaluate", "--scores", "nan_scores.npy", *SCORES[3:]), "the first at query 1, gallery item 4"),
        ((*PAIRED, "--protocol", "paper", "--scores", "wide.npy"), "the embeddings are of"),
        ((*PAIRED, "--text-teacher", "img.npy"), "img.npy holds features of 12 items"),
    ],
}  # fmt: skip


def test_all_files_are_read_before_the_evaluation(folder, monkeypatch, capsys):
    monkeypatch.setattr("sdr_lightning.cli.evaluation._evaluate", None)
    for more in (("--image-teacher", "absent.npy"), ("--judgements", "absent.csv", "--annotations", "list.json")):
        words = (*EMBEDDINGS, *more) if "--annotations" in more else (*PAIRED, *more)
        assert sdr(*words) == 2
        assert "absent" in capsys.readouterr().err.splitlines()[0]


@pytest.mark.parametrize("group", INVALID)
def test_invalid_input_gives_one_line_and_writes_nothing(folder, group, capsys):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "rouge.npy")
    rouge = np.load("rouge.npy")
    np.save("changed.npy", rouge)
    Path("changed.json").write_text(Path("rouge.json").read_text().replace('"sha256": "', '"sha256": "0'))
    np.save("other.npy", rouge.T.copy())
    np.save("nan.npy", np.full_like(rouge, np.nan))
    Path("raw.bin").write_bytes(b"12345678")
    pickled("pickled.npy")
    np.save("long.npy", np.load("img.npy").astype(np.longdouble))
    np.save("complex.npy", np.load("i2t.npy").astype(np.complex64))
    images, scores = np.load("img.npy"), np.load("i2t.npy")
    np.save("wide.npy", np.ones((N, 9), np.float32))
    images[2] = 0
    np.save("zero.npy", images)
    scores[1, 4] = np.nan
    np.save("nan_scores.npy", scores)
    Path("short.json").write_text(json.dumps(json.loads(Path("list.json").read_text())[1:]))
    Path("bad.json").write_text("{}")
    before = {path.name for path in Path().iterdir()}
    for words, message in INVALID[group]:
        capsys.readouterr()
        assert sdr(*words) == 2, words
        assert message in capsys.readouterr().err.splitlines()[0]
        assert {path.name for path in Path().iterdir()} == before
