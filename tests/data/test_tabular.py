import csv
import json
import unicodedata
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sdr_lightning.data.holdout import held_out
from sdr_lightning.data.table import SPLITS
from sdr_lightning.data.tabular import TabularSource
from tests.data.pictures import RAGGED, TOLD, captions_of, check_ragged, numbered_ids, numbers, write_pictures

SUFFIXES = [".csv", ".tsv", ".jsonl", ".parquet"]
EVERYTHING_TRAINS: dict[str, Any] = {"val_share": 0.0, "test_share": 0.0}


def write(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return str(path)


def refused(path: Path, message: str, **options: Any) -> None:
    """The table is refused with a message that names it."""
    source = TabularSource("mine", str(path), str(path.parent), **{**EVERYTHING_TRAINS, **options})
    with pytest.raises(ValueError, match=message) as caught:
        source.table("train")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_row_per_caption(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path, RAGGED)
    rows = [{"image": name, "caption": text} for name in RAGGED for text in captions_of(name) or [" "]]
    path = write(tmp_path / f"t{suffix}", rows)
    source = TabularSource("mine", path, str(tmp_path), skip_empty=True, **EVERYTHING_TRAINS)
    check_ragged(source, TOLD, numbered_ids(TOLD), bare="bare.png")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_per_caption(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path, RAGGED)
    columns = [f"caption {k}" for k in range(20)]
    rows = [{"image": f" {n} ", **dict(zip_longest(columns, captions_of(n), fillvalue=""))} for n in RAGGED]
    path = write(tmp_path / f"t{suffix}", rows)
    source = TabularSource("mine", path, str(tmp_path), caption_columns=columns, skip_empty=True, **EVERYTHING_TRAINS)
    check_ragged(source, TOLD, numbered_ids(TOLD), bare="bare.png")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_list_of_captions(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path, RAGGED)
    path = write(tmp_path / f"t{suffix}", [{"path": name, "texts": captions_of(name)} for name in RAGGED])
    source = TabularSource(
        "mine", path, str(tmp_path), image_column="path", caption_columns=["texts"], **EVERYTHING_TRAINS
    )
    check_ragged(source, TOLD, numbered_ids(TOLD), bare="bare.png")


@pytest.mark.parametrize(
    ("suffix", "form"),
    [
        (".csv", '[\'a "dog"\', "a dog\'s ball"]'),
        (".tsv", '["a \\"dog\\"", "a dog\'s ball"]'),
        (".jsonl", '[\'a "dog"\'\n "a dog\'s ball"]'),
        (".parquet", '[\'a "dog"\', "a dog\'s ball"]'),
    ],
)
def test_printed_list_of_captions_is_parsed(tmp_path: Path, suffix: str, form: str) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    rows = [{"image": "a.png", "caption": form}, {"image": "b.png", "caption": "[sic] a ['dog']"}]
    path = write(tmp_path / f"t{suffix}", rows)
    table = TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS).table("train")
    assert table.captions == ['a "dog"', "a dog's ball", "[sic] a ['dog']"]


def test_printed_lists_by_hand(tmp_path: Path) -> None:
    for cell, captions in [
        ('["\\\\ud83d\\\\ude00 dog", "1\\\\/2 cup"]', ["😀 dog", "1/2 cup"]),  # as json.dumps writes it
        ("[]", []),
        ("[not a list]", ["[not a list]"]),
        ("['x', nan]", None),
        ('["x", null]', None),
        ("[None, 'x']", None),
    ]:
        write_pictures(tmp_path, ["a.png", "b.png"])
        path = write(
            tmp_path / "t.csv",
            [{"image": "b.png", "caption": "last"}, {"image": "a.png", "caption": cell.replace("\\\\", "\\")}],
        )
        if captions is None:
            refused(tmp_path / "t.csv", "row 2 has .* under 'caption', expected text or a list of texts")
        else:
            table = TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS).table("train")
            assert table.captions == ["last", *captions]


def test_multiline_captions_are_read(tmp_path: Path) -> None:
    for text in [
        'image,caption\na.png,"A beach at dusk\nSource: Flickr, www.flickr.com"\n',
        'image,caption\na.png,"see b.png\nalso c.png, which is nice"\n',
        'caption,image\n"By mr.smith\nhello, mr.smith",a.png\n',
        "image , caption\na.png,x\n",
    ]:
        write_pictures(tmp_path, ["a.png"])
        (tmp_path / "t.csv").write_text(text)
        assert (
            len(TabularSource("mine", f"{tmp_path}/t.csv", str(tmp_path), **EVERYTHING_TRAINS).table("train").captions)
            == 1
        )


def test_a_tsv_without_quoting_keeps_every_row(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    write_pictures(tmp_path, names)
    texts = ['"fresh fish" on a table', '"fresh fish on a table', 'a "wooden" board"']
    (tmp_path / "t.tsv").write_text("\n".join(["caption\timage", *map("\t".join, zip(texts, names, strict=True))]))
    table = TabularSource("mine", f"{tmp_path}/t.tsv", str(tmp_path), **EVERYTHING_TRAINS).table("train")
    assert table.image_ids == names
    assert table.captions == texts


def test_a_name_in_another_unicode_normalisation(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café/é.png") for form in ("NFC", "NFD"))
    write_pictures(tmp_path, [decomposed])
    path = write(tmp_path / "t.csv", [{"image": composed, "caption": "x"}])
    source = TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS)
    assert source.table("train").image_ids == [composed]
    assert numbers(source.images("train")) == [0]
    path = write(tmp_path / "t.csv", [{"image": name, "caption": "x"} for name in (composed, decomposed)])
    with pytest.raises(ValueError, match="differs from another's by its Unicode normalisation only"):
        TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS).table("train")


def test_lone_surrogate_is_replaced_and_reported(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "t.jsonl").write_text('\ufeff{"image": "a.png", "caption": "a dog \\ud83d"}\n', encoding="utf-8")
    source = TabularSource("mine", f"{tmp_path}/t.jsonl", str(tmp_path), **EVERYTHING_TRAINS)
    assert source.table("train").captions == ["a dog \ufffd"]
    (problem,) = source.problems("train")
    assert (problem.what, problem.fatal) == ("captions hold U+FFFD, a character that was lost", False)


def test_an_image_column_of_another_kind(tmp_path: Path) -> None:
    for cell, holds in [(b"\x89PNG", "image bytes"), ({"bytes": b"x", "path": "a"}, "structs"), (["a.png"], "lists")]:
        write(tmp_path / "t.parquet", [{"image": cell, "caption": "x"}])
        refused(tmp_path / "t.parquet", f"row 1: the column 'image' holds {holds}.*expected the path of an image file")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_delimiters_and_quotes_in_captions_are_preserved(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path, ["a, b.png"])
    texts = ['a "red", round\tball', "two\nlines", '"naïve 猫"']
    path = write(tmp_path / f"t{suffix}", [{"image": "a, b.png", "caption": text} for text in texts])
    table = TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS).table("train")
    assert table.image_ids == ["a, b.png"]
    assert table.captions == ['a "red", round ball', "two lines", '"naïve 猫"']


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "t.csv").write_text("\ufeffimage,caption\r\na.png,a word\r\n", encoding="utf-8", newline="")
    source = TabularSource("mine", f"{tmp_path}/t.csv", str(tmp_path), **EVERYTHING_TRAINS)
    assert source.table("train").captions == ["a word"]


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "t.jsonl").write_text('\n{"image": "a.png", "caption": "x"}\n\n', encoding="utf-8")
    source = TabularSource("mine", f"{tmp_path}/t.jsonl", str(tmp_path), **EVERYTHING_TRAINS)
    assert source.table("train").captions == ["x"]


def test_a_split_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_ROOT", str(tmp_path))
    spellings = ["train", "Training", "val", "valid", " validation ", "DEV", "test", "testing"]
    names = [f"{k}.png" for k in range(8)]
    write_pictures(tmp_path, names)
    write(
        tmp_path / "t.csv",
        [{"image": n, "caption": f"of {n}", "part": s} for n, s in zip(names, spellings, strict=True)],
    )
    source = TabularSource("mine", "$OWN_ROOT/t.csv", "$OWN_ROOT", split_column="part")
    assert source.splits == SPLITS
    assert [numbers(source.images(split)) for split in SPLITS] == [[0, 1], [2, 3, 4, 5], [6, 7]]
    assert source.table("val").captions == [f"of {k}.png" for k in (2, 3, 4, 5)]


def test_an_image_with_rows_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    rows = [("a.png", "train"), ("b.png", "test"), ("b.png", "train")]
    path = write(tmp_path / "t.csv", [{"image": i, "caption": "x", "split": s} for i, s in rows])
    source = TabularSource("mine", path, str(tmp_path), split_column="split")
    with pytest.raises(ValueError, match=r"mine train: 1 of 2 images are in another split .*: b.png \(test\)"):
        source.table("train")


def test_splits_are_drawn_by_image_so_that_no_captions_are_divided(tmp_path: Path) -> None:
    names = [f"{k}.png" for k in range(40)]
    write_pictures(tmp_path, names)
    path = write(tmp_path / "t.csv", [{"image": n, "caption": f"{n} {k}"} for k in range(3) for n in names])
    source = TabularSource("mine", path, str(tmp_path), val_share=0.3, test_share=0.2, split_seed=7)
    drawn = held_out(names, {"val": 0.3, "test": 0.2}, seed=7)
    for split in SPLITS:
        table = source.table(split)
        expected = [number for number in range(40) if drawn[number] == split]
        assert numbers(source.images(split)) == expected
        assert table.captions == [f"{names[number]} {k}" for number in expected for k in range(3)]


def test_shares_that_leave_nothing_to_train_on(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [{"image": "a.png", "caption": "x"}])
    with pytest.raises(ValueError, match=r"must be in .* and leave something to train on"):
        TabularSource("mine", path, str(tmp_path), val_share=0.5, test_share=0.5).table("train")


def test_malformed_tables(tmp_path: Path) -> None:
    for name, text, message in [
        ("t.csv", "image,caption\na.png,a dog\nb.png,a dog, and a cat\n", "line 3 has more cells than the header"),
        (
            "t.csv",
            'image,caption\na.png,"a dog\nb.png,a cat\n',
            "begins in line 2: .*close or double its quotation marks",
        ),
        (
            "t.csv",
            'image,caption\na.png,"dog" runs\nb.png,x\n',
            "begins in line 2: .*close or double its quotation marks",
        ),
        ("t.csv", 'image,caption\na.png,"a dog\nb.png,a cat\nc.png,a fox"\n', "line 2: the cell .* holds whole rows"),
        ("t.csv", 'image,caption\na.jpg,"hello\nb.PNG,x\nc.png,y"\nd.jpg,z\n', "line 2: the cell .* holds whole rows"),
        (
            "t.csv",
            'caption,image\n"hello,a.jpg\nx",b.jpg\ny,c.jpg\n',
            "line 2: the cell 'hello,a.jpg.* holds whole rows",
        ),
        ("t.csv", "image;caption\na.png;x\n", "has cells separated by semicolons, expected commas"),
        ("t.csv", "image,caption,caption\na.png,x,y\n", "has two columns 'caption': rename one"),
        (
            "t.jsonl",
            '{"image": "a.png", "caption": "x", "caption": "y"}\n',
            "line 1: an object has one key twice",
        ),
        ("t.jsonl", '{"image": "a\\ud83d.png", "caption": "x"}\n', "lone surrogate"),
        ("t.csv", "path,caption\na.png,x\n", "row 1 has no 'image'; it has path, caption: set .*image_column"),
        ("t.csv", "image,text\na.png,x\n", "row 1 has no 'caption'; it has image, text: set .*caption_columns"),
        ("t.csv", "image,caption\na.png,x\n ,y\n", "row 2 names no image under 'image'"),
        ("t.csv", "caption,image\nx,a.png\ny\n", "row 2 names no image under 'image'"),
        ("t.csv", "image,caption\n", "holds no rows"),
        ("t.csv", "", "holds no rows"),
        ("t.tsv", "image\tcaption\na.png\tx\ty\n", "line 2 has more cells than the header"),
        ("t.jsonl", '{"image": "a.png", "caption": "x"}\n{"image": "b.p\n', "line 2 is not JSON"),
        ("t.jsonl", '["a.png", "x"]\n', "line 1 is no object"),
        ("t.jsonl", '{"image": null, "caption": "x"}\n', "row 1 names no image"),
        ("t.jsonl", '{"image": "a.png"}\n', "row 1 has no 'caption'; it has image"),
        ("t.jsonl", '{"image": "a.png", "caption": 5}\n', "row 1 has 5 under 'caption', expected text or a list of"),
        ("t.jsonl", '{"image": "a.png", "caption": ["x", {}]}\n', r"row 1 has \['x', {}\] under 'caption'"),
        ("t.parquet", "PAR1 and so on", "is not a parquet file"),
        ("t.parquet", "", "is not a parquet file"),
        ("t.xlsx", "", "ends in '.xlsx', expected one of .csv, .tsv, .jsonl, .parquet"),
    ]:
        (tmp_path / name).write_text(text, encoding="utf-8")
        refused(tmp_path / name, message)


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write(path, [{"image": "a.png", "caption": "x"}])
    path.write_bytes(path.read_bytes()[:-20])
    refused(path, "is not a parquet file")


def test_another_encoding(tmp_path: Path) -> None:
    for suffix in [".csv", ".tsv", ".jsonl"]:
        path = tmp_path / f"t{suffix}"
        write(path, [{"image": "a.png", "caption": "x"}])
        path.write_bytes(path.read_bytes().replace(b"x", "café".encode("latin-1")))
        refused(path, "is not UTF-8 text: .*; convert it first")


def test_no_table(tmp_path: Path) -> None:
    refused(tmp_path / "none.csv", "no table at")


def test_an_unknown_split(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "caption": "x", "split": split} for split in ("train", "held out")]
    write(tmp_path / "t.csv", rows)
    refused(tmp_path / "t.csv", "row 2 has the split 'held out', expected one of train, training", split_column="split")
    refused(tmp_path / "t.csv", "row 1 has no 'fold'; it has image, caption, split", split_column="fold")


def test_an_empty_caption(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        write_pictures(tmp_path, ["a.png", "b.png"])
        rows = [{"image": "a.png", "caption": ""}, {"image": "b.png", "caption": "x"}]
        path = write(tmp_path / f"t{suffix}", rows)
        source = TabularSource("mine", path, str(tmp_path), **EVERYTHING_TRAINS)
        with pytest.raises(ValueError, match=r"mine train: 1 of 2 captions are empty, first: a.png#0; .*skip_empty"):
            source.table("train")


def test_caption_columns_are_a_list() -> None:
    for columns in ["caption", []]:
        with pytest.raises(ValueError, match="caption_columns must be a list of names"):
            TabularSource("mine", "t.csv", "images", caption_columns=columns)
