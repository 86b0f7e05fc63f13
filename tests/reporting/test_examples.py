import json
from pathlib import Path

import pytest

from sdr_lightning.reporting.examples import collect_examples
from sdr_lightning.reporting.figures.thumbnails import Thumbnails
from sdr_lightning.results.loading import load_study
from sdr_lightning.results.schema import Condition
from tests.reporting.fake_study import CAPTIONS, edit_json, folder, write_study


def test_examples_are_from_the_highest_ratio_and_first_seed_that_have_any(tmp_path: Path) -> None:
    write_study(tmp_path, ratios=(0, 0.3, 0.6), extras=True)
    for method in ("InfoNCE", "SDR"):
        for seed in (0, 1, 2):
            (folder(tmp_path, method, "mismatch", 0.6, seed) / "examples.json").unlink()
        (folder(tmp_path, method, "mismatch", 0.3, 0) / "examples.json").unlink()
    (group,) = collect_examples(load_study(tmp_path))
    assert (group.condition, group.seed) == (Condition("mismatch", 0.3), 1)
    assert [example.query.direction for example in group.examples] == ["t2i"] * 3 + ["i2t"] * 3
    assert [example.query.text for example in group.examples[:3]] == list(CAPTIONS)
    assert all(list(example.results) == ["InfoNCE", "SDR"] for example in group.examples)
    assert [result.correct for result in group.examples[0].results["SDR"]] == [False, True, False, False, False]


def test_examples_on_which_methods_differ_come_first_and_those_without_a_hit_last(tmp_path: Path) -> None:
    write_study(tmp_path, ratios=(0, 0.6), extras=True)
    found = {"InfoNCE": (False, True, True), "SDR": (False, True, False)}  # by caption
    for method, hits in found.items():
        path = folder(tmp_path, method, "mismatch", 0.6, 0) / "examples.json"
        queries = json.loads(path.read_text())["queries"]
        for query in queries:
            for result in query["results"] if query["direction"] == "t2i" else ():
                result["correct"] = hits[CAPTIONS.index(query["query_text"])]
        edit_json(path, queries=queries)
    (group,) = collect_examples(load_study(tmp_path))
    assert [example.query.text for example in group.examples[:3]] == [CAPTIONS[2], CAPTIONS[1], CAPTIONS[0]]


def test_malformed_examples_are_rejected(tmp_path: Path) -> None:
    path = folder(write_study(tmp_path, extras=True), "SDR", "mismatch", 0.6, 0) / "examples.json"
    edit_json(path, queries=[{"direction": "t2t"}])
    with pytest.raises(ValueError, match=rf"{path}: query 0: 'direction' must be one of t2i, i2t, found 't2t'"):
        collect_examples(load_study(tmp_path))


def test_thumbnails_are_read_from_their_folder_only(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "thumbnails" / "a b.jpg").write_bytes(b"x")
    thumbnails = Thumbnails(tmp_path)
    assert thumbnails.path("../secret") is None
    assert thumbnails.embedded("missing") is None
    assert thumbnails.link("a b") == "thumbnails/a%20b.jpg"
    assert thumbnails.embedded("a b") == "data:image/jpeg;base64,eA=="
