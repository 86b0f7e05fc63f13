"""Handling of SIGTERM and Ctrl-C: deferred until work is saved, then one line and the conventional exit status."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(SIGTERMException):  # the one exception that Lightning re-raises unchanged
    """Raised when work was stopped by a signal.

    Args:
        received: SIGTERM or SIGINT.
        state: progress and whether it can be resumed, for the message.

    Attributes:
        signal: SIGTERM or SIGINT.
    """

    def __init__(self, received: signal.Signals, state: str = "") -> None:
        name = "Ctrl-C" if received == signal.SIGINT else received.name
        super().__init__(f"stopped by {name}" + (f" {state}" if state else ""))
        self.signal, self.state = received, state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.signal, self.state)


class Interruption:
    """Defer SIGTERM and Ctrl-C within a block; a second Ctrl-C is not deferred.

    Code that can save its work checks :attr:`received` between its steps and raises :class:`Stopped`. Otherwise the end of
    the block raises it. Nothing is deferred outside the main thread. Ignored signals stay ignored.

    Attributes:
        received: the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def start(self) -> None:
        """Install the signal handlers."""
        self.received = None
        self._handlers = _handle(self._defer)

    def stop(self) -> None:
        """Restore the previous handlers."""
        _restore(self._handlers)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self.received is not None and error is None:
            raise Stopped(self.received)

    def _defer(self, number: int, _: object) -> None:
        self.received = signal.Signals(number)
        if self.received == signal.SIGINT:
            signal.signal(number, self._handlers.pop(self.received))


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at once on SIGTERM and Ctrl-C.

    On ``KeyboardInterrupt``, Lightning would exit with status 1 and no message.
    """

    def stop(number: int, _: object) -> None:
        raise Stopped(signal.Signals(number))

    handlers = _handle(stop)
    try:
        yield
    finally:
        _restore(handlers)


@contextlib.contextmanager
def exit_when_stopped() -> Iterator[None]:
    """Print the reason and exit if the block was stopped by a signal.

    Raises:
        SystemExit: with status 143 after SIGTERM, 130 after Ctrl-C.
    """
    try:
        yield
    except SIGTERMException as stopped:
        rank_zero_only(sys.stderr.write)(f"sdr: {stopped.code or 'stopped by SIGTERM'}\n")
        raise SystemExit(exit_status(stopped)) from None


def exit_status(error: BaseException) -> int:
    """Return the exit status of the command line after an error."""
    if isinstance(error, SIGTERMException):
        return 128 + (error.signal if isinstance(error, Stopped) else signal.SIGTERM)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return 2 if isinstance(error, ValueError | OSError) else 1


def _handle(handler: Any) -> dict[signal.Signals, Any]:
    """Install a handler for each signal that is not ignored; return the previous handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {
        number: signal.signal(number, handler) for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    }


def _restore(handlers: dict[signal.Signals, Any]) -> None:
    for number in list(handlers):
        signal.signal(number, handlers.pop(number))
