"""The table of an index, as read back by pyarrow and by vector databases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from sdr_lightning import Index
from sdr_lightning.cli.main import main
from sdr_lightning.retrieval import parquet


@pytest.fixture(params=[7, 65536], ids=["in parts", "at once"])
def table_of(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(parquet, "_ROWS", request.param)
    return tmp_path / "my.parquet"


def test_every_item_is_in_the_table(table_of: Path, scenes: Index, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(scenes.folder), "--parquet", str(table_of)]) == 0
    assert capsys.readouterr().out == f"120 items in {table_of}\n"
    table = pq.read_table(table_of)
    images, captions = scenes.galleries["images"], scenes.galleries["captions"]
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    assert (vectors == np.concatenate([images.embeddings, captions.embeddings])).all()
    assert table.schema.metadata[b"sdr_model"].decode() == scenes.model.fingerprint()
    first, last = table.slice(0, 1).to_pylist()[0], table.slice(119, 1).to_pylist()[0]
    item, caption = images.items[0], captions.items[99]
    path = str(scenes.folder / item["path"])
    assert first | {"vector": 0} == {
        **{"kind": "image", "id": item["id"], "image": item["id"], "path": path},
        **{"captions": item["captions"], "vector": 0},
    }
    assert (last["kind"], last["id"], last["captions"]) == ("caption", caption["id"], [caption["caption"]])
    assert last["image"] == caption["image"]
    assert Path(last["path"]).is_file()


def test_pictures_alone_and_a_file_that_is_there(
    photos: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parquet.write_parquet(photos, tmp_path / "my.parquet") == len(photos.galleries["images"])
    content = (tmp_path / "my.parquet").read_bytes()
    assert main(["index", str(photos.folder), "--parquet", str(tmp_path / "my.parquet")]) == 2
    assert "exists and was not written by this command" in capsys.readouterr().err
    assert (tmp_path / "my.parquet").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["my.parquet"]


def test_lancedb_finds_what_exact_search_finds(scenes: Index, tmp_path: Path) -> None:
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed: an engine to use an index in")
    parquet.write_parquet(scenes, tmp_path / "my.parquet")
    table = lancedb.connect(tmp_path / "lance").create_table("my", pq.read_table(tmp_path / "my.parquet"))
    query = scenes.model.encode_texts("a red cube")[0]
    found = table.search(query).distance_type("cosine").where("kind = 'image'", prefilter=True).limit(5).to_list()
    assert [row["id"] for row in found] == [hit.id for hit in scenes.search("a red cube", k=5)]


def test_qdrant_finds_what_exact_search_finds(scenes: Index, tmp_path: Path) -> None:
    reason = "qdrant-client is not installed: an engine to use an index in"
    qdrant = pytest.importorskip("qdrant_client", reason=reason)
    parquet.write_parquet(scenes, tmp_path / "my.parquet")
    rows = pq.read_table(tmp_path / "my.parquet").to_pylist()
    points = [qdrant.models.PointStruct(id=n, vector=row.pop("vector"), payload=row) for n, row in enumerate(rows)]
    client = qdrant.QdrantClient(":memory:")
    size, cosine = scenes.model.width, qdrant.models.Distance.COSINE
    client.create_collection("my", qdrant.models.VectorParams(size=size, distance=cosine))
    client.upload_points("my", points)
    only = qdrant.models.FieldCondition(key="kind", match=qdrant.models.MatchValue(value="image"))
    query = scenes.model.encode_texts("a red cube")[0]
    found = client.query_points("my", query, query_filter=qdrant.models.Filter(must=[only]), limit=5).points
    assert [point.payload["id"] for point in found] == [hit.id for hit in scenes.search("a red cube", k=5)]
