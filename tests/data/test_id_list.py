from pathlib import Path

from sdr_lightning.data.id_list import is_id_list, read_ids, write_ids


def test_all_ids_round_trip(tmp_path: Path) -> None:
    ids = ["a.png", "two\nlines.png", " outer blanks ", '"quoted".png', "#1.png", "\x85next", "é/b.png"]
    write_ids(tmp_path / "ids.txt", ids)
    assert read_ids(tmp_path / "ids.txt") == set(ids)
    assert is_id_list(tmp_path / "ids.txt")


def test_handwritten_list_is_read(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_text('\ufeffa.png\r\n\r\n "b.png \n', encoding="utf-8", newline="")
    assert read_ids(tmp_path / "ids.txt") == {"a.png", '"b.png'}
    assert not is_id_list(tmp_path / "ids.txt")
    assert not is_id_list(tmp_path / "none.txt")
