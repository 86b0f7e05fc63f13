"""An index as a parquet table, which vector databases read."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from sdr_lightning.functional.search import chunks
from sdr_lightning.paths import check_output, write_atomically
from sdr_lightning.retrieval.index import KINDS, Index

_ROWS = 65536  # written at a time


def write_parquet(index: Index, path: Path) -> int:
    """Write all items of an index with their embeddings, images before captions.

    Columns: ``kind`` (``image`` or ``caption``), ``id`` (unique within the kind), ``image`` (id of the image, or of the image
    of the caption), ``path`` (file of the image; null if there is none), ``captions`` (those of the image, or the caption
    alone), and ``vector``, a list of fixed size of float32, L2-normalised. The metadata of the schema has the fingerprint of the
    model, ``sdr_model``.

    Args:
        index: the index.
        path: a new file; it appears whole or not at all.

    Returns:
        Number of rows.

    Raises:
        ValueError: the file exists, or cannot be written.
    """
    check_output(path)
    schema = _schema(index)

    def write(part: Path) -> None:
        with pq.ParquetWriter(part, schema) as writer:
            for kind in KINDS:
                gallery = index.galleries[kind]
                for rows in chunks(len(gallery), _ROWS):
                    writer.write_table(_table(index, kind == "images", rows, schema))

    write_atomically(path, write)
    return sum(len(index.galleries[kind]) for kind in KINDS)


def _schema(index: Index) -> pa.Schema:
    model = index.record["model"]
    text = pa.string()
    columns = [(name, text) for name in ("kind", "id", "image", "path")]
    columns += [("captions", pa.list_(text)), ("vector", pa.list_(pa.float32(), model["width"]))]
    return pa.schema(columns, metadata={"sdr_model": model["fingerprint"]})


def _table(index: Index, is_image: bool, rows: slice, schema: pa.Schema) -> pa.Table:
    gallery = index.galleries["images" if is_image else "captions"]
    images = index.galleries["images"].items
    items = [gallery.items[row] for row in range(rows.start, rows.stop)]
    names = [item["id"] if is_image else item["image"] for item in items]
    shown = items if is_image else [images[images.rows[name]] if name in images.rows else None for name in names]
    vectors = gallery.embeddings[rows]
    return pa.table(
        {
            "kind": ["image" if is_image else "caption"] * len(items),
            "id": [item["id"] for item in items],
            "image": names,
            "path": [None if image is None else index.path(image) for image in shown],
            "captions": [item["captions"] if is_image else [item["caption"]] for item in items],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1]),
        },
        schema=schema,
    )
