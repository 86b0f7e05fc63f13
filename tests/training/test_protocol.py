"""The clean and the paper protocol."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sdr_lightning.cli.main import main
from sdr_lightning.configure import build
from sdr_lightning.configure.lightning_cli import SdrCLI, run
from sdr_lightning.metrics.paper_protocol import evaluate_published
from sdr_lightning.training import RetrievalModule
from sdr_lightning.training.checkpoints.best import BestCheckpoint
from sdr_lightning.training.protocol import PAPER, PAPER_SDR
from sdr_lightning.types import Tokens

IGNORED = pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path.")
MATCHING = ("--model.init_args.method.init_args.weights", '{"itc": 1, "itm": 2}')


def scenes(name: str = "scenes", **arguments: Any) -> tuple[str, str]:
    """Return options for a few scenes with a collection name."""
    arguments = {"num_train": 12, "num_val": 6, "num_test": 7, **arguments}
    source = {"class_path": "tests.training.student.NamedScenes", "init_args": {"name": name, **arguments}}
    return "--data.init_args.source", json.dumps(source)


@pytest.fixture
def base(experiments: Path, tmp_path: Path) -> Callable[..., list[str]]:
    def options(*more: str, run: str = "run", name: str = "scenes", **arguments: Any) -> list[str]:
        files = ("--model", experiments / "models/tiny_fusion.yaml", "--data", experiments / "data/scenes.yaml")
        parts = (*files, *scenes(name, **arguments), *MATCHING, "--run_dir", tmp_path / run, *more)
        return [str(part) for part in parts]

    return options


# Option: value of the public code, another value, and a getter.
SWITCHES: dict[str, tuple[Any, Any, Callable[[SdrCLI], Any]]] = {
    "data.init_args.select_on": ("test", "val", lambda cli: cli.datamodule.select_on),
    "data.init_args.train_words": (60, 7, lambda cli: cli.datamodule.train_wording.max_words),
    "data.init_args.evaluation_words": (30, 6, lambda cli: cli.datamodule.evaluation_wording.max_words),
    "model.init_args.gather": ("albef", "exact", lambda cli: cli.model.gather),
    "model.init_args.negatives": ("local", "global", lambda cli: cli.model.negatives),
    "model.init_args.method.init_args.clamp_temperatures": (
        False,
        True,
        lambda cli: cli.model.method.clamp_temperatures,
    ),
    "model.init_args.optimisation.init_args.decayed": (
        "published",
        "matrices",
        lambda cli: cli.model.optimisation.decayed,
    ),
    "model.init_args.optimisation.init_args.schedule": (
        "linear",
        "cosine",
        lambda cli: cli.model.optimisation.schedule,
    ),
    "model.init_args.optimisation.init_args.newly_initialized_multiple": (
        1.0,
        2.0,
        lambda cli: cli.model.optimisation.newly_initialized_multiple,
    ),
    "checkpoint.monitor": ("test/rsum", "val/rsum", lambda cli: cli.trainer.checkpoint_callback.monitor),
    "data.init_args.train_on": (["train"], ["train"], lambda cli: list(cli.datamodule.train_on)),
}
OTHER_OPTIONS = [
    f"--{option}={str(other).lower()}" for option, (_, other, _) in SWITCHES.items() if "train_on" not in option
]


def test_switches_cover_all_paper_settings() -> None:
    assert set(SWITCHES) - {"data.init_args.train_on"} == (set(PAPER) | set(PAPER_SDR)) - {
        "checkpoint.protocol",
        "model.init_args.protocol",
    }


def test_paper_overrides_all_switches(base: Callable[..., list[str]]) -> None:
    cli = build(base(*OTHER_OPTIONS, "--protocol", "paper"))
    assert {option: read(cli) for option, (_, _, read) in SWITCHES.items()} == {
        option: paper for option, (paper, _, _) in SWITCHES.items()
    }
    assert cli.protocol == cli.model.protocol == "paper"


def test_paper_protocol_works_with_methods_other_than_sdr(base: Callable[..., list[str]]) -> None:
    options = ("--model.init_args.method", "sdr_lightning.methods.InfoNCE", "--model.init_args.rerank", "null")
    cli = build(base(*options, "--protocol", "paper"))
    assert cli.model.protocol == "paper"


def test_clean_overrides_no_switch(base: Callable[..., list[str]]) -> None:
    cli = build(base(*OTHER_OPTIONS))
    assert {option: read(cli) for option, (_, _, read) in SWITCHES.items()} == {
        option: other for option, (_, other, _) in SWITCHES.items()
    }
    assert cli.protocol == "clean"


def test_paper_protocol_accepts_sources_without_name(experiments: Path, tmp_path: Path) -> None:
    files = ("--model", experiments / "models/tiny_fusion.yaml", "--data", experiments / "data/scenes.yaml")
    cli = build([str(part) for part in (*files, "--protocol", "paper", "--run_dir", tmp_path)])
    assert cli.datamodule.select_on == "test"


@pytest.mark.parametrize(("name", "images"), [("flickr30k-of-someone", 18), ("my-flickr30k", 12)])
def test_flickr30k_trains_on_validation_too(name: str, images: int, base: Callable[..., list[str]]) -> None:
    cli = build(base("--protocol", "paper", name=name))
    assert len(cli.datamodule.split("train").table.image_ids) == images
    assert len(cli.datamodule.split("test").table.image_ids) == 7
    assert len(build(base(name=name)).datamodule.split("train").table.image_ids) == 12


def test_captions_are_truncated_to_60_and_30_words(base: Callable[..., list[str]]) -> None:
    tokens = "--data.init_args.tokenizer.init_args.max_tokens=500"
    for protocol, train, evaluation in (("paper", 60, 30), ("clean", 80, 80)):
        data = build(base("--protocol", protocol, tokens, words=80)).datamodule
        for split, words in (("train", train), ("val", evaluation), ("test", evaluation)):
            texts = data.split(split).tokens
            assert isinstance(texts, Tokens)
            assert set(texts.attention_mask.sum(dim=1).tolist()) == {words + 2}  # [CLS] and [SEP]


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail, and return its error line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdr")]
    assert len(lines) == 1
    return lines[0]


def test_paper_protocol_rejects_teachers(experiments: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = ("--config", experiments / "scenes/text_teacher.yaml", "--run_dir", tmp_path / "run")
    line = error_of(capsys, "fit", *teacher, "--protocol", "paper")
    assert "--protocol paper is for students, and the model is a sdr_lightning.training.TeacherModule" in line
    assert not list(tmp_path.glob("run/*"))


def test_invalid_options_are_rejected(base: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    line = error_of(capsys, "fit", *base("--model.init_args.optimisation=null", "--protocol", "paper"))
    assert "configure model.init_args.optimisation" in line
    assert "paper" in error_of(capsys, "fit", *base("--protocol", "papers"))


def test_selection_on_test_requires_the_paper_protocol() -> None:
    for monitor in ("test/rsum", "test/i2t_R@1"):
        with pytest.raises(ValueError, match="models are never selected on test"):
            BestCheckpoint(monitor)
        assert BestCheckpoint(monitor, protocol="paper").monitor == monitor
    assert BestCheckpoint("val/rsum").monitor == "val/rsum"
    assert BestCheckpoint(None).monitor is None


def test_clean_protocol_rejects_selection_on_test(base: Callable[..., list[str]]) -> None:
    select_on = "--data.init_args.select_on=test"
    for options in ((select_on,), (select_on, "--checkpoint.monitor=test/rsum", "--checkpoint.protocol=paper")):
        with pytest.raises(ValueError, match="under protocol clean models are selected on val/rsum, never on test"):
            build(base(*options))


@pytest.fixture(scope="module")
def runs(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Train a student for one epoch under each protocol."""
    folder = tmp_path_factory.mktemp("protocols")
    options = [
        *("--model", str(experiments / "models/tiny_fusion.yaml"), "--data", str(experiments / "data/scenes.yaml")),
        *(*scenes(words=50), *MATCHING, "--data.init_args.batch_size=30", f"--data.init_args.cache={folder}"),
        *("--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    ]
    for protocol in ("clean", "paper"):
        assert main(["fit", *options, "--protocol", protocol, "--run_dir", str(folder / protocol)]) == 0
    return options, folder


def test_protocol_is_recorded_and_determines_the_evaluation(runs: tuple[list[str], Path]) -> None:
    options, folder = runs
    for protocol in ("clean", "paper"):
        assert json.loads((folder / protocol / "run.json").read_text())["protocol"] == protocol
        best = folder / protocol / "checkpoints/best.ckpt"
        assert torch.load(best, weights_only=True)["protocol"] == protocol
        test = ["test", *options, "--protocol", protocol, "--ckpt_path", str(best)]
        cli = run([*test, "--run_dir", str(folder / f"{protocol}-test")])
        results = json.loads((folder / f"{protocol}-test/results.json").read_text())
        assert results["protocol"] == protocol
        assert {"rsum", "reranked_rsum"} <= results["metrics"].keys()
        # the public code has no i2t_NDCG
        assert ("i2t_NDCG@10" in results["metrics"]) == (protocol == "clean")
        evaluation = json.loads((folder / f"{protocol}-test/metrics.json").read_text())
        assert evaluation.pop("meta")["protocol"] == protocol
        assert evaluation == results["metrics"]
    assert isinstance(cli.model, RetrievalModule)
    assert cli.model.test_embeddings is not None
    image, text = cli.model.test_embeddings
    pairs, relevance = cli.datamodule.split("test").caption_image, cli.datamodule.relevance("test")
    expected = evaluate_published(image, text, pairs, relevance).metrics
    assert {name: cli.model.test_metrics[name] for name in expected} == expected
    assert {f"reranked_{name}" for name in expected} == cli.model.test_metrics.keys() - expected.keys()


def test_validation_uses_the_selection_split(runs: tuple[list[str], Path]) -> None:
    columns = {}
    for protocol in ("clean", "paper"):
        with (runs[1] / protocol / "metrics.csv").open() as file:
            columns[protocol] = set(csv.DictReader(file).fieldnames or ())
    assert "val/rsum" in columns["clean"] - columns["paper"]
    assert "test/rsum" in columns["paper"] - columns["clean"]
    assert not [name for name in columns["paper"] if name.startswith("val/")]


@IGNORED
@pytest.mark.parametrize(("command", "trained", "tested"), [("test", "clean", ["paper"]), ("validate", "paper", [])])
def test_checkpoints_of_the_other_protocol_are_rejected(
    command: str,
    trained: str,
    tested: list[str],
    runs: tuple[list[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, folder = runs
    protocol = ["--protocol", *tested] if tested else []
    best = ("--ckpt_path", folder / trained / "checkpoints/best.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        line = error_of(capsys, command, *options, *protocol, *best, "--run_dir", tmp_path)
    assert not [str(warning.message) for warning in caught if "callbacks" in str(warning.message)]
    assert f"trained under protocol {trained}: use --protocol {trained}" in line
    assert not (tmp_path / "results.json").exists()


@IGNORED
def test_training_is_not_resumed_under_the_other_protocol(
    runs: tuple[list[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options, folder = runs
    again = (*options, "--trainer.max_epochs=2", "--run_dir", folder / "paper", "--ckpt_path", "last")
    before = (folder / "paper/config.yaml").read_text()
    assert "use --protocol paper" in error_of(capsys, "fit", *again)
    assert (folder / "paper/config.yaml").read_text() == before
