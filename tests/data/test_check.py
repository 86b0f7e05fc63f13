import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdr_lightning.data.check import Findings, SplitSize, check
from sdr_lightning.data.images import Images, InMemory, Pixels
from sdr_lightning.data.imbalance import Imbalance, NoiseTable
from sdr_lightning.data.karpathy import KarpathySource
from sdr_lightning.data.known import KNOWN_SIZES
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.records import Problem
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.source import Source
from sdr_lightning.data.split import PreparedSplit
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import PretrainedTokenizer, SceneTokenizer, Tokenizer
from tests.data.collection import MemorySource, make_table

Entry = dict[str, Any]


def picture(path: Path, mode: str = "RGB", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def collection(folder: Path, name: str = "own", images: int = 6) -> list[Entry]:
    """Entries of a clean collection: some images in each split, three captions each."""
    entries: list[Entry] = []
    for split in ("train", "val", "test"):
        for number in range(images):
            file = f"{split}{number}.jpg"
            picture(folder / "images" / file)
            sentences = [{"raw": "a small red circle", "sentid": f"{file} {k}"} for k in range(3)]
            entries.append({"filename": file, "split": split, "sentences": sentences})
    write(folder, entries, name)
    return entries


def write(folder: Path, entries: list[Entry], name: str = "own") -> None:
    (folder / f"dataset_{name}.json").write_text(json.dumps({"images": entries}))


def data(folder: Path, name: str = "own", tokenizer: Tokenizer | None = None, **options: Any) -> RetrievalDataModule:
    own = {key: options.pop(key) for key in ("skip_missing", "skip_empty", "leave_out") if key in options}
    source = KarpathySource(str(folder / f"dataset_{name}.json"), str(folder / "images"), **own)
    return of(source, tokenizer, **options)


def of(source: Source, tokenizer: Tokenizer | None = None, **options: Any) -> RetrievalDataModule:
    return RetrievalDataModule(source, tokenizer or SceneTokenizer(), batch_size=2, image_size=16, **options)


def found(module: RetrievalDataModule, decode: bool = True) -> Findings:
    return check(module, decode, lambda split, done, total: None)


def summary(findings: Findings) -> dict[tuple[str, str], tuple[int, int, bool]]:
    """How many of how many, and whether it is fatal, by split and problem."""
    return {(p.split, p.what): (p.number, p.of, p.fatal) for p in findings.problems}


def first(findings: Findings, split: str, what: str) -> list[str]:
    (problem,) = [p for p in findings.problems if (p.split, p.what) == (split, what)]
    return list(problem.first)


def test_clean_collection_has_no_problems_and_sizes_are_reported(tmp_path: Path) -> None:
    entries = collection(tmp_path)
    entries[0]["sentences"] = entries[0]["sentences"][:1]
    write(tmp_path, entries)
    findings = found(data(tmp_path))
    assert findings.problems == []
    assert findings.unusable == []
    assert not findings.fatal
    assert findings.sizes == [
        SplitSize("train", 6, 16, 1, 3, None),
        SplitSize("val", 6, 18, 3, 3, None),
        SplitSize("test", 6, 18, 3, 3, None),
    ]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """A collection with everything wrong at once."""
    entries = collection(tmp_path, images=8)
    images = tmp_path / "images"
    (images / "train0.jpg").unlink()
    (images / "train1.jpg").unlink()
    cut(images / "train2.jpg")
    (images / "train3.jpg").write_text("no image at all")
    picture(images / "train4.jpg", "CMYK")
    picture(images / "train5.jpg", exif=turned())
    entries[6]["sentences"][1]["raw"] = " \n"
    entries.append({**entries[8], "split": "train"})  # val0 leaks
    entries[7]["sentences"][2]["sentid"] = entries[7]["sentences"][0]["sentid"]
    picture(images / "bare.jpg")
    entries.append({"filename": "bare.jpg", "split": "train", "sentences": []})
    entries.append(entries[23])  # test7 twice
    cut(images / "test7.jpg")
    picture(images / "test6.jpg", "L")
    write(tmp_path, entries)
    return tmp_path


def test_everything_that_is_wrong_is_found_at_once(spoilt: Path) -> None:
    findings = found(data(spoilt))
    assert summary(findings) == {
        ("train", "images are missing"): (2, 10, True),
        ("train", "captions have a repeated id"): (1, 30 - 3, True),
        ("train", "images are in another split as well (a leak)"): (1, 10, True),
        ("train", "captions are empty"): (1, 27, True),
        ("train", "images have no caption"): (1, 10, False),
        ("train", "images cannot be read"): (2, 7, True),
        ("train", "images are CMYK"): (1, 7, False),
        ("train", "images are turned by EXIF"): (1, 7, False),
        ("val", "images are in another split as well (a leak)"): (1, 8, True),
        ("test", "images have a repeated id"): (1, 9, True),
        ("test", "captions have a repeated id"): (3, 27, True),
        ("test", "images cannot be read"): (1, 8, True),
        ("test", "images are L"): (1, 8, False),
    }
    assert findings.fatal
    assert findings.sizes == []
    images = spoilt / "images"
    assert first(findings, "train", "images are missing") == [str(images / f"train{k}.jpg") for k in (0, 1)]
    assert first(findings, "train", "images are in another split as well (a leak)") == ["val0.jpg (val)"]
    assert first(findings, "train", "captions are empty") == ["train6.jpg 1"]
    assert first(findings, "train", "captions have a repeated id") == ["train7.jpg 0"]
    assert first(findings, "train", "images have no caption") == ["bare.jpg"]
    truncated, foreign = first(findings, "train", "images cannot be read")
    assert truncated.startswith("train2.jpg: image file is truncated")
    assert foreign.startswith("train3.jpg: cannot identify image file")
    assert first(findings, "test", "images have a repeated id") == ["test7.jpg"]


def test_unusable_images_are_those_that_are_missing_or_cannot_be_read(spoilt: Path) -> None:
    unusable = found(data(spoilt)).unusable
    assert sorted(unusable) == ["test7.jpg", "train0.jpg", "train1.jpg", "train2.jpg", "train3.jpg"]


def test_left_out_images_are_not_reported(spoilt: Path, tmp_path: Path) -> None:
    first_time = found(data(spoilt))
    beyond_repair = [*first_time.unusable, "val0.jpg", "train6.jpg", "train7.jpg"]
    (tmp_path / "unusable.txt").write_text("".join(f"{name}\n" for name in beyond_repair))
    findings = found(data(spoilt, leave_out=str(tmp_path / "unusable.txt")))
    assert not findings.fatal
    assert findings.unusable == []
    assert {what for _, what in summary(findings)} == {
        "images have no caption",
        "images are CMYK",
        "images are turned by EXIF",
        "images are L",
    }
    assert [(size.split, size.images) for size in findings.sizes] == [("train", 2), ("val", 7), ("test", 7)]


def test_images_left_out_of_a_split_with_other_problems_are_not_read(spoilt: Path, tmp_path: Path) -> None:
    (tmp_path / "left_out.txt").write_text("train2.jpg\ntest7.jpg\n")
    findings = found(data(spoilt, leave_out=str(tmp_path / "left_out.txt")))
    assert findings.fatal
    assert sorted(findings.unusable) == ["train0.jpg", "train1.jpg", "train3.jpg"]


def test_skipped_images_are_reported_as_a_note(tmp_path: Path) -> None:
    collection(tmp_path)
    (tmp_path / "images/train3.jpg").unlink()
    findings = found(data(tmp_path, skip_missing=True))
    assert summary(findings) == {("train", "images are missing"): (1, 6, False)}
    assert findings.unusable == ["train3.jpg"]
    assert findings.sizes[0].images == 5


def test_at_most_five_are_named_and_all_are_counted(tmp_path: Path) -> None:
    collection(tmp_path, images=9)
    for number in range(8):
        (tmp_path / f"images/val{number}.jpg").write_bytes(b"")
    findings = found(data(tmp_path))
    assert summary(findings) == {("val", "images cannot be read"): (8, 9, True)}
    named = [text.partition(":")[0] for text in first(findings, "val", "images cannot be read")]
    assert named == [f"val{k}.jpg" for k in range(5)]
    assert len(findings.unusable) == 8


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_images_that_are_cut_short_are_found(suffix: str, tmp_path: Path) -> None:
    for share in (0.0, 0.02, 0.5, 0.97):
        entries = collection(tmp_path)
        file = tmp_path / f"images/cut.{suffix}"
        picture(file)
        file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
        sentences = [{"raw": "cut", "sentid": "cut"}]
        write(tmp_path, [*entries, {"filename": file.name, "split": "train", "sentences": sentences}])
        module = data(tmp_path)
        assert found(module).unusable == [file.name]
        with pytest.raises(ValueError, match=f"cannot read the image .*{file.name}"):
            module.source.images("train")[6]


def test_other_modes_are_noted_and_can_be_read(tmp_path: Path) -> None:
    for mode in ["L", "LA", "P", "RGBA", "1", "I;16", "CMYK", "YCbCr"]:
        entries = collection(tmp_path)
        file = tmp_path / f"images/{'other.jpg' if mode in ('CMYK', 'YCbCr') else 'other.png'}"
        if mode == "I;16":
            Image.fromarray(np.full((5, 5), 40000, dtype=np.uint16)).save(file)
        else:
            picture(file, mode)
        sentences = [{"raw": "a red circle", "sentid": "another"}]
        write(tmp_path, [*entries, {"filename": file.name, "split": "test", "sentences": sentences}])
        module = data(tmp_path)
        ordinary = mode == "YCbCr"  # what an RGB image is in JPEG
        assert summary(found(module)) == ({} if ordinary else {("test", f"images are {mode}"): (1, 7, False)})
        assert module.source.images("test")[6].shape[2] == 3


def test_broken_exif_is_ignored_and_decoder_errors_are_reported(tmp_path: Path) -> None:
    """What the check passes training can read, and what it refuses training cannot."""
    collection(tmp_path)
    images = tmp_path / "images"
    exif = turned()
    exif[0x010F] = "maker"
    picture(images / "train0.jpg", exif=exif.tobytes().replace(b"\x0f\x01\x02\x00", b"\x0f\x01\x05\x00"))
    picture(tmp_path / "p.avif")
    whole = bytearray((tmp_path / "p.avif").read_bytes())
    start = whole.index(b"mdat") + 4
    whole[start:] = bytes(len(whole) - start)  # a RuntimeError of the decoder
    (images / "train1.jpg").write_bytes(whole)
    Image.fromarray(np.full((4, 4), -1000, dtype=np.int32)).save(images / "train2.jpg", "TIFF")
    module = data(tmp_path)
    assert found(module).unusable == ["train1.jpg", "train2.jpg"]
    readable = module.source.images("train")
    assert readable[0].shape[:2] == (60, 40)
    for row in (1, 2):
        with pytest.raises(ValueError, match=f"cannot read the image .*train{row}.jpg"):
            readable[row]


def test_truncated_captions_and_unknown_words_are_counted(tmp_path: Path) -> None:
    entries = collection(tmp_path)
    entries[0]["sentences"][0]["raw"] = "a small red circle and a large blue square"
    entries[0]["sentences"][1]["raw"] = "a zebra"
    write(tmp_path, entries)
    findings = found(data(tmp_path, tokenizer=SceneTokenizer(max_tokens=6)))  # four words and two marks
    assert summary(findings) == {
        ("train", "captions are cut at 6 tokens"): (1, 18, False),
        ("train", "captions have words that the tokenizer does not know"): (1, 18, False),
    }
    assert first(findings, "train", "captions have words that the tokenizer does not know") == ["a zebra"]


def test_a_tiny_image_can_be_read(tmp_path: Path) -> None:
    collection(tmp_path)
    Image.new("RGB", (5, 5)).save(tmp_path / "images/train0.jpg")
    assert found(data(tmp_path)).problems == []


def test_the_splits_that_are_trained_and_selected_on_are_checked(tmp_path: Path) -> None:
    """As the published protocol has them: train and val together, selected on test."""
    entries = collection(tmp_path)
    options: dict[str, Any] = {"train_on": ["train", "val"], "select_on": "test"}
    module = data(tmp_path, **options)
    module.batch_size = 30
    assert found(module).problems == []
    write(tmp_path, [entry for entry in entries if entry["split"] != "test"])
    assert summary(found(data(tmp_path, **options))) == {("test", "splits are not there"): (1, 1, True)}


def test_a_batch_larger_than_the_training_split_is_fatal(tmp_path: Path) -> None:
    collection(tmp_path)
    module = data(tmp_path)
    module.batch_size = 19
    assert first(found(module), "train", "batches are larger than the split") == ["batch size 19 for 18 training items"]


def test_fast_reads_no_image_and_sees_what_is_missing(spoilt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("an image was read"))
    findings = found(data(spoilt), decode=False)
    assert findings.unusable == ["train0.jpg", "train1.jpg"]
    what = {what for _, what in summary(findings)}
    assert "images are missing" in what
    assert not any("read" in each or "CMYK" in each for each in what)


def test_progress_counts_every_image_of_every_split(tmp_path: Path) -> None:
    collection(tmp_path)
    seen: list[tuple[Split, int, int]] = []
    check(data(tmp_path), True, lambda split, done, total: seen.append((split, done, total)))
    assert seen == [(split, done, 6) for split in ("train", "val", "test") for done in range(1, 7)]


@pytest.mark.parametrize(("name", "known"), [("flickr8k", True), ("flickr30k", True), ("mine", False)])
def test_known_collections_are_compared_with_their_published_sizes(name: str, known: bool, tmp_path: Path) -> None:
    collection(tmp_path, name)
    findings = found(data(tmp_path, name))
    what = "images more or fewer than published"
    if not known:
        assert findings.problems == []
        return
    sizes = KNOWN_SIZES[name]
    assert summary(findings) == {(split, what): (images - 6, images, False) for split, (images, _) in sizes.items()}
    assert first(findings, "val", what) == ["6 images and 18 captions"]
    assert [size.expected for size in findings.sizes] == [sizes[size.split] for size in findings.sizes]
    assert not findings.fatal


@pytest.mark.parametrize(("captions", "problems"), [(18, 0), (None, 0), (30, 3)])
def test_unknown_published_caption_counts_are_not_compared(
    captions: int | None, problems: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[Split, tuple[int, int | None]] = {"train": (6, captions), "val": (6, captions), "test": (6, captions)}
    monkeypatch.setitem(KNOWN_SIZES, "own", sizes)
    collection(tmp_path)
    assert len(found(data(tmp_path)).problems) == problems


def test_a_split_that_training_needs_must_be_there(tmp_path: Path) -> None:
    for split in ["train", "val"]:
        write(tmp_path, [entry for entry in collection(tmp_path) if entry["split"] != split])
        findings = found(data(tmp_path))
        assert summary(findings) == {(split, "splits are not there"): (1, 1, True)}


def test_a_test_split_may_be_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, [entry for entry in collection(tmp_path) if entry["split"] != "test"])
    assert found(data(tmp_path)).problems == []


def test_missing_tokenizer_is_fatal(tmp_path: Path) -> None:
    collection(tmp_path)
    findings = found(data(tmp_path, tokenizer=PretrainedTokenizer(str(tmp_path / "nowhere"))))
    assert summary(findings) == {("all", "tokenizers cannot be had"): (1, 1, True)}
    assert "nowhere" in first(findings, "all", "tokenizers cannot be had")[0]


def another_table(path: Path) -> None:
    NoiseTable.draw(make_table(), Imbalance("mismatch", 0.5)).save(path)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(("make", "said"), [(another_table, "was made for memory train"), (nothing, "not a noise")])
def test_a_noise_table_that_does_not_fit_is_fatal(make: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    collection(tmp_path)
    make(tmp_path / "noise.npz")
    findings = found(data(tmp_path, imbalance=[Imbalance("blur", 0.5), Imbalance(file=str(tmp_path / "noise.npz"))]))
    assert summary(findings) == {("train", "imbalances do not fit"): (1, 1, True)}
    assert said in first(findings, "train", "imbalances do not fit")[0]


def test_a_noise_table_that_fits_is_no_problem(tmp_path: Path) -> None:
    collection(tmp_path)
    table = data(tmp_path).source.table("train")
    NoiseTable.draw(table, Imbalance("mismatch", 0.5)).save(tmp_path / "noise.npz")
    assert found(data(tmp_path, imbalance=Imbalance(file=str(tmp_path / "noise.npz")))).problems == []


def test_generated_scenes_are_fine() -> None:
    findings = found(of(SceneSource(num_train=4, num_val=3, num_test=2)))
    assert findings.problems == []
    assert [(size.split, size.images, size.captions) for size in findings.sizes] == [
        ("train", 4, 20),
        ("val", 3, 15),
        ("test", 2, 10),
    ]


class Streamed(InMemory):
    """Images that come one after another, up to a broken one."""

    one_after_another = True

    def __init__(self, broken: int | None) -> None:
        super().__init__([np.full((4, 4, 3), row, dtype=np.uint8) for row in range(4)])
        self.broken = broken

    def __getitem__(self, row: int) -> Pixels:
        raise AssertionError("a stream is not asked for single rows")

    def stream(self) -> Iterator[tuple[int, Pixels]]:
        for row, pixels in enumerate(self.pixels):
            if row == self.broken:
                raise ValueError(f"row {row} holds no readable image")
            yield row, pixels


class StreamedSource(MemorySource):
    def __init__(self, broken: int | None = None) -> None:
        super().__init__((1, 1, 1, 1))
        self.broken = broken

    def images(self, split: Split) -> Images:
        return Streamed(self.broken if split == "train" else None)


def test_a_streamed_collection_is_read_in_its_order() -> None:
    seen: list[int] = []
    findings = check(of(StreamedSource(), cached_size=16), True, lambda split, done, total: seen.append(done))
    assert findings.problems == []
    assert seen == [1, 2, 3, 4] * 3


def test_stream_without_a_pixel_cache_is_refused() -> None:
    findings = found(of(StreamedSource()))
    assert {problem.what for problem in findings.problems} == {"settings do not fit the images"}
    assert "set data.init_args.cached_size" in findings.problems[0].first[0]


def test_a_streamed_collection_is_read_up_to_the_first_broken_image() -> None:
    findings = found(of(StreamedSource(broken=1), cached_size=16))
    assert summary(findings) == {("train", "images cannot be read"): (1, 4, True)}
    (problem,) = findings.problems
    assert problem.first == ("row 1 holds no readable image",)
    assert "2 images behind it were not read" in problem.remedy


def test_problem_is_formatted_as_a_sentence() -> None:
    problem = Problem("val", "images are missing", 3, 9, ("a.jpg", "b.jpg"), "complete the folder")
    assert str(problem) == "val: 3 of 9 images are missing, first: a.jpg, b.jpg; complete the folder"


def test_collection_that_passes_can_be_used(spoilt: Path, tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_text(
        "\n".join([*found(data(spoilt)).unusable, "val0.jpg", "train6.jpg", "train7.jpg"])
    )
    module = data(spoilt, leave_out=str(tmp_path / "out.txt"))
    assert not found(module).fatal
    for split in module.source.splits:
        prepared: PreparedSplit = module.split(split)
        rows = np.arange(len(prepared.table.image_ids))
        assert prepared.images(rows).shape == (len(rows), 3, 16, 16)
