import json
import stat
from pathlib import Path

import pytest

from sdr_lightning.paths import expand, package_path, write_atomically, write_json


@pytest.mark.parametrize(
    ("reference", "expanded"),
    [
        ("/data/images", "/data/images"),
        ("plain", "plain"),
        ("$ROOT/x", "/r/x"),
        ("${ROOT}/x", "/r/x"),
        ("${ROOT}_$NAME/${NAME}", "/r_n/n"),
        ("${ROOT:-/elsewhere}/x", "/r/x"),
        ("${UNSET:-/elsewhere}/x", "/elsewhere/x"),
        ("${UNSET:-}x", "x"),
        ("${EMPTY:-/elsewhere}/x", "/elsewhere/x"),
        ("$ROOT/${UNSET:-a b}/$NAME", "/r/a b/n"),
        ("${UNSET:-a}/${ROOT:-b}/{c}", "a//r/{c}"),
        ("package:some/${NAME}", "package:some/n"),
        ("~/x", "/home/me/x"),
        ("${UNSET:-~/x}", "/home/me/x"),
        ("/a/~/x", "/a/~/x"),
        ("cost: 5$", "cost: 5$"),
    ],
)
def test_expand(reference, expanded, monkeypatch):
    for name, value in {"ROOT": "/r", "NAME": "n", "EMPTY": "", "HOME": "/home/me"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)
    assert expand(reference) == expanded


@pytest.mark.parametrize("reference", ["$UNSET/x", "${UNSET}/x", "a/${ROOT:-b}/$UNSET"])
def test_a_variable_that_is_not_set_is_named(reference, monkeypatch):
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(ValueError, match=r"needs the environment variable UNSET, .*export UNSET=") as caught:
        expand(reference)
    assert repr(reference) in str(caught.value)


def test_a_value_is_not_expanded_again(monkeypatch):
    monkeypatch.setenv("ROOT", "$OTHER")
    assert expand("$ROOT/x") == "$OTHER/x"


def test_a_reference_into_a_package(tmp_path, monkeypatch):
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_path("package:some_weights/model/small") == str(package / "model/small")
    assert package_path("package:some_weights") == str(package)


@pytest.mark.parametrize("reference", ["/data/x", "hub/name", "packages:x", "x/package:y", ""])
def test_anything_else_is_returned_as_it_is(reference):
    assert package_path(reference) == reference


def test_a_package_that_is_not_installed():
    with pytest.raises(ValueError, match=r"'package:no_such/x' names the package no_such.*pip install no_such"):
        package_path("package:no_such/x")


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_is_written_in_one_step(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    seen = []

    def write(part):
        seen.append(part)
        assert not path.exists()
        part.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.json"]
    (part,) = seen
    assert (part.parent, part.suffix) == (path.parent, ".json")  # same file system, and a suffix that writers read
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(part):
        part.write_text("new, half")
        assert path.read_text() == "old"
        part.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_leaves_nothing_behind(tmp_path, error, exists):
    path = tmp_path / "file.txt"
    if exists:
        path.write_text("old")

    def write(part):
        part.write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_atomically(path, write)
    assert names(tmp_path) == (["file.txt"] if exists else [])
    assert not exists or path.read_text() == "old"


def test_a_writer_may_replace_the_temporary_file(tmp_path):
    def write(part):
        other = Path(f"{part}.other")
        other.write_text("new")
        other.rename(part)

    write_atomically(tmp_path / "file", write)
    assert names(tmp_path) == ["file"]


def test_json(tmp_path):
    value = {"b": [1, None, 0.5], "a": "Ünï"}
    write_json(tmp_path / "file.json", value)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Ünï" in text
    assert text.startswith('{\n  "b"')
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert (tmp_path / "file.json").read_text() == "1\n"
    assert names(tmp_path) == ["file.json"]
