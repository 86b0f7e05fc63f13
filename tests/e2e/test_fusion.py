"""Training and testing a student with a fusion encoder on the command line, in one and two processes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sdr_lightning.cli.main import main
from tests.e2e.sdr import SMALL, sdr, succeeded

WEIGHTS = "--model.init_args.method.init_args.weights"
MATCHED = (WEIGHTS, '{"itc": 1, "itm": 2}')
MEASURES = {
    f"{way}_{what}" for way in ("i2t", "t2i") for what in ("R@1", "R@5", "R@10", "MdR", "MnR", "MRR", "tie_rate")
}


@pytest.fixture(scope="module")
def options(experiments: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return options of a small student with fusion; 61 test images are not divisible by two processes."""
    cache = tmp_path_factory.mktemp("cache")
    return (
        *("--model", str(experiments / "models/tiny_fusion.yaml"), "--data", str(experiments / "data/scenes.yaml")),
        *(*SMALL, "--data.init_args.source.init_args.num_test=61", f"--data.init_args.cache={cache}"),
        *("--model.init_args.rerank=8", "--trainer.accelerator=cpu", "--trainer.max_epochs=3", *MATCHED),
    )


@pytest.fixture(scope="module")
def fitted(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fusion") / "run"
    assert main(["fit", *options, "--run_dir", str(folder)]) == 0
    return folder


def epochs(folder: Path, column: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row.get(column)]


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "results.json").read_text())["metrics"]
    return found


def results_of(fitted: Path, options: tuple[str, ...], folder: Path, *more: str) -> dict[str, float]:
    best = ("--ckpt_path", str(fitted / "checkpoints/best.ckpt"), "--run_dir", str(folder))
    assert main(["test", *options, *best, *more]) == 0
    assert main(["report", str(folder / "metrics.json")]) == 0
    return metrics(folder)


@pytest.mark.slow
def test_training_reduces_losses_and_testing_is_reproducible(
    fitted: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    for term in ("itc", "itm", "loss"):
        losses = epochs(fitted, f"train/{term}")
        assert len(losses) == 3
        assert losses[-1] < losses[0], term
    assert not epochs(fitted, "val/reranked_rsum")  # validation is by cosine
    found = results_of(fitted, options, tmp_path / "a")
    assert {f"reranked_{name}" for name in (*MEASURES, "rsum")} == {n for n in found if n.startswith("reranked_")}
    assert MEASURES | {"rsum", "modality_gap"} <= found.keys()
    recalls = [found[f"reranked_{way}_R@{k}"] for way in ("i2t", "t2i") for k in (1, 5, 10)]
    assert found["reranked_rsum"] == pytest.approx(sum(recalls))
    # Re-ranking eight candidates does not change recall at 10.
    for way in ("i2t", "t2i"):
        assert found[f"reranked_{way}_R@10"] == found[f"{way}_R@10"]
    assert found == results_of(fitted, options, tmp_path / "b")


@pytest.mark.slow
def test_reranking_of_one_candidate_keeps_cosine_metrics(
    fitted: Path, options: tuple[str, ...], tmp_path: Path
) -> None:
    one = results_of(fitted, options, tmp_path / "one", "--model.init_args.rerank=1")
    for name in MEASURES:
        if "tie_rate" not in name:
            assert one[f"reranked_{name}"] == one[name], name
    none = results_of(fitted, options, tmp_path / "none", "--model.init_args.rerank=null")
    assert none == {name: value for name, value in one.items() if not name.startswith("reranked_")}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ("--model.init_args.encoder.init_args.fusion.init_args.image_width=64",),
            "set fusion.init_args.image_width to 96",
        ),
        (("--model.init_args.start_from=nowhere.ckpt",), "nowhere.ckpt: run the earlier stage first"),
    ],
)
def test_invalid_options_are_rejected_in_one_line(
    more: tuple[str, ...],
    message: str,
    options: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["fit", *options, *more, "--run_dir", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdr")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.slow
def test_all_terms_with_two_teachers(experiments: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    """With the weights and relation of the configuration file, and banks of untrained teachers."""
    banks = []
    for modality in ("image", "text"):
        bank = tmp_path / f"{modality}.safetensors"
        teacher = ("--teacher", experiments / f"scenes/{modality}_teacher.yaml", "--output", bank)
        succeeded(sdr("extract", "--config", experiments / "scenes/sdr.yaml", *SMALL[:3], *teacher))
        banks.append(f"--data.init_args.{modality}_bank={bank}")
    at = options.index(WEIGHTS)
    succeeded(
        sdr("fit", *options[:at], *options[at + 2 :], *banks, "--trainer.max_epochs=2", "--run_dir", tmp_path / "run")
    )
    for term in ("itc", "itm", "iic", "ttc", "kd", "kdi", "kdt"):
        assert len(epochs(tmp_path / "run", f"train/{term}")) == 2
    losses = epochs(tmp_path / "run", "train/loss")
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_reranking_in_two_processes_equals_one(fitted: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    one = results_of(fitted, options, tmp_path / "one")
    best = ("--ckpt_path", fitted / "checkpoints/best.ckpt", "--run_dir", tmp_path / "two")
    succeeded(sdr("test", *options, *best, "--trainer.devices=2", "--trainer.strategy=ddp"))
    assert metrics(tmp_path / "two") == one


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "rerank"), [('{"itc": 1, "itm": 2}', "8"), ('{"itc": 1}', "null")])
def test_two_processes_train(weights: str, rerank: str, options: tuple[str, ...], tmp_path: Path) -> None:
    """With all parameters in use, and with an unused fusion encoder."""
    more = ("--trainer.devices=2", "--trainer.strategy=ddp", "--model.init_args.negatives=global")
    more += (f"--model.init_args.rerank={rerank}",)
    succeeded(sdr("fit", *options, WEIGHTS, weights, *more, "--run_dir", tmp_path / "run"))
    losses = epochs(tmp_path / "run", "train/itc")
    assert len(losses) == 3
    assert losses[-1] < losses[0]
