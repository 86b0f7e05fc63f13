"""sdr evaluate, sdr relevance and sdr report as a user types them, on files a user may have."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sdr_lightning.cli.main import main
from sdr_lightning.metrics import RougeLRelevance, evaluate
from sdr_lightning.metrics.evaluation import cross_modal_folds
from sdr_lightning.metrics.published import evaluate_published
from sdr_lightning.metrics.structure import preserved

COUNTS = [5, 6, 5, 7, 5, 70, 5, 5, 5, 5, 5, 5]  # more captions than 64 among them
N, C = len(COUNTS), sum(COUNTS)
INDEX = torch.arange(N).repeat_interleave(torch.tensor(COUNTS))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Embeddings, scores, annotations in Karpathy's schema and as a list."""
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
def test_from_embeddings_with_relevance(folder, annotations, capsys):
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
    printed = capsys.readouterr().out
    assert "they are normalised" in printed
    assert f"{found['rsum']:.2f}" in printed
    assert sdr("report", "out/metrics.json") == 0
    assert not list(Path("out").glob(".*"))


def test_the_same_from_a_half_precision_or_raw_relevance(folder):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "r32.npy")
    sdr("relevance", "--annotations", "karpathy.json", "--output", "r16.npy", "--dtype", "float16")
    assert np.load("r16.npy").dtype == np.float16
    Path("tern.bin").write_bytes(np.load("r32.npy").tobytes())  # TERN's file: float32 without a header
    found = {}
    for name in ("r32.npy", "r16.npy", "tern.bin"):
        assert sdr(*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", name, "--output", "metrics.json") == 0
        found[name] = results()[0]
    assert found["tern.bin"] == found["r32.npy"]
    assert found["r16.npy"] == pytest.approx(found["r32.npy"], rel=1e-3)


def test_half_precision_embeddings_are_computed_in_fp32(folder):
    words = ("evaluate", "--image-embeddings", "img.npy", "--text-to-image", "map.npy", "--output", "metrics.json")
    assert sdr(*words, "--text-embeddings", "half.npy") == 0
    texts = torch.from_numpy(np.load("half.npy")).float()
    assert results()[0] == pytest.approx(evaluate(torch.from_numpy(np.load("img.npy")), texts, INDEX))


def test_from_scores(folder):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "rouge.npy")
    words = ("--text-to-image", "map.npy", "--relevance", "rouge.npy", "--output", "metrics.json")
    assert sdr("evaluate", "--scores", "i2t.npy", *words) == 0
    one, _ = results()
    assert sdr("evaluate", "--scores", "i2t.npy", "t2i.npy", *words) == 0
    both, _ = results()
    same = [key for key in one if key.startswith("i2t")]
    assert {key: one[key] for key in same} == {key: both[key] for key in same}
    assert one["t2i_MnR"] != both["t2i_MnR"]
    assert {"i2t_NDCG@10", "t2i_NDCG_exp@25"} <= one.keys()
    assert not {"i2i_NDCG@10", "modality_gap"} & one.keys()


def test_protocol_paper_with_the_scores_it_would_report(folder):
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
    assert sdr("report", "clean.json", "metrics.json") == 2  # never side by side


def test_diagnostics_siblings_and_ties_are_recorded(folder):
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


def test_what_is_left_of_the_teachers(folder):
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


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pickled(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluate",), "nothing to evaluate"),
        (("evaluate", "--image-embeddings", "img.npy"), "one modality alone"),
        (EMBEDDINGS, "which caption is of which image"),
        ((*EMBEDDINGS, "--captions-per-image", "5", "--text-to-image", "map.npy"), "which caption is of which image"),
        ((*EMBEDDINGS, "--captions-per-image", "5"), "12 images with 5 captions each are not the 128 captions"),
        ((*EMBEDDINGS, "--annotations", "absent.json"), "no file at absent.json"),
        ((*EMBEDDINGS, "--annotations", "list.json", "--relevance", "absent.npy"), "no relevance file at absent.npy"),
        ((*EMBEDDINGS, "--annotations", "karpathy.json", "--split", "val"), "has no val split; it has test"),
        ((*EMBEDDINGS, "--text-to-image", "img.npy"), "expected the image of each caption: numbers with 1 dimension"),
        ((*EMBEDDINGS, "--annotations", "short.json"), "has 11 images and"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", "other.npy"), "another split or transposed"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", "raw.bin"), "another split, or cut short"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--relevance", "nan.npy"), "finite and not negative"),
        ((*EMBEDDINGS, "--annotations", "reversed.json", "--relevance", "rouge.npy"), "captions in another order"),
        ((*EMBEDDINGS, "--annotations", "karpathy.json", "--relevance", "changed.npy"), "has changed since"),
        (("evaluate", "--image-embeddings", "pickled.npy", "--text-embeddings", "txt.npy"), "holds pickled objects"),
        (("evaluate", "--image-embeddings", "list.json", "--text-embeddings", "txt.npy"), "not a plain .npy array"),
        (("evaluate", "--image-embeddings", "wide.npy", "--text-embeddings", "txt.npy"), "must be of one width"),
        (("evaluate", "--image-embeddings", "zero.npy", "--text-embeddings", "txt.npy", "--text-to-image", "map.npy"),
         "1 of 12 image embeddings are all zero or not finite, the first is row 2"),
        (("evaluate", "--scores", "i2t.npy", "i2t.npy", "--text-to-image", "map.npy"), "text-to-image scores must be"),
        (("evaluate", "--scores", "nan_scores.npy", "--text-to-image", "map.npy"), "the first at query 1, gallery item 4"),
        (("evaluate", "--scores", "i2t.npy", "--text-to-image", "map.npy", "--protocol", "paper"), "needs --image-embeddings"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--protocol", "paper", "--folds", "2"), "knows no --folds"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--text-teacher", "img.npy"), "img.npy holds features of 12 items"),
        (("evaluate", "--scores", "i2t.npy", "--text-to-image", "map.npy", "--diagnostics"), "need embeddings, not scores"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--folds", "13"), "folds must be from 1 to the 12 images"),
        ((*EMBEDDINGS, "--text-to-image", "map.npy", "--output", "metrics.txt"), "should end with .json"),
        (("relevance", "--annotations", "karpathy.json", "--output", "rouge.txt"), "should end with .npy"),
        (("relevance", "--annotations", "bad.json", "--output", "x.npy"), "in no known format"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line(folder, words, message, capsys):
    sdr("relevance", "--annotations", "karpathy.json", "--output", "rouge.npy")
    rouge = np.load("rouge.npy")
    np.save("changed.npy", rouge)
    Path("changed.json").write_text(Path("rouge.json").read_text().replace('"sha256": "', '"sha256": "0'))
    np.save("other.npy", rouge.T.copy())
    np.save("nan.npy", np.full_like(rouge, np.nan))
    Path("raw.bin").write_bytes(b"12345678")
    pickled("pickled.npy")
    images, scores = np.load("img.npy"), np.load("i2t.npy")
    np.save("wide.npy", np.ones((N, 9), np.float32))
    images[2] = 0
    np.save("zero.npy", images)
    scores[1, 4] = np.nan
    np.save("nan_scores.npy", scores)
    Path("short.json").write_text(json.dumps(json.loads(Path("list.json").read_text())[1:]))
    Path("bad.json").write_text("{}")
    before = {path.name for path in Path().iterdir()}
    capsys.readouterr()
    assert sdr(*words) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert message in error
    assert {path.name for path in Path().iterdir()} - before == set()
