import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

from sdr_lightning.data.huggingface import HuggingFaceSource
from sdr_lightning.data.images import Images
from sdr_lightning.data.table import SPLITS
from tests.data.pictures import RAGGED, TOLD, captions_of, check_ragged, numbered_ids, numbers, picture, write_pictures

PARTS = {"train": {0: 1, 1: 20}, "restval": {2: 3}, "val": {3: 5}, "test": {5: 2, 4: 1}}
"""Pictures of each part with the number of their captions."""

Rows = Sequence[dict[str, Any]]


@pytest.fixture(autouse=True)
def _caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written into the user's cache, and no bar is drawn."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(number: int, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture(number).save(file, kind)
    return file.getvalue()


def write(path: Path, rows: Rows) -> Path:
    """A parquet file; a column called ``image`` holds images of which the bytes are given."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(list(rows))
    if "image" in table.column_names:
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(path)
    return path


def write_tar(path: Path, samples: Sequence[dict[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, content in sample.items():
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def row(number: int, *captions: str | None) -> dict[str, Any]:
    return {"filename": f"{number}.png", "image": encoded(number), "caption": list(captions)}


def said_of(number: int, count: int) -> list[str]:
    return [f"picture {number} is  told {k} times\n" for k in range(count)]


# The published layouts


def per_image(folder: Path, names: dict[str, str], make: Callable[[int, list[str]], dict[str, Any]]) -> None:
    for part, name in names.items():
        rows = [make(number, said_of(number, count)) for number, count in PARTS[part].items()]
        write(folder / "data" / f"{name}-00000-of-00001.parquet", rows)


def coco_bitmind(folder: Path) -> None:
    names = {"train": "train", "restval": "restval", "val": "validation", "test": "test"}
    for part, name in names.items():
        rows: list[dict[str, Any]] = []
        for number, count in PARTS[part].items():
            shared = {"cocoid": 100 + number, "image": encoded(number), "split": part, "filename": f"{number}.png"}
            rows += [
                {**shared, "sentences": {"raw": raw, "tokens": raw.split(), "imgid": number, "sentid": k}}
                for k, raw in enumerate(said_of(number, count))
            ]
        rows.sort(key=lambda cells: cells["sentences"]["sentid"])  # an image's rows need not be neighbours
        write(folder / "data" / f"{name}-00000-of-00001.parquet", rows)


def coco_wds(folder: Path) -> None:
    for split, parts in {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}.items():
        for shard, part in enumerate(parts):
            samples = [
                {
                    "jpg": encoded(number, "JPEG"),
                    "json": json.dumps({"captions": said_of(number, count), "cocoid": 100 + number}).encode(),
                }
                for number, count in PARTS[part].items()
            ]
            write_tar(folder / f"{split}-{shard:06d}.tar", samples)


def coco_yerevann(folder: Path) -> None:
    def make(number: int, captions: list[str]) -> dict[str, Any]:
        where = {"filepath": "val2014" if number > 1 else "train2014", "filename": f"{number}.png"}
        picture_file = folder.parent / "images" / where["filepath"] / where["filename"]
        picture_file.parent.mkdir(parents=True, exist_ok=True)
        picture_file.write_bytes(encoded(number))
        return {**where, "sentids": [number], "imgid": number, "cocoid": 100 + number, "sentences": captions}

    per_image(folder, {"train": "train", "restval": "restval", "val": "validation", "test": "test"}, make)


def with_restval_in_train(folder: Path, names: dict[str, str], captions_under: str) -> None:
    def make(number: int, captions: list[str]) -> dict[str, Any]:
        return {
            "image": encoded(number),
            captions_under: captions,
            "sentids": [str(number)],
            "img_id": str(number),
            "filename": f"{number}.png",
        }

    per_image(folder, names, make)
    write(
        folder / "data" / "train-00001.parquet",
        [make(number, said_of(number, count)) for number, count in PARTS["restval"].items()],
    )


def flickr30k_anymodal(folder: Path) -> None:
    with_restval_in_train(folder, {"train": "train", "val": "validation", "test": "test"}, "alt_text")


def flickr30k_umaru97(folder: Path) -> None:
    with_restval_in_train(folder, {"train": "train", "val": "val", "test": "test"}, "caption")


def flickr30k_lmms(folder: Path) -> None:
    order = [4, 2, 0, 5, 3, 1]
    write(folder / "data" / "test-00000-of-00001.parquet", [row(number, "of the rows, not used") for number in order])
    entries = [
        {
            "filename": f"{number}.png",
            "split": part,
            "sentences": [{"raw": raw, "sentid": 100 * number + k} for k, raw in enumerate(said_of(number, count))],
        }
        for part, counts in PARTS.items()
        for number, count in counts.items()
    ]
    (folder.parent / "karpathy.json").write_text(json.dumps({"images": entries}), encoding="utf-8")


def vizwiz_lmms(folder: Path) -> None:
    def make(number: int, captions: list[str]) -> dict[str, Any]:
        return {"image_id": f"{number}.png", "image": encoded(number), "caption": captions, "text_detected": [True]}

    per_image(folder, {"test": "val"}, make)


def file_name(number: int) -> str:
    return f"{number}.png"


def coco_id(number: int) -> str:
    return str(100 + number)


class Layout(NamedTuple):
    write: Callable[[Path], None]
    identifier: Callable[[int], str]
    splits: tuple[str, ...] = SPLITS


LAYOUTS = {
    "coco_bitmind": Layout(coco_bitmind, coco_id),
    "coco_wds": Layout(coco_wds, coco_id),
    "coco_yerevann": Layout(coco_yerevann, file_name),
    "flickr30k_anymodal": Layout(flickr30k_anymodal, file_name),
    "flickr30k_lmms": Layout(flickr30k_lmms, file_name),
    "flickr30k_umaru97": Layout(flickr30k_umaru97, file_name),
    "vizwiz_lmms": Layout(vizwiz_lmms, file_name, ("test",)),
}


def test_every_layout_of_the_experiments_is_tested(experiments: Path) -> None:
    fragments = {file.stem: yaml.safe_load(file.read_text()) for file in (experiments / "sources").glob("*.yaml")}
    assert set(LAYOUTS) == {name for name, f in fragments.items() if f["class_path"].endswith("HuggingFaceSource")}


@pytest.mark.parametrize(
    ("streaming", "name"),
    [*((False, name) for name in LAYOUTS), (True, "coco_bitmind"), (True, "coco_wds"), (True, "flickr30k_lmms")],
)
def test_a_published_layout(
    name: str, streaming: bool, experiments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, hub = LAYOUTS[name], tmp_path / "hub"
    for variable in ("COCO_HUB", "FLICKR30K_HUB", "VIZWIZ_HUB"):
        monkeypatch.setenv(variable, str(hub))
    monkeypatch.setenv("COCO_ROOT", str(tmp_path / "images"))
    monkeypatch.setenv("KARPATHY_JSON", str(tmp_path / "karpathy.json"))
    layout.write(hub)
    fragment = yaml.safe_load((experiments / "sources" / f"{name}.yaml").read_text())
    source = HuggingFaceSource(**{**fragment["init_args"], "streaming": streaming})

    assert source.splits == layout.splits
    for split in source.splits:
        counts = {**PARTS["train"], **PARTS["restval"]} if split == "train" else PARTS[split]
        table = source.table(split)
        assert table.name == name.split("_")[0]
        assert table.image_ids == [layout.identifier(number) for number in counts]
        assert table.captions == [f"picture {n} is told {k} times" for n, count in counts.items() for k in range(count)]
        assert table.caption_image.tolist() == np.repeat(np.arange(len(counts)), list(counts.values())).tolist()
        assert numbers(source.images(split)) == list(counts)
        assert source.problems(split) == []


# Rows and columns


@pytest.mark.parametrize(("streaming", "form"), [(False, "lists"), (True, "rows")])
def test_a_ragged_collection(tmp_path: Path, form: str, streaming: bool) -> None:
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(RAGGED):
        cells = [captions_of(name)] if form == "lists" else captions_of(name) or [None]
        rows += [{"filename": name, "image": encoded(number), "caption": cell} for cell in cells]
    write(tmp_path / "data" / "train.parquet", rows)
    source = HuggingFaceSource(str(tmp_path / "data"), "mine", splits={"train": ["train"]}, streaming=streaming)
    check_ragged(source, TOLD, numbered_ids(TOLD), bare="bare.png")


@pytest.mark.parametrize("streaming", [False, True])
def test_annotations_with_a_folder_of_images(tmp_path: Path, streaming: bool) -> None:
    write_pictures(tmp_path / "images" / "png", RAGGED)
    write(tmp_path / "data" / "test.parquet", [{"name": n[:-4], "kind": "png", "c": captions_of(n)} for n in RAGGED])
    source = HuggingFaceSource(
        str(tmp_path / "data"),
        "mine",
        id_column="name",
        image_column=None,
        caption_column="c",
        splits={"test": ["test"]},
        image_folder=str(tmp_path / "images"),
        image_path="{kind}/{name}.png",
        streaming=streaming,
    )
    assert not source.images("test").one_after_another
    ids = [name[:-4] for name in TOLD]
    check_ragged(source, ids, numbered_ids(ids), bare="bare", split="test")


def test_images_that_the_folder_lacks(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [{"filename": name, "caption": "x"} for name in ("a.png", "b.png")])
    write_pictures(tmp_path, ["a.png"])
    source = HuggingFaceSource(
        str(tmp_path), "mine", image_column=None, image_folder=str(tmp_path), splits={"train": ["train"]}
    )
    with pytest.raises(ValueError, match=f"1 of 2 images are missing, first: {tmp_path}/b.png; complete the folder"):
        source.table("train")


def small(folder: Path, *rows: dict[str, Any], **options: Any) -> HuggingFaceSource:
    write(folder / "data" / "train.parquet", rows)
    return HuggingFaceSource(str(folder / "data"), "mine", splits={"train": ["train"]}, **options)


def test_images_are_upright_rgb(tmp_path: Path) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("L", (10, 6), 7).save(file, "PNG", exif=exif)
    for streaming in (False, True):
        images = small(tmp_path, {**row(0, "x"), "image": file.getvalue()}, streaming=streaming).images("train")
        ((_, image),) = images.stream()
        np.testing.assert_array_equal(image, np.full((10, 6, 3), 7, dtype=np.uint8))


def test_images_without_the_mark_of_an_image_column(tmp_path: Path) -> None:
    import datasets

    for cell in ({"bytes": encoded(2), "path": None}, encoded(2)):
        table = datasets.Dataset.from_list([{"filename": "2.png", "image": cell, "caption": "x"}])
        table.to_parquet(tmp_path / "train.parquet")
        source = HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"]})
        assert numbers(source.images("train")) == [2]


def test_images_without_a_row_are_missing(tmp_path: Path) -> None:
    entries = [
        {"filename": f"{n}.png", "split": split, "sentences": [{"raw": f"this is {n}", "sentid": n}]}
        for n, split in enumerate(["train", "restval", "val", "train"])
    ]
    (tmp_path / "karpathy.json").write_text(json.dumps({"images": entries}), encoding="utf-8")
    options = {"caption_column": None, "karpathy": str(tmp_path / "karpathy.json")}
    rows = [row(3), row(2), row(9), row(0)]
    source = small(tmp_path, *rows, **options)
    with pytest.raises(
        ValueError, match=r"mine train: 1 of 3 images are missing, first: no row for 1.png; .*skip_miss"
    ):
        source.table("train")
    assert source.absent("train") == ["1.png"]
    assert source.table("val").captions == ["this is 2"]
    skipping = small(tmp_path, *rows, **options, skip_missing=True)
    assert skipping.table("train").captions == ["this is 0", "this is 3"]
    assert numbers(skipping.images("train")) == [0, 3]


def shard(path: Path, colours: Sequence[tuple[int, str]], image: str = "png") -> None:
    write_tar(path, [{image: encoded(number), "txt": text.encode()} for number, text in colours])


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_keys_of_several_shards_are_told_apart(tmp_path: Path, streaming: bool) -> None:
    shard(tmp_path / "train-000.tar", [(0, "x"), (1, "y")])
    shard(tmp_path / "train-001.tar", [(2, "z")])
    shard(tmp_path / "val.tar", [(3, "v")])
    source = HuggingFaceSource(
        str(tmp_path),
        "mine",
        id_column="__key__",
        image_column="png",
        caption_column="txt",
        splits={"train": ["train"], "val": ["val"]},
        streaming=streaming,
    )
    assert source.table("train").image_ids == ["train-000/000000", "000001", "train-001/000000"]
    assert source.table("train").captions == ["x", "y", "z"]
    assert numbers(source.images("train")) == [0, 1, 2]
    assert source.table("val").image_ids == ["val/000000"]


@pytest.mark.parametrize("streaming", [False, True])
def test_equal_ids_of_different_images_are_refused(tmp_path: Path, streaming: bool) -> None:
    rows = [row(0, "x"), row(1, "y"), {**row(2, "z"), "filename": "0.png"}]
    source = small(tmp_path, *rows, streaming=streaming)
    with pytest.raises(ValueError, match="rows 0 and 2 have the same id and different images"):
        list(source.images("train").stream())


@pytest.mark.parametrize("streaming", [False, True])
def test_a_member_of_a_tar_with_a_dot_in_its_field(tmp_path: Path, streaming: bool) -> None:
    shard(tmp_path / "train.tar", [(4, "x")], image="left.png")
    source = HuggingFaceSource(
        str(tmp_path),
        "mine",
        id_column="__key__",
        image_column="left.png",
        caption_column="txt",
        splits={"train": ["train"]},
        streaming=streaming,
    )
    assert numbers(source.images("train")) == [4]


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00003.parquet", [row(0, "x")])
    with pytest.raises(ValueError, match="has 1 of 3 shards, the first missing is number 0: complete the download"):
        HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"]}).table("train")


@pytest.mark.parametrize(("name", "kind"), [("__6.txt", tarfile.REGTYPE), ("6.txt", tarfile.LNKTYPE)])
def test_tar_members_that_would_be_skipped_are_refused(tmp_path: Path, name: str, kind: bytes) -> None:
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "7.txt"
        tar.addfile(member)
    source = HuggingFaceSource(str(tmp_path), "mine", id_column="__key__", image_column="png", caption_column="txt")
    with pytest.raises(ValueError, match=f"train.tar cannot be read: its member {name}"):
        source.table("train")


def test_an_image_column_of_another_kind(tmp_path: Path) -> None:
    for cell, holds in [(["a"], "list"), (5, "int"), ("a.png", "str")]:
        import datasets

        datasets.Dataset.from_list([{"filename": "0.png", "image": cell, "caption": "x"}]).to_parquet(
            tmp_path / "train.parquet"
        )
        source = HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"]})
        with pytest.raises(
            ValueError, match=f"row 0 of the column 'image' holds no readable image: it holds {holds}, expected"
        ):
            source.images("train")[0]


# Streams


def streamed(folder: Path) -> Images:
    """Rows in another order than that of their images, some with no caption."""
    rows = [row(0, "x"), row(1), row(2, "x"), row(0, "y"), row(3, "x")]
    return small(folder, *rows, streaming=True).images("train")


def test_stream_yields_rows_with_images(tmp_path: Path) -> None:
    images = streamed(tmp_path)
    assert images.one_after_another
    assert len(images) == 3
    for _ in range(2):
        assert [(number, image.shape[1] - 10) for number, image in images.stream()] == [(0, 0), (1, 2), (2, 3)]


def test_streamed_images_have_no_random_access(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"only available through the pixel cache: set data.init_args.cached_size"):
        streamed(tmp_path)[0]


def test_identities_are_of_the_row_however_it_is_read(tmp_path: Path) -> None:
    rows = [row(0, "x"), row(1, "x")]
    sources = [small(tmp_path, *rows), small(tmp_path, *rows, streaming=True), small(tmp_path, *rows, revision="2")]
    first, stream, other = ([source.images("train").identity(n) for n in (0, 1)] for source in sources)
    assert first == stream
    assert len({*first, *other}) == 4


# What cannot be used


@pytest.mark.parametrize(("streaming", "column"), [(False, "filename"), (True, "image"), (False, "caption")])
def test_missing_column(tmp_path: Path, column: str, streaming: bool) -> None:
    left = {name: cell for name, cell in row(0, "x").items() if name != column}
    with pytest.raises(ValueError, match=f"{tmp_path}/data has no column '{column}'; it has {', '.join(left)}"):
        small(tmp_path, left, streaming=streaming).table("train")


def test_missing_nested_column(tmp_path: Path) -> None:
    source = small(tmp_path, {**row(0), "caption": {"raw": "x"}}, caption_column="caption.text")
    with pytest.raises(ValueError, match=f"train rows of {tmp_path}/data .* no column 'caption.text'"):
        source.table("train")


def test_image_path_of_another_column(tmp_path: Path) -> None:
    source = small(
        tmp_path, {"filename": "a", "caption": "x"}, image_column=None, image_folder="i", image_path="{folder}/x"
    )
    with pytest.raises(ValueError, match="image_path names 'folder', which is no column; there is filename, caption"):
        source.table("train")


def test_missing_split_files(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [row(0, "x")])
    message = rf"no files for the split 'val' in {tmp_path}: expected val.parquet, val-"
    with pytest.raises(ValueError, match=message):
        HuggingFaceSource(str(tmp_path), "mine").table("train")


@pytest.mark.parametrize(
    ("streaming", "content"), [(False, b"no image"), (True, b""), (False, None), (True, encoded(1)[:45])]
)
def test_broken_image_raises_for_its_own_row_only(tmp_path: Path, content: bytes | None, streaming: bool) -> None:
    broken = {**row(1, "y"), "image": content}
    source = small(tmp_path, row(0, "x"), broken, row(2, "z"), streaming=streaming)
    assert source.table("train").captions == ["x", "y", "z"]
    stream = source.images("train").stream()
    assert next(stream)[1].shape == (8, 10, 3)
    with pytest.raises(ValueError, match=r"row 1 of the column 'image' holds no readable image: .*leave_out"):
        next(stream)
    (tmp_path / "ids.txt").write_text("1.png\n", encoding="utf-8")
    without = small(tmp_path, row(0, "x"), broken, row(2, "z"), streaming=streaming, leave_out=f"{tmp_path}/ids.txt")
    assert numbers(without.images("train")) == [0, 2]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"caption": ["fine", None]}, r"row 1 has \['fine', None\] under 'caption', expected text or a list of texts"),
        ({"caption": [{"raw": "x"}]}, r"row 1 has \[{'raw': 'x'}\] under 'caption'"),
        ({"filename": None}, "row 1 has nothing under 'filename'"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path: Path, cells: dict[str, Any], message: str) -> None:
    for streaming in [False, True]:
        first = row(0, "x") if "caption" not in cells else row(0)
        source = small(tmp_path, first, {**row(1, "y"), **cells}, streaming=streaming)
        with pytest.raises(ValueError, match=f"the train rows of {tmp_path}/data cannot be read: {message}"):
            source.table("train")


def test_a_column_that_holds_no_captions(tmp_path: Path) -> None:
    for cell in [{"raw": "x", "sentid": "3"}, 5]:
        with pytest.raises(ValueError, match=r"row 0 has .* under 'caption', expected text or a list of texts"):
            small(tmp_path, {**row(0), "caption": cell}).table("train")


def test_empty_captions(tmp_path: Path) -> None:
    rows = [row(0, "x"), row(1, "fine", " \n")]
    with pytest.raises(ValueError, match=r"mine train: 1 of 3 captions are empty, first: 1.png#1; .*skip_empty"):
        small(tmp_path, *rows).table("train")
    assert small(tmp_path, *rows, skip_empty=True).table("train").captions == ["x", "fine"]


def test_an_image_in_two_splits_is_a_leak(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [row(0, "x"), row(1, "x")])
    write(tmp_path / "test.parquet", [row(1, "x")])
    source = HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"], "test": ["test"]})
    with pytest.raises(ValueError, match=r"mine test: 1 of 1 images are in another split .*: 1.png \(train\)"):
        source.table("test")


@pytest.mark.parametrize(("streaming", "kept"), [(False, 0.1), (True, 0.9)])
def test_a_truncated_parquet_file(tmp_path: Path, kept: float, streaming: bool) -> None:
    source = small(tmp_path, row(0, "x"), streaming=streaming)
    path = tmp_path / "data" / "train.parquet"
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(ValueError, match=f"{path} cannot be read: Parquet"):
        source.table("train")


@pytest.mark.parametrize(("streaming", "kept"), [(False, 0), (True, 300), (False, 600), (True, 1600)])
def test_a_truncated_tar(tmp_path: Path, kept: int, streaming: bool) -> None:
    path = write_tar(tmp_path / "train.tar", [{"json": b'{"captions": ["x"], "cocoid": 1}', "jpg": encoded(0, "JPEG")}])
    path.write_bytes(path.read_bytes()[:kept])
    source = HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"]}, streaming=streaming)
    with pytest.raises(ValueError, match=f"{path} cannot be read: "):
        source.table("train")


def test_broken_json_in_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "train.tar", [{"jpg": encoded(0, "JPEG"), "json": b'{"captions": ["x"'}])
    with pytest.raises(ValueError, match=f"{path} cannot be read: "):
        HuggingFaceSource(str(tmp_path), "mine", splits={"train": ["train"]}).table("train")


def test_hub_out_of_reach() -> None:
    with pytest.raises(
        ValueError, match="the data set 'nobody/has-this' is neither a local folder nor available from the hub"
    ) as caught:
        HuggingFaceSource("nobody/has-this", "mine").table("train")
    assert "pass its folder as data.init_args.source.init_args.path" in str(caught.value)


def test_options_that_do_not_fit() -> None:
    for options, message in [
        ({"image_folder": "folder"}, "give either image_column, .*, or image_folder"),
        ({"image_column": None}, "give either image_column, .*, or image_folder"),
        ({"karpathy": "file"}, "give either caption_column, .*, or karpathy"),
        ({"caption_column": None}, "give either caption_column, .*, or karpathy"),
        ({"splits": {"dev": ["validation"]}}, "splits maps 'dev', expected some of train, val, test"),
    ]:
        with pytest.raises(ValueError, match=message):
            HuggingFaceSource("path", "mine", **options)
