"""Every file in experiments/ is parsed and becomes what it describes."""

from collections import defaultdict
from math import prod
from pathlib import Path

import pytest
import yaml
from transformers import BertConfig, BertModel

from sdr_lightning.configure import build, build_data
from sdr_lightning.data.tokenizer import PretrainedTokenizer
from sdr_lightning.methods.sdr import PAPER_WEIGHTS
from sdr_lightning.studies.plan import plan
from sdr_lightning.studies.spec import read_study

ROOT = Path(__file__).parent.parent / "experiments"
FILES = sorted(ROOT.rglob("*.yaml"))
STUDIES = [path for path in FILES if path.stem.startswith("study") or path.parent.name == "benchmark"]
BENCHMARKS = [path for path in STUDIES if path.parent.name == "benchmark"]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))  # tests/sweeps builds a run of each
OVERLAYS = sorted(
    path for place in ("_base/*", "methods/*", "*/teachers", "*/*/overlay_*") for path in ROOT.glob(f"{place}.yaml")
)
FRAGMENTS = sorted(path for folder in ("models", "data", "sources") for path in (ROOT / folder).glob("*.yaml"))
SOURCES = sorted((ROOT / "sources").glob("*.yaml"))
DATA = sorted((ROOT / "data").glob("*.yaml"))
ROOTS = ("FLICKR8K_ROOT", "FLICKR30K_ROOT", "COCO_ROOT", "VIZWIZ_ROOT", "OWN_ROOT", "PRECOMP_ROOT", "IMAGE_WEIGHTS")
EXPERIMENTS = [path for path in FILES if path not in {*STUDIES, *SWEEPS, *OVERLAYS, *FRAGMENTS}]


def test_headers_describe_the_file_its_command_duration_and_result() -> None:
    lacking = [str(path) for path in FILES if not path.read_text().startswith("# ")]
    for path in (*EXPERIMENTS, *STUDIES, *SWEEPS):
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        for label in ("# Command:", "# Duration:", "# Result:"):
            if not any(line.startswith(label) for line in header):
                lacking.append(f"{path}: {label}")
    assert not lacking


def test_models_have_the_papers_options_only_with_a_fusion_encoder() -> None:
    paper = yaml.safe_load((ROOT / "methods/sdr_paper.yaml").read_text())["model"]["init_args"]["method"]["init_args"]
    assert paper["weights"] == {term: weight for term, weight in PAPER_WEIGHTS.items() if term != "itm"}
    assert (paper["relation"], paper["centre_teachers"]) == ("averaged", False)
    for path in (ROOT / "models").glob("*.yaml"):
        model = yaml.safe_load(path.read_text())["init_args"]
        options = model["method"]["init_args"]
        found = options["weights"], options.get("relation"), options.get("centre_teachers", False)
        if "fusion" in model["encoder"]["init_args"]:
            assert found == (PAPER_WEIGHTS, "fused", False), path
        elif "kd" in options["weights"]:
            assert found == (paper["weights"] | {"kd": 1}, {"image_image": 1, "text_text": 1}, True), path


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path,
            marks=() if path.parent.name == "scenes" else pytest.mark.slow,
            id=str(path.relative_to(ROOT)),
        )
        for path in STUDIES  # each method is built, at each point of its space
    ],
)
def test_a_study_has_its_cells(path: Path, tmp_path: Path) -> None:
    study = read_study(path)
    ratios = [study.ratios if each.ratios is None else each.ratios for each in study.imbalances.values()]
    conditions = sum(len([ratio for ratio in each if ratio]) for each in ratios) + any(0 in each for each in ratios)
    planned = plan(study, tmp_path, chosen=defaultdict(dict))
    assert len(planned.cells) == len(study.methods) * conditions * len(study.seeds)
    assert len(study.seeds) >= (2 if path.stem == "mini" else 3)


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_gives_every_method_the_same(path: Path) -> None:
    """The same number of points to tune, the configured one included, and overlays that each stand for a method of its own."""
    study = read_study(path)
    sizes = {prod(len(values["values"]) for values in (m.space or {}).values()) for m in study.methods.values()}
    trials = 1 if study.tuning is None else study.tuning.trials
    assert sizes <= {trials, trials - 1}  # the latter where the space does not have the configured point
    overlays = [{config.stem for stage in m.stages for config in stage.config} for m in study.methods.values()]
    assert sorted(map(sorted, overlays)) == sorted([stem] for stem in set().union(*overlays))
    assert study.baseline == "InfoNCE"


@pytest.mark.slow
@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_experiment_is_instantiated(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights are stood in for, because they are not at hand: images by random ones, text by a small BERT."""
    for name in ROOTS:
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("TEXT_WEIGHTS", small_bert(tmp_path / "bert"))
    monkeypatch.setattr("sdr_lightning.encoders.image.load_state", lambda *_, **__: None)
    cli = build(["--config", str(path), "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"])
    assert cli.datamodule is not None
    assert cli.model is not None


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_data_is_instantiated(path: Path) -> None:
    data = build_data(["--data", str(path)])
    assert data.banks["image"] is not None
    assert [part.ratio for part in data.imbalances] == [0]
    assert build_data(["--data", str(path), "--data.init_args.imbalance.ratio", "0.4"]).imbalances[0].ratio == 0.4


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_a_source_takes_the_place_of_another(path: Path) -> None:
    data = build_data(
        ["--data", str(ROOT / "data/flickr30k_frozen.yaml"), "--data.init_args.source", str(path.resolve())]
    )
    described = yaml.safe_load(path.read_text())
    assert type(data.source).__name__ == described["class_path"].rpartition(".")[2]
    assert data.source.name == described["init_args"]["name"]


@pytest.mark.slow
@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_overlay_fits_an_experiment(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if path.stem == "gpu":
        assert yaml.safe_load(path.read_text())["trainer"]["accelerator"] == "gpu"  # cannot be built without one
        return
    monkeypatch.setenv("FLICKR30K_ROOT", str(tmp_path))
    monkeypatch.setenv("IMAGE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TEXT_WEIGHTS", small_bert(tmp_path / "bert"))
    monkeypatch.setattr("sdr_lightning.encoders.image.load_state", lambda *_, **__: None)
    experiment = ROOT / f"flickr30k/{'sdr' if path.stem == 'random_weights' else 'frozen'}.yaml"
    build(["--config", str(experiment), "--config", str(path), "--run_dir", str(tmp_path / "run")])


def small_bert(folder: Path) -> str:
    """A BERT with random weights and a vocabulary, as a folder that transformers reads."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog"]
    sizes = {"hidden_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    PretrainedTokenizer(str(folder / "vocab.txt")).tokenizer.save_pretrained(folder)
    return str(folder)
