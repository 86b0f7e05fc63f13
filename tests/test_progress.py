"""Progress of long work."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from sdr_lightning import progress as module
from sdr_lightning.progress import progress


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def later(seconds: float) -> None:
        now[0] += seconds

    return later


def test_a_log_has_a_line_every_30_seconds(wait: Callable[[float], None]) -> None:
    log = Console(file=io.StringIO())
    with progress("captions", 1_000, 100, log) as advance:
        for _ in range(5):  # 100 in 20 s; the lines are at 40 and 80 s
            wait(20)
            advance(100)
        wait(20)
        advance(400)
    assert log.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "captions: 300 of 1,000; about 3 min left",
        "captions: 500 of 1,000; about 2 min left",
    ]


def test_a_terminal_has_a_bar_that_is_removed(wait: Callable[[float], None]) -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress("captions", 10, console=terminal) as advance:
        advance(10)
    text = terminal.file.getvalue()  # type: ignore[attr-defined]
    assert "captions" in text
    assert "10/10" in text
    assert text.endswith("\x1b[2K")
