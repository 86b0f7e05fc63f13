import gc
import json
import math
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from sdr_lightning.paths import check_output, expand, package_path, read_json, text_lines, write_atomically, write_json


def test_expand(monkeypatch: pytest.MonkeyPatch) -> None:
    for reference, expanded in [
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
    ]:
        for name, value in {"ROOT": "/r", "NAME": "n", "EMPTY": "", "HOME": "/home/me"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("UNSET", raising=False)
        assert expand(reference) == expanded


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for reference in ["$UNSET/x", "${UNSET}/x", "a/${ROOT:-b}/$UNSET"]:
        monkeypatch.delenv("UNSET", raising=False)
        with pytest.raises(ValueError, match=r"needs the environment variable UNSET, .*export UNSET=") as caught:
            expand(reference)
        assert repr(reference) in str(caught.value)


def test_a_value_is_not_expanded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", "$OTHER")
    assert expand("$ROOT/x") == "$OTHER/x"


def test_a_reference_into_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_path("package:some_weights/model/small") == str(package / "model/small")
    assert package_path("package:some_weights") == str(package)


def test_other_references_are_returned_unchanged() -> None:
    for reference in ["/data/x", "hub/name", "packages:x", "x/package:y", ""]:
        assert package_path(reference) == reference


def test_a_package_that_is_not_installed() -> None:
    with pytest.raises(ValueError, match=r"'package:no_such/x' names the package no_such.*pip install no_such"):
        package_path("package:no_such/x")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_file_is_written_atomically(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    seen: list[Path] = []

    def write(part: Path) -> None:
        seen.append(part)
        assert not path.exists()
        part.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.json"]
    (part,) = seen
    assert (part.parent, part.suffix) == (path.parent, ".json")  # same file system, and a suffix that writers read
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_reader_sees_the_old_file_until_writing_ends(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("new, half")
        assert path.read_text() == "old"
        part.write_text("new")

    write_atomically(path, write)
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize(("error", "exists"), [(OSError, True), (ValueError, False), (KeyboardInterrupt, True)])
def test_failed_write_keeps_the_old_file_and_no_temporary_file(
    tmp_path: Path, error: type[BaseException], exists: bool
) -> None:
    path = tmp_path / "file.txt"
    if exists:
        path.write_text("old")

    def write(part: Path) -> None:
        part.write_text("half")
        raise error("stop")

    with pytest.raises(error, match="stop"):
        write_atomically(path, write)
    assert names(tmp_path) == (["file.txt"] if exists else [])
    assert not exists or path.read_text() == "old"


def test_a_writer_may_replace_the_temporary_file(tmp_path: Path) -> None:
    def write(part: Path) -> None:
        other = Path(f"{part}.other")
        other.write_text("new")
        other.rename(part)

    write_atomically(tmp_path / "file", write)
    assert names(tmp_path) == ["file"]


def test_json(tmp_path: Path) -> None:
    value = {"b": [1, None, 0.5], "a": "Ünï"}
    write_json(tmp_path / "file.json", {"b": (1, math.nan, 0.5), "a": "Ünï"})  # JSON has no NaN
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert "Ünï" in text
    assert text.startswith('{\n  "b"')
    assert text.endswith("}\n")


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert (tmp_path / "file.json").read_text() == "1\n"
    assert names(tmp_path) == ["file.json"]


def test_lines_of_a_text_file(tmp_path: Path) -> None:
    for content, lines in [
        (b"a\nb\n", ["a", "b"]),
        (b"a\nb", ["a", "b"]),
        (b"a\n\nb\n\n", ["a", "", "b", ""]),
        ("é\u2028\x85 猫\n".encode(), ["é\u2028\x85 猫"]),  # of all that Unicode calls a line break, one is one here
        (b"\xef\xbb\xbfa\n", ["a"]),
        (b"", [""]),
    ]:
        (tmp_path / "file.txt").write_bytes(content)
        assert text_lines(tmp_path / "file.txt") == lines


def test_lines_of_what_is_no_text_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"no text file at {tmp_path}/none \(No such file or directory\)"):
        text_lines(tmp_path / "none")
    with pytest.raises(ValueError, match=rf"no text file at {tmp_path} \(Is a directory\)"):
        text_lines(tmp_path)
    (tmp_path / "latin").write_bytes("fine\ncafé\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{tmp_path}/latin is not UTF-8 text: .* position 8"):
        text_lines(tmp_path / "latin")


def test_reading_json(tmp_path: Path) -> None:
    value = {"b": [1, None, 0.5], "a": "Ünï"}
    write_json(tmp_path / "file.json", value)
    assert read_json(tmp_path / "file.json", "anything") == value


def test_malformed_json_is_refused(tmp_path: Path) -> None:
    for content in [b"", b"{", b"[1, 2", b"[1] [2]", b"{'a': 1}", b'"caf\xe9"', b"\x1f\x8b\x08"]:
        path = tmp_path / "file.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is not JSON in UTF-8: "):
            read_json(path, "anything")


@pytest.mark.parametrize(("content", "collecting"), [("[]", True), ("no json", False), ("no json", True)])
def test_reading_json_leaves_the_garbage_collector_as_it_was(tmp_path: Path, content: str, collecting: bool) -> None:
    (tmp_path / "file.json").write_text(content)
    before = gc.isenabled()
    (gc.enable if collecting else gc.disable)()
    try:
        with suppress(ValueError):
            read_json(tmp_path / "file.json", "anything")
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if before else gc.disable)()


def test_json_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(ValueError, match=rf"no file at {path} \(No such file or directory\): expected a list of names"):
        read_json(path, "a list of names")


def test_an_output_never_replaces_what_is_read_or_foreign(tmp_path: Path) -> None:
    path, empty = tmp_path / "x.json", tmp_path / "empty.json"
    check_output(path)
    path.write_text("mine")
    empty.write_text("")
    check_output(empty)
    check_output(path, is_own=lambda file: file.read_text() == "mine")
    with pytest.raises(ValueError, match=r"x.json exists and was not written by this command: choose another name"):
        check_output(path, is_own=lambda file: False)
    with pytest.raises(ValueError, match="is a file that this command reads: choose another name"):
        check_output(tmp_path / "sub" / ".." / "x.json", [None, path], lambda file: True)
    with pytest.raises(ValueError, match="is a folder: name a file"):
        check_output(tmp_path)
