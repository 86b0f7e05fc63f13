"""`sdr data`, `sdr noise`, and training on corrupted data."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sdr_lightning.cli.main import main
from sdr_lightning.configure import build_data
from sdr_lightning.data import SceneSource
from sdr_lightning.data.id_list import read_ids
from sdr_lightning.data.imbalance import Imbalance, read_noise
from sdr_lightning.data.table import SPLITS
from sdr_lightning.features.bank import FeatureBank
from tests.e2e.sdr import error_line, sdr, succeeded

IMAGES = 12
Run = Callable[..., str]


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must exit with a status, and return its output."""

    def run(*arguments: object, status: int = 0) -> str:
        found = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert found == status, printed.out + printed.err
        assert "Traceback" not in printed.err
        return printed.out if status != 2 else one_line(printed.err)

    return run


def one_line(errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.startswith("sdr")]
    assert len(lines) == 1, errors
    return lines[0]


@pytest.fixture
def usage(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with invalid options, and return the error line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 2
        return one_line(capsys.readouterr().err)

    return run


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def data_of(source: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return a data configuration, as in experiments/data."""
    return {
        "class_path": "sdr_lightning.data.RetrievalDataModule",
        "init_args": {
            "source": source,
            "tokenizer": {"class_path": "sdr_lightning.data.SceneTokenizer"},
            "image_size": 16,
            "batch_size": 8,
            **options,
        },
    }


def scenes(**options: Any) -> dict[str, Any]:
    numbers = {"num_train": 64, "num_val": 20, "num_test": 10}
    return data_of({"class_path": "sdr_lightning.data.SceneSource", "init_args": numbers}, **options)


TRAIN = SceneSource(num_train=64, num_val=20, num_test=10).table("train")


@pytest.fixture
def scenes_file(tmp_path: Path) -> Path:
    return write_yaml(tmp_path / "scenes.yaml", scenes())


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Write a table of images and captions, and its data configuration."""
    (tmp_path / "images").mkdir()
    rows = ["image,caption,split"]
    for number in range(IMAGES):
        split = ("train", "val", "test")[number % 3]
        pixels = np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.jpg")
        rows += [f"{number}.jpg,{'a ' * number} red {shape},{split}" for shape in ("circle", "square")]
    (tmp_path / "captions.csv").write_text("\n".join(rows) + "\n")
    source = {
        "class_path": "sdr_lightning.data.TabularSource",
        "init_args": {
            "name": "own",
            "table": str(tmp_path / "captions.csv"),
            "images": str(tmp_path / "images"),
            "split_column": "split",
        },
    }
    return write_yaml(tmp_path / "own.yaml", data_of(source, cache=str(tmp_path / "cache"), batch_size=2))


# --- sdr data check


def test_clean_collection_passes(own: Path, ran: Run) -> None:
    printed = ran("data", "check", "--data", own)
    assert "own" in printed
    assert "training can start" in printed
    assert "problems" not in printed
    assert [word for word in ("train", "val", "test") if word in printed] == ["train", "val", "test"]


def test_broken_collection_passes_without_unusable_images(own: Path, ran: Run) -> None:
    images, unusable = own.parent / "images", own.parent / "unusable.txt"
    (images / "0.jpg").unlink()
    (images / "3.jpg").write_bytes((images / "3.jpg").read_bytes()[:-300])
    (images / "4.jpg").write_text("no image")
    printed = ran("data", "check", "--data", own, "--unusable", unusable, status=1)
    assert "training would fail" in printed
    assert "1 of 4" in printed
    assert "images are missing" in printed
    assert str(images / "0.jpg") in printed
    assert "skip_missing true" in printed
    assert f"3 ids of unusable images in {unusable}" in printed
    assert read_ids(unusable) == {"0.jpg", "3.jpg", "4.jpg"}
    ran("data", "check", "--data", own, "--unusable", unusable, status=1)  # overwrites its own file
    foreign = own.parent / "captions.csv"
    before = foreign.read_text()
    assert "was not written by this command" in ran("data", "check", "--data", own, "--unusable", foreign, status=2)
    assert foreign.read_text() == before

    leave_out = ("--data.init_args.source.init_args.leave_out", unusable)
    printed = ran("data", "check", "--data", own, *leave_out)
    assert "training can start" in printed
    assert "problems" not in printed
    message = ran("data", "check", "--data", own, *leave_out, "--unusable", unusable, status=2)
    assert "is a file that this command reads" in message
    assert read_ids(unusable) == {"0.jpg", "3.jpg", "4.jpg"}


def test_notes_do_not_fail_the_check(own: Path, ran: Run) -> None:
    Image.new("L", (10, 10)).save(own.parent / "images/1.jpg")
    printed = ran("data", "check", "--data", own)
    assert "note" in printed
    assert "images are L" in printed
    assert "training can start" in printed


def test_fast_check_reads_no_images(own: Path, ran: Run) -> None:
    (own.parent / "images/4.jpg").write_text("no image")
    assert "(images were not read)" in ran("data", "check", "--data", own, "--fast")
    ran("data", "check", "--data", own, status=1)


def test_further_options_are_options_of_the_data(own: Path, ran: Run) -> None:
    (own.parent / "images/0.jpg").unlink()
    ran("data", "check", "--data", own, status=1)
    for form in ("{} true", "{}=true"):
        option = form.format("--data.init_args.source.init_args.skip_missing").split()
        assert "they are left out" in ran("data", "check", *option, "--data", own)


def test_missing_annotations_are_rejected(own: Path, ran: Run) -> None:
    (own.parent / "captions.csv").unlink()
    for command in ("check", "prepare"):
        assert "captions.csv" in ran("data", command, "--data", own, status=2)


def test_missing_configuration_is_named(tmp_path: Path, ran: Run) -> None:
    absent = tmp_path / "absent.yaml"
    make = ("noise", "make", "--kind", "mismatch", "--ratio", "0.1", "--output", "x.npz")
    for command in (("data", "check"), ("data", "prepare"), make, ("noise", "show", "x.npz")):
        assert f"no configuration of data at {absent}" in ran(*command, "--data", absent, status=2)


def test_unknown_data_options_suggest_similar_ones(scenes_file: Path, ran: Run) -> None:
    line = ran("data", "check", "--data", scenes_file, "--data.init_args.source.init_args.num_trian", "3", status=2)
    assert "SceneSource has no 'num_trian'; did you mean 'num_train'" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "check"), "required: --data"),
        (("data", "check", "--data", "x.yaml", "--fats"), "unrecognized arguments: --fats"),
        (("noise", "make", "--data", "x.yaml", "--kind", "none"), "invalid choice: 'none'"),
        (("noise", "make", "--data", "x.yaml", "--kind", "blur", "--output", "x.npz"), "required: --ratio"),
        (("noise", "show", "x.npz", "--data.init_args.batch_size", "3"), "unrecognized arguments: --data.init_args"),
    ],
)
def test_invalid_command_options_are_rejected(arguments: tuple[str, ...], message: str, usage: Run) -> None:
    assert message in usage(*arguments)


# --- sdr data prepare


def kept(own: Path) -> dict[Path, int]:
    files = (own.parent / "cache").rglob("*")
    return {file.relative_to(own.parent): file.stat().st_mtime_ns for file in files if file.is_file()}


PREPARE = ("--data.init_args.cached_size", "24")


def test_prepare_writes_images_and_tokens(own: Path, ran: Run) -> None:
    printed = ran("data", "prepare", "--data", own, *PREPARE)
    assert f"own: images at 24 pixels and tokens are kept in {own.parent / 'cache'} (" in printed
    first = kept(own)
    assert (own.parent / "cache/images/own-24px/pixels.u8").stat().st_size == IMAGES * 24 * 24 * 3
    assert len([file for file in first if file.suffix == ".safetensors"]) == 3
    ran("data", "prepare", "--data", own, *PREPARE)
    assert first.items() <= kept(own).items()


def test_training_reads_the_tokens_that_prepare_wrote(own: Path, ran: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--data.init_args.strip_punctuation", "true", "--data.init_args.train_images", "2")
    ran("data", "prepare", "--data", own, *options)
    data = build_data(["--data", str(own), *options])
    monkeypatch.setattr(type(data.tokenizer), "__call__", None)
    for split in SPLITS:
        assert len(data.split(split).tokens.input_ids) == len(data.table(split).captions)


def test_prepare_adds_new_images(own: Path, ran: Run) -> None:
    command = ("data", "prepare", "--data", own, *PREPARE)
    ran(*command)
    Image.new("RGB", (9, 9)).save(own.parent / "images/5.jpg")
    ran(*command)
    pixels = own.parent / "cache/images/own-24px/pixels.u8"
    assert pixels.stat().st_size == (IMAGES + 1) * 24 * 24 * 3


def test_prepare_without_size_writes_tokens_only(own: Path, ran: Run) -> None:
    assert "tokens (cached_size is not set: no images)" in ran("data", "prepare", "--data", own)
    first = kept(own)
    assert {file.parts[1] for file in first} == {"tokens"}
    ran("data", "prepare", "--data", own)
    assert kept(own) == first


def test_prepare_rejects_broken_collections(own: Path, ran: Run) -> None:
    (own.parent / "images/2.jpg").unlink()
    line = ran("data", "prepare", "--data", own, *PREPARE, status=2)
    assert "1 of 4 images are missing" in line
    assert kept(own) == {}
    (own.parent / "images/2.jpg").write_text("no image")
    assert str(own.parent / "images/2.jpg") in ran("data", "prepare", "--data", own, *PREPARE, status=2)


# --- sdr noise


def make(ran: Run, scenes_file: Path, output: Path, *options: object) -> str:
    return ran("noise", "make", "--data", scenes_file, "--output", output, *options)


@pytest.mark.parametrize(
    ("options", "meaning", "realised"),
    [
        (("mismatch", "0.4"), "lose all their captions to one another", "40.62 % (26 of 64 images)"),
        (("mismatch", "0.4", "--level", "caption"), "go, one by one, to images", "40.00 % (128 of 320 captions)"),
        (("mismatch", "0.4", "--partner", "nearest"), "partner: one of the 10", "% as asked, the others random"),
        (("drop_words", "0.25", "--severity", "2"), "each word of a chosen caption", "25.00 % (80 of 320 captions)"),
        (("blur", "0.5", "--seed", "7"), "Gaussian blur", "50.00 % (32 of 64 images)"),
        (("typos", "0"), "each character", "0.00 % (0 of 320 captions)"),
    ],
)
def test_make_and_show_print_the_same(
    options: tuple[str, ...], meaning: str, realised: str, scenes_file: Path, tmp_path: Path, ran: Run
) -> None:
    kind, ratio, *rest = options
    file = tmp_path / "deep/noise.npz"
    printed = make(ran, scenes_file, file, "--kind", kind, "--ratio", ratio, *rest)
    assert meaning in printed
    assert realised in printed
    assert f"asked      {100 * float(ratio):g} %" in printed
    assert f"made for   scenes-0-32px-3 train ({TRAIN.fingerprint[:12]})" in printed
    assert hashlib.sha256(file.read_bytes()).hexdigest() in printed
    assert ran("noise", "show", file) == printed
    assert ran("noise", "show", file, "--data", scenes_file) == printed
    assert read_noise(file, TRAIN).imbalance.kind == kind


@pytest.mark.parametrize(("level", "entries"), [("image", 64), ("caption", 320)])
def test_npy_form_is_equivalent(level: str, entries: int, scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    options = ("--kind", "mismatch", "--ratio", "0.4", "--level", level)
    for name in ("own.npz", "published.npy"):
        make(ran, scenes_file, tmp_path / name, *options)
    index = np.load(tmp_path / "published.npy")
    assert (index.shape, index.dtype) == ((entries,), np.int64)
    with_data = ran("noise", "show", tmp_path / "published.npy", "--data", scenes_file)
    assert "made for   scenes-0-32px-3 train" in with_data
    alone = ran("noise", "show", tmp_path / "published.npy")
    assert "a collection that it does not name" in alone
    histogram = "wrong captions per image"
    assert alone.split(histogram)[1] == with_data.split(histogram)[1]
    assert f"level {level}" in alone
    pairing = [read_noise(tmp_path / name, TRAIN).caption_image for name in ("own.npz", "published.npy")]
    assert np.array_equal(*pairing)


def test_show_of_a_foreign_index(tmp_path: Path, ran: Run) -> None:
    index = np.arange(100)
    index[[3, 50, 98]] = index[[50, 98, 3]]
    np.save(tmp_path / "0.03_noise.npy", index)
    printed = ran("noise", "show", tmp_path / "0.03_noise.npy")
    assert "mismatch, pair, level image" in printed
    assert "3.00 % (3 of 100 images)" in printed
    rows = [line.split()[:3] for line in printed.splitlines() if line.endswith("█")]
    assert rows == [["0", "97", "images"], ["5", "3", "images"]]


def test_make_overwrites_noise_tables_only(scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    options = ("noise", "make", "--data", scenes_file, "--kind", "mismatch", "--ratio", "0.1", "--output")
    for _ in range(2):
        ran(*options, tmp_path / "noise.npz")
    reads = ("--data.init_args.imbalance", json.dumps({"file": str(tmp_path / "noise.npz"), "kind": "mismatch"}))
    assert "is a file that this command reads" in ran(*options, tmp_path / "noise.npz", *reads, status=2)
    for name in ("features.npz", "index.npy"):
        with (tmp_path / name).open("wb") as file:
            np.save(file, np.arange(3))
        assert "was not written by this command" in ran(*options, tmp_path / name, status=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("mismatch", "1.5"), "the imbalance ratio must lie in [0, 1], got 1.5"),
        (("mismatch", "nan"), "the imbalance ratio must lie in [0, 1], got nan"),
        (("missing", "0.5"), "which modality is missing? expected modality image or text"),
        (("blur", "0.5", "--modality", "text"), "blur is done to image, got modality text"),
        (("mismatch", "0.5", "--split", "test"), "a mismatched test split has no truth"),
        (("blur", "0.5", "--output", "blur.npy"), "must end in .npz, or in .npy for a mismatch"),
    ],
)
def test_invalid_noise_is_rejected(
    options: tuple[str, ...],
    message: str,
    scenes_file: Path,
    tmp_path: Path,
    ran: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, ratio, *rest = options
    command = ("noise", "make", "--data", scenes_file, "--output", "noise.npz", "--kind", kind, f"--ratio={ratio}")
    assert message in ran(*command, *rest, status=2)
    assert list(tmp_path.iterdir()) == [scenes_file]


def write_text(path: Path) -> None:
    path.write_text("rows, images")


def write_pickle(path: Path) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("write", "name"),
    [(None, "noise.npz"), (write_text, "noise.npy"), (write_pickle, "noise.npz"), (write_pickle, "noise.npy")],
)
def test_invalid_noise_files_are_rejected(
    write: Callable[[Path], None] | None, name: str, tmp_path: Path, ran: Run
) -> None:
    if write is not None:
        with (tmp_path / name).open("wb"):
            write(tmp_path / name)
    expected = "no noise table at" if write is None else "is not a"
    line = ran("noise", "show", tmp_path / name, status=2)
    assert expected in line
    assert name in line


def test_noise_of_other_data_is_rejected(scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    make(ran, scenes_file, tmp_path / "noise.npz", "--kind", "mismatch", "--ratio", "0.4")
    fewer = ("--data", scenes_file, "--data.init_args.source.init_args.num_train", "60")
    for arguments in ((tmp_path / "noise.npz", *fewer), (*fewer, tmp_path / "noise.npz")):
        line = ran("noise", "show", *arguments, status=2)
        assert "was made for scenes-0-32px-3 train" in line
        assert "make it anew" in line


def test_noise_of_other_splits(scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    printed = make(ran, scenes_file, tmp_path / "n.npz", "--kind", "jpeg", "--ratio", "0.5", "--split", "test")
    assert "50.00 % (5 of 10 images)" in printed
    assert "scenes-0-32px-3 test" in printed
    assert read_noise(tmp_path / "n.npz").imbalance.splits == ("test",)


# --- Imbalances in a configuration of data


def imbalances_of(ran: Run, scenes_file: Path, *options: str) -> list[Imbalance]:
    ran("data", "check", "--fast", "--data", scenes_file, *options)
    return build_data(["--data", str(scenes_file), *options]).imbalances


KINDS_OF_ALL = {
    "blur": ("image", "image"),
    "drop_words": ("text", "caption"),
    "mismatch": ("pair", "image"),
}


@pytest.mark.parametrize("kind", KINDS_OF_ALL)
def test_imbalance_needs_only_kind_and_ratio(kind: str, tmp_path: Path, ran: Run) -> None:
    in_file = write_yaml(tmp_path / "in_file.yaml", scenes(imbalance={"kind": kind, "ratio": 0.5}))
    in_list = write_yaml(tmp_path / "in_list.yaml", scenes(imbalance=[{"kind": kind, "ratio": 0.5}]))
    plain = write_yaml(tmp_path / "plain.yaml", scenes())
    options = ("--data.init_args.imbalance.kind", kind, "--data.init_args.imbalance.ratio", "0.5")
    for found in (imbalances_of(ran, in_file), imbalances_of(ran, in_list), imbalances_of(ran, plain, *options)):
        (imbalance,) = found
        assert (imbalance.kind, imbalance.ratio) == (kind, 0.5)
        assert (imbalance.modality, imbalance.level) == KINDS_OF_ALL[kind]


@pytest.mark.parametrize("form", ["option", "list"])
def test_noise_file_overrides_the_kind(form: str, tmp_path: Path, ran: Run) -> None:
    imbalance = {"kind": "mismatch", "level": "image", "ratio": 0.0}
    file = write_yaml(tmp_path / "scenes.yaml", scenes(imbalance=imbalance))
    noise = str(tmp_path / "noise.npz")
    make(ran, file, tmp_path / "noise.npz", "--kind", "drop_words", "--ratio", "0.4")
    value: Any = {"option": noise, "list": json.dumps([{"file": noise}])}[form]
    (found,) = imbalances_of(ran, file, f"--data.init_args.imbalance{'.file' if form == 'option' else ''}", value)
    assert (found.file, found.active) == (noise, True)


# --- sdr fit under an imbalance


def experiment(folder: Path, experiments: Path, name: str, **data: Any) -> Path:
    model = yaml.safe_load((experiments / "models/tiny.yaml").read_text())
    model["init_args"]["method"]["init_args"]["weights"] = {"itc": 1}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    config = {"model": model, "data": scenes(**{"batch_size": 64, **data}), "trainer": trainer}
    return write_yaml(folder / f"{name}.yaml", config)


def trained(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "run.json").read_text())["data"]
    return record


@pytest.mark.slow
def test_fit_records_its_noise_and_repeats_it_from_file(tmp_path: Path, experiments: Path, ran: Run) -> None:
    plain = experiment(tmp_path, experiments, "plain")
    drawn = tmp_path / "drawn"
    mismatch = ("--data.init_args.imbalance.kind", "mismatch", "--data.init_args.imbalance.ratio", "0.4")
    ran("fit", "--config", plain, "--run_dir", drawn, *mismatch)
    record = trained(drawn)
    (part,) = record["train"]["imbalances"]
    assert (part["kind"], part["ratio"], part["affected"], part["of"]) == ("mismatch", 0.4, 26, 64)
    assert part["realised_ratio"] == 26 / 64
    assert record["train"]["wrong_captions_per_image"] == {"0": 38, "5": 26}
    assert record["val"]["imbalances"] == []
    assert [file.name for file in (drawn / "noise").iterdir()] == ["train-0-mismatch.npz"]
    noise = read_noise(drawn / "noise/train-0-mismatch.npz", TRAIN)
    assert noise.sha256 == part["sha256"]
    assert len(noise.rows) == 26

    from_file = experiment(tmp_path, experiments, "file", imbalance={"file": str(drawn / "noise/train-0-mismatch.npz")})
    ran("fit", "--config", from_file, "--run_dir", tmp_path / "read")
    again = trained(tmp_path / "read")
    assert again["train"]["sha256"] == record["train"]["sha256"]
    assert again["train"]["imbalances"][0]["sha256"] == part["sha256"]
    assert (drawn / "metrics.csv").read_text() == (tmp_path / "read/metrics.csv").read_text()


@pytest.mark.slow
def test_fit_applies_noise_made_beforehand(tmp_path: Path, experiments: Path, ran: Run) -> None:
    """In both file forms; a clean fit has no noise."""
    data = write_yaml(tmp_path / "scenes.yaml", scenes())
    options = ("--kind", "mismatch", "--ratio", "0.4", "--level", "caption", "--seed", "3")
    found = {}
    for name in ("made.npz", "made.npy"):
        make(ran, data, tmp_path / name, *options)
        config = experiment(tmp_path, experiments, name, imbalance={"file": str(tmp_path / name)})
        ran("fit", "--config", config, "--run_dir", tmp_path / f"run {name}")
        found[name] = trained(tmp_path / f"run {name}")["train"]
        kept_noise = read_noise(tmp_path / f"run {name}" / "noise/train-0-mismatch.npz", TRAIN)
        assert np.array_equal(kept_noise.caption_image, read_noise(tmp_path / name, TRAIN).caption_image)
    assert found["made.npz"]["sha256"] == found["made.npy"]["sha256"]
    assert found["made.npz"]["imbalances"][0]["affected"] == 128

    clean = experiment(tmp_path, experiments, "clean")
    ran("fit", "--config", clean, "--run_dir", tmp_path / "clean")
    assert trained(tmp_path / "clean")["train"]["imbalances"] == []
    assert trained(tmp_path / "clean")["train"]["sha256"] != found["made.npz"]["sha256"]
    assert not (tmp_path / "clean/noise").exists()


def test_fit_rejects_noise_of_other_data(tmp_path: Path, experiments: Path, ran: Run) -> None:
    data = write_yaml(tmp_path / "scenes.yaml", scenes())
    make(ran, data, tmp_path / "noise.npz", "--kind", "mismatch", "--ratio", "0.4")
    config = experiment(tmp_path, experiments, "file", imbalance={"file": str(tmp_path / "noise.npz")})
    fewer = "--data.init_args.source.init_args.num_train=80"
    line = ran("fit", "--config", config, "--run_dir", tmp_path / "run", fewer, status=2)
    assert "was made for scenes-0-32px-3 train" in line
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
def test_fit_with_image_cache_gives_identical_metrics(tmp_path: Path, experiments: Path, ran: Run) -> None:
    config = experiment(tmp_path, experiments, "cached", cache=str(tmp_path / "cache"))
    ran("fit", "--config", config, "--run_dir", tmp_path / "plain")
    ran("fit", "--config", config, "--run_dir", tmp_path / "cached", "--data.init_args.cached_size=16")
    pixels = tmp_path / "cache/images/scenes-0-32px-3-16px/pixels.u8"
    assert pixels.stat().st_size == (64 + 20) * 16 * 16 * 3  # a fit needs no test images
    assert (tmp_path / "plain/metrics.csv").read_text() == (tmp_path / "cached/metrics.csv").read_text()


# --- In subprocesses


@pytest.mark.slow
def test_commands_in_subprocesses(tmp_path: Path, experiments: Path, own: Path, scenes_file: Path) -> None:
    assert "own" in succeeded(sdr("data", "prepare", "--data", own, "--data.init_args.cached_size=16"))
    (own.parent / "images/0.jpg").unlink()
    failed = sdr("data", "check", "--data", own, "--fast")
    assert failed.returncode == 1
    assert "training would fail" in failed.stdout
    options = ("--data", scenes_file, "--kind", "mismatch", "--output", tmp_path / "noise.npz")
    made = succeeded(sdr("noise", "make", *options, "--ratio", "0.4"))
    assert succeeded(sdr("noise", "show", tmp_path / "noise.npz")) == made
    assert "must lie in [0, 1], got 2.0" in error_line(sdr("noise", "make", *options, "--ratio", "2"))
    config = experiment(tmp_path, experiments, "plain", imbalance={"kind": "mismatch", "ratio": 0.4})
    assert "finished in" in succeeded(sdr("fit", "--config", config, "--run_dir", tmp_path / "run"))
    assert trained(tmp_path / "run")["train"]["imbalances"][0]["affected"] == 26


def test_shard_writes_a_collection_and_continues(scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    output = tmp_path / "shards"
    command = ("data", "shard", "--data", scenes_file, "--output", output, "--images-per-shard", 5)
    assert "9 shards in" in ran(*command)
    (output / "val-000001.parquet").unlink()
    printed = ran(*command)
    assert "1 written now" in printed
    source = printed.split("train with ")[1].split()
    assert "training can start" in ran("data", "check", "--data", scenes_file, *source)
    assert "holds shards of other data or options" in ran(*command[:-1], 6, status=2)


def test_shard_takes_one_bank_per_modality(scenes_file: Path, tmp_path: Path, ran: Run) -> None:
    bank = FeatureBank("text", ["a"], np.zeros(1, dtype=np.int64), torch.zeros(1, 2), "tower")
    bank.save(tmp_path / "a.safetensors")
    banks = (tmp_path / "a.safetensors",) * 2
    command = ("data", "shard", "--data", scenes_file, "--output", tmp_path / "shards", "--teachers")
    assert "two banks of the text modality" in ran(*command, *banks, status=2)
    assert "the text bank lacks 320 of 320 ids" in ran(*command, banks[0], status=2)
    assert not (tmp_path / "shards").exists()
