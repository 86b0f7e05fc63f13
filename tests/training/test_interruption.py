"""Handling of SIGTERM and Ctrl-C."""

import os
import pickle
import signal

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sdr_lightning.training.checkpoints.interruption import (
    Interruption,
    Stopped,
    exit_status,
    exit_when_stopped,
    stopped_by_signals,
)

BOTH = (signal.SIGTERM, signal.SIGINT)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (OSError("x"), 2),
        (RuntimeError("x"), 1),
        (KeyboardInterrupt(), 130),
        (Stopped(signal.SIGINT), 130),
        (SIGTERMException(), 143),
        (SystemExit(), 0),
        (SystemExit(3), 3),
        (SystemExit("message"), 1),
    ],
    ids=repr,
)
def test_exit_status(error: BaseException, status: int) -> None:
    assert exit_status(error) == status


@pytest.mark.parametrize("number", BOTH)
def test_signals_are_deferred_to_the_end_of_the_block(number: signal.Signals) -> None:
    before, seen = signal.getsignal(number), []

    def work() -> None:
        with Interruption() as interruption:
            os.kill(os.getpid(), number)
            seen.append(interruption.received)

    with pytest.raises(Stopped) as caught:
        work()
    assert seen == [number] == [caught.value.signal]
    assert signal.getsignal(number) == before


def test_second_ctrl_c_is_not_deferred_and_errors_are_kept() -> None:
    def work(*numbers: signal.Signals) -> None:
        with Interruption():
            for number in numbers:
                os.kill(os.getpid(), number)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt):
        work(signal.SIGINT, signal.SIGINT)
    with pytest.raises(ZeroDivisionError):
        work(signal.SIGTERM)


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruption() as interruption, stopped_by_signals():
            os.kill(os.getpid(), signal.SIGINT)
        assert interruption.received is None
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("number", "status", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_immediate_stop_prints_one_line(
    number: signal.Signals, status: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, exit_when_stopped(), stopped_by_signals():
        os.kill(os.getpid(), number)
    assert caught.value.code == status
    assert capsys.readouterr().err == f"sdr: stopped by {name}\n"


def test_stopped_can_be_pickled() -> None:
    there = pickle.loads(pickle.dumps(Stopped(signal.SIGINT, "at step 3")))  # noqa: S301
    assert (str(there), there.signal) == ("stopped by Ctrl-C at step 3", signal.SIGINT)
