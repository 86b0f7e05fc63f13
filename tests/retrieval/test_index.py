"""An index: building, continuing, updating, searching, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdr_lightning import Retriever, load
from sdr_lightning.cli.main import main
from sdr_lightning.retrieval import Index, collection
from sdr_lightning.retrieval.nearest import nearest
from sdr_lightning.training.checkpoints.interruption import Stopped
from tests.retrieval.conftest import COLOURS


def ids(hits: list[Any]) -> list[str]:
    return [hit.id for hit in hits]


def test_a_folder_is_indexed_and_broken_pictures_are_listed(photos: Index, model: Retriever, folder: Path) -> None:
    expected = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("p*.png"))
    assert [item["id"] for item in photos.galleries["images"].items] == expected
    files = [folder / name for name in expected]
    assert photos.galleries["images"].embeddings == pytest.approx(model.encode_images(files), abs=1e-6)
    assert [item.name for item in photos.left_out] == ["deep/broken.jpg"]
    assert "cannot read the image" in photos.left_out[0].reason
    assert photos.galleries["images"].mean == pytest.approx(model.encode_images(files).mean(axis=0), abs=1e-6)
    again = Index.open(photos.folder)
    assert again.model.fingerprint() == model.fingerprint()  # from the copy in the index


def test_every_direction_is_exact(scenes: Index, model: Retriever) -> None:
    images, captions = scenes.galleries["images"], scenes.galleries["captions"]
    text, picture = "a red cube", np.full((30, 30, 3), 90, np.uint8)
    for query, given in (
        (model.encode_texts(text), {"text": text}),
        (model.encode_images([picture]), {"image": picture}),
    ):
        for within, gallery in (("images", images), ("captions", captions)):
            scores = (query.astype(np.float64) @ gallery.embeddings.T.astype(np.float64))[0].astype(np.float32)
            order = np.argsort(-scores, kind="stable")[:5]
            hits = scenes.search(**given, within=within, k=5)
            assert ids(hits) == [gallery.items[row]["id"] for row in order.tolist()]
            assert [hit.score for hit in hits] == pytest.approx(scores[order])
    hit = scenes.search(text, within="captions", k=1)[0]
    assert hit.captions[0] in images.items[images.items.rows[hit.image]]["captions"]


def test_search_in_both_is_centred_so_that_each_modality_surfaces(scenes: Index, model: Retriever) -> None:
    query = model.encode_texts("a red cube").astype(np.float64)
    sides = []
    for kind in ("images", "captions"):
        rows = np.asarray(scenes.galleries[kind].embeddings, np.float64)
        shifted = rows - rows.mean(axis=0)
        sides.append(shifted / np.linalg.norm(shifted, axis=1, keepdims=True))
    query -= scenes.galleries["captions"].embeddings.astype(np.float64).mean(axis=0)
    query /= np.linalg.norm(query)
    scores = (np.concatenate(sides) @ query[0]).astype(np.float32)
    hits = scenes.search("a red cube", within="both", k=30)
    assert [hit.score for hit in hits] == pytest.approx(np.sort(scores)[::-1][:30], abs=1e-6)
    assert {hit.kind for hit in hits} == {"image", "caption"}


def test_an_image_of_the_index_finds_others(photos: Index) -> None:
    hits = photos.search(like="p0.png", k=100)
    assert "p0.png" not in ids(hits)
    assert len(hits) == len(COLOURS) - 1
    image = Path(photos.galleries["images"].items[0]["path"])
    assert ids(photos.search(image=image, k=100))[0] == "deep/er/p1.png" == photos.galleries["images"].items[0]["id"]


def test_re_ranking_orders_the_first_items_by_the_matching_head(photos: Index, scenes: Index, model: Retriever) -> None:
    first = photos.search("a red cube", k=7)
    hits = photos.search("a red cube", k=6, rerank=4)
    logits = {hit.id: float(model.match(hit.path, ["a red cube"])[0]) for hit in first[:4]}
    assert ids(hits) == [*sorted(logits, key=lambda name: -logits[name]), *ids(first[4:6])]
    assert [hit.match for hit in hits] == pytest.approx([*sorted(logits.values(), reverse=True), None, None])
    picture = np.full((30, 30, 3), 90, np.uint8)
    first = scenes.search(image=picture, within="captions", k=3)
    matches = model.match(picture, [hit.captions[0] for hit in first])
    assert [hit.match for hit in scenes.search(image=picture, within="captions", k=3, rerank=3)] == pytest.approx(
        sorted(matches.tolist(), reverse=True), abs=1e-5
    )


@pytest.mark.parametrize("repeated", [False, True])
def test_nearest_equals_brute_force(repeated: bool) -> None:
    rng = np.random.default_rng(2)
    gallery = rng.standard_normal((3000, 16)).astype(np.float32)
    if repeated:  # more ties than candidates
        gallery[100:200] = gallery[7]
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    query = gallery[7:8] + (0 if repeated else 0.1)
    scores = (query.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    found = nearest(query, gallery, 20)
    assert (found.rows == order).all()
    assert (found.scores == np.take_along_axis(scores, order, axis=1)).all()


def test_approximate_search_has_exact_scores(scenes: Index) -> None:
    assert scenes.record["images"]["graph_recall_at_10"] == 100  # a gallery smaller than the search width
    assert scenes.search("a cone", approximate=True) == scenes.search("a cone")


def contents(index: Path) -> dict[str, bytes]:
    names = (path for path in index.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(index)): path.read_bytes() for path in names}


def test_an_interrupted_build_continues_with_the_same_bytes(
    photos: Index, model: Retriever, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = Retriever.encode_inputs, []

    def killed(self: Retriever, inputs: Any) -> Any:
        calls.append(len(inputs))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, inputs)

    output = tmp_path / "photos.index"
    monkeypatch.setattr(Retriever, "encode_inputs", killed)
    with pytest.raises(KeyboardInterrupt):
        Index.build(model, output, images=folder, batch_size=3)
    with (tmp_path / "photos.index.part/images.f32").open("ab") as rows:
        rows.write(b"half a batch")
    with (tmp_path / "photos.index.part/images.journal").open("ab") as journal:
        journal.write(b'{"stop": 9, "ro')
    with pytest.raises(ValueError, match=r"an unfinished build is in .*: continue it with --resume"):
        Index.build(model, output, images=folder, batch_size=3)
    with pytest.raises(ValueError, match=r"is of other settings \(batch_size\)"):
        Index.build(model, output, images=folder, batch_size=2, resume=True)
    assert not output.exists()
    calls[:] = [0, 0, 0]
    Index.build(model, output, images=folder, batch_size=3, resume=True)
    assert calls == [0, 0, 0, 2]  # only the batch that was not finished
    assert contents(output) == contents(photos.folder)
    assert not (tmp_path / "photos.index.part").exists()


def test_a_signal_stops_between_batches(model: Retriever, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    encode = Retriever.encode_inputs

    def signalled(self: Retriever, inputs: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return encode(self, inputs)

    monkeypatch.setattr(Retriever, "encode_inputs", signalled)
    with pytest.raises(Stopped, match=r"3 of 8 images are kept in .*part: continue with --resume"):
        Index.build(model, tmp_path / "a.index", images=folder, batch_size=3)


def test_pictures_are_added_and_removed(photos: Index, model: Retriever, folder: Path, tmp_path: Path) -> None:
    some = tmp_path / "photos"
    shutil.copytree(folder, some)
    (some / "p0.png").rename(tmp_path / "p0.png")
    (some / "deep/broken.jpg").rename(tmp_path / "broken.jpg")
    index = Index.build(model, tmp_path / "some.index", images=some, batch_size=3)
    before = index.search("a cone", k=100)
    (tmp_path / "p0.png").rename(some / "p0.png")
    (tmp_path / "broken.jpg").rename(some / "deep/broken.jpg")
    added = index.add(some)
    assert index.search("a cone", k=100) == before  # the old files are still open
    assert sorted(ids(added.search("a cone", k=100))) == sorted(ids(photos.search("a cone", k=100)))
    assert added.search("a cone", k=100) != before
    assert [item.name for item in added.left_out] == ["deep/broken.jpg"]
    assert added.galleries["images"].mean == pytest.approx(photos.galleries["images"].mean, abs=1e-6)
    with pytest.raises(ValueError, match="was updated since it was opened"):
        index.remove(["p0.png"])
    with pytest.raises(ValueError, match=r"1 ids are not in .*first 'none': nothing was removed"):
        added.remove(["p0.png", "none"])
    removed = added.remove(["p0.png"])
    assert removed.search("a cone", k=100) == before
    assert {path.suffix for path in removed.folder.iterdir()} == {".json", ".jsonl", ".npy", ""}
    assert len(list(removed.folder.glob("images-*"))) == 2
    Index.open(removed.folder).search("a cone")
    with pytest.raises(ValueError, match="nothing would be left"):
        removed.remove([item["id"] for item in removed.galleries["images"].items])
    shutil.copytree(folder, tmp_path / "other/photos")
    with pytest.raises(ValueError, match=r"has an image 'deep/er/p1.png' already, of the file"):
        removed.add(tmp_path / "other/photos")


def test_removing_an_image_removes_its_captions(scenes: Index, tmp_path: Path) -> None:
    shutil.copytree(scenes.folder, tmp_path / "copy.index")
    index = Index.open(tmp_path / "copy.index")
    image, other = (index.galleries["images"].items[row] for row in (0, 1))
    own = [item["id"] for item in index.galleries["captions"].items if item["image"] == image["id"]]
    caption = next(item for item in index.galleries["captions"].items if item["image"] == other["id"])
    left = index.remove([image["id"], caption["id"]])
    captions = left.galleries["captions"].items.rows
    assert len(captions) == len(index.galleries["captions"]) - len(own) - 1
    assert not captions.keys() & {*own, caption["id"]}
    assert left.galleries["images"].items[0]["captions"] == other["captions"][1:]
    assert left.search("a cone", approximate=True) == left.search("a cone")


def test_copies_of_pictures_make_an_index_stand_alone(model: Retriever, folder: Path, tmp_path: Path) -> None:
    some, index = tmp_path / "photos", tmp_path / "a.index"
    shutil.copytree(folder, some)
    (some / "p2.png").rename(tmp_path / "p2.png")
    Index.build(model, index, images=some, copy_pictures=True)
    (tmp_path / "p2.png").rename(some / "p2.png")
    Index.open(index).add(some)
    shutil.rmtree(some)
    index = index.rename(tmp_path / "moved.index")
    hits = Index.open(index, model).search("a cone", k=100, rerank=3)
    assert hits[2].match is not None
    assert sorted(Path(hit.path or "") for hit in hits) == sorted((index / "pictures").iterdir())
    assert len(hits) == len(COLOURS)
    left = Index.open(index).remove(["p2.png", "p0.png"])
    assert len(list((index / "pictures").iterdir())) == len(left.galleries["images"]) == len(COLOURS) - 2


def _use(**options: Any) -> Callable[[Index], Any]:
    return lambda index: index.search(**options)


@pytest.mark.parametrize(
    ("use", "complaint"),
    [
        (_use(text="  "), "the query is empty"),
        (_use(text="a", k=0), "expected k of at least 1"),
        (_use(), "a query is either words, or a picture"),
        (_use(text="a", within="captions"), "this index has no captions: search in images, or build it with --data"),
        (_use(text="a", within="both"), "this index has no captions"),
        (_use(image="missing.jpg"), "cannot read the image missing.jpg"),
        (_use(like="missing.jpg"), "no image 'missing.jpg' in this index"),
        (_use(text="a", approximate=True), "this index has no graph"),
        (_use(image=np.zeros((4, 4, 3), np.uint8), rerank=5), "re-ranking scores a caption with an image"),
    ],
)
def test_unusable_queries_give_one_line(photos: Index, use: Callable[[Index], Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        use(photos)


@pytest.mark.parametrize("query", ["狗在海滩上跑", "собака", "🐕", "' OR 1=1 --", "word " * 400])
def test_any_words_find_all_items_if_k_is_large(photos: Index, query: str) -> None:
    assert len(photos.search(query, k=10_000)) == len(COLOURS)


def _changed(index: Path) -> None:
    file = next(index.glob("images-*.npy"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _missing(index: Path) -> None:
    next(index.glob("images-*.jsonl")).unlink()


def _other_format(index: Path) -> None:
    (index / "index.json").write_text('{"format": "sdr-index-0"}')


def _truncated(index: Path) -> None:
    (index / "index.json").write_text((index / "index.json").read_text()[:-20])


def _other_model(index: Path) -> None:
    record = json.loads((index / "index.json").read_text())
    record["model"]["fingerprint"] = "0" * 64
    (index / "index.json").write_text(json.dumps(record))


def _no_model(index: Path) -> None:
    shutil.rmtree(index / "model")


def _lacking(index: Path) -> None:
    record = json.loads((index / "index.json").read_text())
    del record["means"], record["captions"]
    (index / "index.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_changed, "is damaged: the checksum of images-.*npy is not that in index.json"),
        (_missing, "is damaged: images-.*jsonl is missing"),
        (_other_format, "has the format sdr-index-0, expected sdr-index-1"),
        (_truncated, "index.json is not JSON"),
        (_other_model, "is an index of another model: its embeddings are of 000000000000"),
        (_no_model, "no model at"),
        (_lacking, "is damaged: index.json lacks"),
    ],
)
def test_a_damaged_index_gives_one_line(
    photos: Index, tmp_path: Path, capsys: Any, spoil: Callable[[Path], None], complaint: str
) -> None:
    index = tmp_path / "copy.index"
    shutil.copytree(photos.folder, index)
    spoil(index)
    assert main(["search", str(index), "a cone"]) == 2
    message = capsys.readouterr().err.splitlines()[0]
    assert re.search(complaint, message), message


def test_an_index_is_not_opened_with_another_model(photos: Index, run: Path) -> None:
    other = load(run)
    with torch.no_grad():
        next(other.encoder.image_projection.parameters()).add_(1)
    with pytest.raises(ValueError, match=r"is an index of another model: .* the model given is"):
        Index.open(photos.folder, other)


def test_from_the_command_line(run: Path, folder: Path, tmp_path: Path, capsys: Any) -> None:
    index = str(tmp_path / "my.index")
    build = ["index", str(run), "--images", str(folder), "--output", index]
    assert main(build) == 0
    shown = capsys.readouterr().out
    assert "7 images and 0 captions in" in shown
    assert "left out, because they cannot be read: 1 pictures" in shown
    assert "    deep/broken.jpg: cannot read" in shown
    assert main(build) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["search", index, "a red cube", "--json", "-k", "2", "--rerank", "3"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert [hit["rank"] for hit in hits] == [1, 2]
    assert hits[0]["match"] >= hits[1]["match"]
    assert main(["search", index, "--image", str(folder / "p2.png")]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[0].split() == ["rank", "score", "item"]  # the index has no captions
    assert table.splitlines()[1].split()[:2] == ["1", "1.0000"]
    assert main(["index", index, "--remove", "p2.png", "p4.png"]) == 0
    assert "5 images" in capsys.readouterr().out
    assert main(["index", "--add", str(folder), index]) == 0
    assert "7 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["index", "x"], "to build an index give --output"),
        (["index", "x", "--images", "a", "--data", "b", "--output", "c"], "to build an index give --output"),
        (["index", "x", "--add", "a", "--output", "c"], "do not go together"),
        (["index", "x", "--remove", "a", "--resume"], "--resume continues a build"),
        (["index", "x", "--images", "a", "--output", "c", "--split", "val"], "--split is an option of --data"),
        (["index", "none", "--remove", "a"], "no index at none"),
        (["search", "x"], "expected one query"),
        (["search", "x", ""], "no index at x"),
    ],
)
def test_unusable_options_give_one_line(arguments: list[str], complaint: str, capsys: Any) -> None:
    assert main(arguments) == 2
    assert complaint in capsys.readouterr().err.splitlines()[0]


def test_a_folder_without_pictures_gives_one_line(model: Retriever, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no pictures in .*: expected files that end in"):
        Index.build(model, tmp_path / "a.index", images=tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 pictures can be read, first 'a.jpg'"):
        Index.build(model, tmp_path / "a.index", images=tmp_path)
    assert not (tmp_path / "a.index.part").exists()
    with pytest.raises(ValueError, match="no folder at"):
        collection.picture_files(tmp_path / "none")
