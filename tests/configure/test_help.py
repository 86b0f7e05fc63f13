import re
from pathlib import Path

import pytest

from sdr_lightning.cli.main import main
from sdr_lightning.configure import parse
from sdr_lightning.configure.first_options import GROUPS, is_short_help, short_help
from sdr_lightning.configure.help import help_text
from sdr_lightning.configure.shipped import experiment_path

SCENES = str(Path(__file__).parents[2] / "experiments/scenes/sdr.yaml")


def test_help_lists_every_key_with_the_values_of_the_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", SCENES, "--help=all"]) == 0
    printed = capsys.readouterr().out
    for key in (
        "--run_dir",
        "--model.init_args.encoder.init_args.image_tower.init_args.name = resnet10t",
        "--model.init_args.method.init_args.weights = {",
        "--data: RetrievalDataModule",
        "--data.init_args.source: SceneSource",
        "--data.init_args.source.init_args.num_train",
        "--data.init_args.imbalance.kind = mismatch",
        "--checkpoint.monitor = val/rsum",
        "--image_teacher.config",
        "--trainer.max_epochs",
    ):
        assert key in printed, key


def test_help_without_a_configuration_lists_the_classes() -> None:
    printed = " ".join(help_text("fit", ["--help"]).split())
    assert "--data.init_args.source.class_path (required)" in printed
    assert "TabularSource" in printed
    assert "[image | text | pair]" in printed
    assert (
        "one of DualEncoder, ProbabilisticEncoder, TwinEncoder (sdr_lightning.encoders), or your own class" in printed
    )


def test_the_first_options_fit_a_screen_and_exist() -> None:
    """With the values of the experiment; every option is one of those that the whole help lists."""
    everything = help_text("fit", ["--config", SCENES, "--help=all"])
    for command in ("fit", "validate", "test"):
        lines = short_help(command, ["--config", SCENES, "--help"]).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 120
    for option in (option.partition(" ")[0] for options in GROUPS.values() for option in options):
        assert re.search(rf"--{re.escape(option)}\b", everything), option
    assert "pairs in a batch, over all processes (here 128)" in "\n".join(lines)
    assert "(here" not in short_help("fit", ["--help"])


@pytest.mark.parametrize("overlay", ["feature_distillation", "infonce"])
def test_the_values_shown_are_those_of_the_run(overlay: str) -> None:
    """Of another method, ``sdr fit`` keeps the options that both have."""
    words = ["--config", SCENES, "--config", experiment_path(f"sdr:methods/{overlay}.yaml")]
    used = parse(words)["model"]["init_args"]["method"]
    keys = used["init_args"].keys() | {"embedding_width", "weights"}
    shown = help_text("fit", [*words, "--help=all"])
    for key in keys - {"temperature"}:
        line = f"--model.init_args.method.init_args.{key} = {used['init_args'].get(key)}"
        assert (line in shown) == (key in used["init_args"]), line
    assert "init_args.initial = 0.07" in shown
    assert "weights of the loss terms (here" not in short_help("fit", [*words, "--help"])
    assert "weights of the loss terms (here" in short_help("fit", [*words[:2], "--help"])


def test_which_help_is_asked_for() -> None:
    for words in (["--help"], ["-h"], ["--config", "help.yaml", "--help"]):
        assert is_short_help(words)
    for words in (
        ["--help=all"],
        ["--help", "all"],
        ["--data.help"],
        ["--help", "--data.help"],
        ["--config", "x.yaml"],
    ):
        assert not is_short_help(words)
    with pytest.raises(ValueError, match="--help=data: expected --help or --help=all"):
        is_short_help(["--help=data"])


def test_data_help_lists_the_keys_of_the_data(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["fit"], ["data", "check"], ["noise", "make"], ["extract"]):
        assert main([*command, "--data.help"]) == 0
        printed = capsys.readouterr().out
        assert "--data.init_args.batch_size (required)" in printed, command
        assert "--model" not in printed, command
        assert main([*command, "--data.help", "sdr_lightning.data.TabularSource"]) == 0
        assert "init_args.caption_columns" in capsys.readouterr().out, command


def test_help_rejects_unknown_classes_and_malformed_configurations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no class TabularSource: give its whole name"):
        help_text("fit", ["--data.help=TabularSource"])
    with pytest.raises(ValueError, match=r"there is no class sdr_lightning\.data: give its whole name"):
        help_text("fit", ["--data.help", "sdr_lightning.data"])
    path = tmp_path / "d.yaml"
    for text in ("a,b", "- a", "data: d.yaml"):  # the last one refers to itself
        path.write_text(text)
        with pytest.raises(ValueError, match="no configuration"):
            help_text("fit", ["--config", str(path), "--help"])
