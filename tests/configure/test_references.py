"""Paths in a configuration, and options that are null."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from sdr_lightning.configure import build_data
from sdr_lightning.configure.arguments import with_nulls
from sdr_lightning.data.tabular import TabularSource
from sdr_lightning.data.tokenizer import PretrainedTokenizer
from sdr_lightning.paths import anchored


@pytest.mark.parametrize(
    ("reference", "path"),
    [
        ("a.csv", "/here/a.csv"),
        ("../a.csv", "/a.csv"),
        ("a/$NAME.csv", "/here/a/$NAME.csv"),
        ("${NAME:-../a}/b", "${NAME:-/a}/b"),
        *((same, same) for same in ("/a", "~/a", "${NAME}/a", "package:a/b", "https://a/b", "")),
    ],
)
def test_relative_paths_are_anchored(reference: str, path: str) -> None:
    assert anchored(reference, Path("/here")) == path


def test_names_of_existing_files_are_paths(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    assert anchored("bert", tmp_path, may_be_name=True) == str(tmp_path / "bert")
    assert anchored("bert-base-uncased", tmp_path, may_be_name=True) == "bert-base-uncased"
    assert anchored("./bert-base-uncased", tmp_path, may_be_name=True) == str(tmp_path / "bert-base-uncased")


@pytest.fixture
def fragment(tmp_path: Path) -> Path:
    """Write a data configuration whose source is a file in another folder."""
    source = {
        "class_path": "sdr_lightning.data.TabularSource",
        "init_args": {"name": "own", "table": "t.csv", "images": "../images", "split_column": "split"},
    }
    tokenizer = {"class_path": "sdr_lightning.data.PretrainedTokenizer", "init_args": {"weights": "bert-base-uncased"}}
    data = {
        "source": "sources/own.yaml",
        "tokenizer": tokenizer,
        "batch_size": 4,
        "image_bank": "${BANK:-b/i.safetensors}",
    }
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources/own.yaml").write_text(yaml.safe_dump(source))
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"class_path": "sdr_lightning.data.RetrievalDataModule", "init_args": data}))
    return path


@pytest.mark.parametrize("in_a_run", [False, True])
def test_paths_in_yaml_are_relative_to_it(
    in_a_run: bool, fragment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_a_run:
        (tmp_path / "runs").mkdir()
        whole = {"model": {"class_path": "is.Ignored"}, "run_dir": "x", "data": "../data.yaml", "ckpt_path": None}
        fragment = tmp_path / "runs/config.yaml"
        fragment.write_text(yaml.safe_dump(whole))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    data = build_data(["--data", str(fragment), "--data.init_args.source.init_args.leave_out", "ids.txt"])
    assert isinstance(data.source, TabularSource)
    assert isinstance(data.tokenizer, PretrainedTokenizer)
    assert data.source.file == str(tmp_path / "sources/t.csv")
    assert data.source.root == str(tmp_path / "images")
    assert data.source.leave_out == str(elsewhere / "ids.txt")
    assert data.banks["image"] == f"${{BANK:-{tmp_path}/b/i.safetensors}}"
    assert data.tokenizer.weights == "bert-base-uncased"
    assert data.cache == Path("cache")  # in the current folder


def test_null_on_the_command_line_is_none(fragment: Path) -> None:
    source = build_data(["--data", str(fragment), "--data.source.split_column", "null"]).source
    assert isinstance(source, TabularSource)
    assert source.split_column is None
    options = [f"--data.init_args.source.init_args.{name}" for name in ("split_column", "leave_out")]
    data = build_data(["--data", str(fragment), options[0], "null", options[1], "null"])
    assert isinstance(data.source, TabularSource)
    assert data.source.split_column is None
    assert data.source.leave_out is None
    data = build_data(
        [
            "--data",
            str(fragment),
            "--data.init_args.imbalance",
            '{"kind": "mismatch"}',
            "--data.init_args.imbalance.file=null",
        ]
    )
    assert data.imbalances[0].file is None


@pytest.mark.parametrize(
    ("words", "rewritten"),
    [
        (["--a.init_args.b", "null", "--a.init_args.b.c", "nullable", "--x=null"], None),
        (["--a.init_args.b.init_args.c=null"], ["--a.init_args", '{"b": {"init_args": {"c": null}}}']),
        (["--data.b.c", "null"], ["--data", '{"b": {"c": null}}']),
        (["--a.init_args.b.c", "[1, null]"], ["--a.init_args", '{"b": {"c": [1, null]}}']),
    ],
)
def test_only_options_with_null_are_rewritten(words: list[str], rewritten: list[str] | None) -> None:
    assert with_nulls(words) == (words if rewritten is None else rewritten)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no configuration of data at"), ("[1]", "is no configuration of data"), ("a: [", "is not YAML")],
)
def test_invalid_data_configurations_are_rejected(content: Any, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "d.yaml").write_text(content)
    with pytest.raises(ValueError, match=message):
        build_data(["--data", str(tmp_path / "d.yaml")])
