"""A pool of worker processes for trainings side by side, under ``sdr reproduce`` and ``sdr sweep``."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sdr_lightning.training.checkpoints.interruption import exit_status
from sdr_lightning.training.distributed.devices import shares
from sdr_lightning.training.tracking.record import environment

_PATIENCE_S = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(eq=False)
class Task:
    """A function call in a worker.

    Attributes:
        name: for progress and errors.
        function: a function of a module, so that a spawned process can import it.
        arguments: of the function; they are pickled.
        failure: why it failed, in one line; None if it did not.
        value: what the function returned.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    failure: str | None = None
    value: Any = None


@dataclass(eq=False)
class _Worker:
    process: SpawnProcess
    connection: Connection
    place: int
    task: Task | None = field(default=None)
    stopping: bool = False


class Workers:
    """Spawned processes that stay for several tasks, because importing the package takes seconds.

    Within the ``with`` block, SIGINT, SIGTERM and SIGHUP raise ``KeyboardInterrupt``. When the block ends by an exception,
    the workers get SIGTERM, on which a training saves a checkpoint; they are killed after 60 s, or at once on a second
    signal. When this process dies, the workers get SIGTERM as well.

    Args:
        count: number of processes; each has an equal share of the processors, and of the GPUs where there are enough.
        variables: environment variables of the workers, where they are not set already.
    """

    def __init__(self, count: int, variables: Mapping[str, str] | None = None) -> None:
        self.count, self._variables = count, dict(variables or {})
        self._workers: list[_Worker] = []
        self._interrupted = False
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._handlers = {number: signal.signal(number, self._interrupt) for number in heeded}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close(terminate=error is not None)
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    @property
    def running(self) -> list[Task]:
        """The tasks that run."""
        return [worker.task for worker in self._workers if worker.task is not None]

    @property
    def has_free(self) -> bool:
        """Whether a task can start."""
        return len(self.running) < self.count

    def start(self, task: Task) -> None:
        """Start a task; call it only while :attr:`has_free`."""
        for idle in [worker for worker in self._workers if worker.task is None]:
            if not idle.stopping:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # its process has ended
                    idle.connection.send((task.function, task.arguments))
                    idle.task = task
                    return
            self._forget(idle)
        worker = self._spawn()
        worker.connection.send((task.function, task.arguments))
        worker.task = task

    def ended(self, timeout_s: float | None = None) -> list[Task]:
        """Wait for tasks to end.

        Args:
            timeout_s: how long to wait at most; None waits for one.

        Returns:
            Those that ended, with ``failure`` or ``value`` set.

        Raises:
            KeyboardInterrupt: a signal arrived, or arrived before.
        """
        busy = {worker.connection: worker for worker in self._workers if worker.task is not None}
        ready = wait(list(busy), timeout_s)
        if self._interrupted:
            raise KeyboardInterrupt
        return [self._collect(busy[connection]) for connection in ready if isinstance(connection, Connection)]

    def call(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run one function and wait for its value; no other task may run.

        Raises:
            ValueError: it failed.
        """
        self.start(Task(name, function, arguments))
        (task,) = self.ended()
        if task.failure is not None:
            raise ValueError(task.failure)
        return task.value

    def terminate(self, task: Task) -> None:
        """Ask a task to save and stop; it ends with a failure, unless it was just done."""
        for worker in self._workers:
            if worker.task is task:
                worker.stopping = True
                worker.process.terminate()

    def _spawn(self) -> _Worker:
        taken = {worker.place for worker in self._workers}
        place = next(place for place in range(self.count) if place not in taken)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.count)
        process = context.Process(target=_serve, args=(theirs, threads, shares(self.count)[place], self._variables))
        process.start()
        theirs.close()
        worker = _Worker(process, ours, place)
        self._workers.append(worker)
        return worker

    def _collect(self, worker: _Worker) -> Task:
        task = worker.task
        assert task is not None
        worker.task = None
        try:
            outcome: _Outcome = worker.connection.recv()
            task.value, task.failure = outcome
        except (EOFError, ConnectionResetError):
            self._forget(worker)
            task.failure = f"its process ended with status {worker.process.exitcode}"
        return task

    def _forget(self, worker: _Worker) -> None:
        """Wait for the end of a process that has died or was told to stop, and remove it."""
        worker.process.join(_PATIENCE_S)
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)

    def _interrupt(self, *_: object) -> None:
        self._interrupted = True  # an exception that is raised within a finaliser is lost
        raise KeyboardInterrupt

    def _close(self, terminate: bool) -> None:
        try:
            for worker in self._workers:
                if terminate:
                    worker.process.terminate()
                worker.connection.close()
            until = time.monotonic() + _PATIENCE_S
            for worker in self._workers:
                worker.process.join(max(0.0, until - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
            self._workers.clear()


class _Outcome(NamedTuple):
    value: Any
    failure: str | None


def _serve(connection: Connection, threads: int, gpus: Mapping[str, str], variables: Mapping[str, str]) -> None:
    """Run tasks until the pool closes the connection."""
    os.environ.update(gpus)
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the pool handles it
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_pool, daemon=True).start()
    torch.set_num_threads(threads)
    environment()  # the commit that the code was loaded from, even if others follow
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.send(_outcome(function, arguments))
        gc.collect()  # a trainer and its model refer to one another, and few objects hold much memory


def _end_with_the_pool() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _outcome(function: Callable[..., Any], arguments: tuple[Any, ...]) -> _Outcome:
    """Run a task. Failures are sent as text, because not every exception can be pickled."""
    try:
        return _Outcome(function(*arguments), None)
    except (SIGTERMException, SystemExit, KeyboardInterrupt) as error:  # what was trained is saved
        if exit_status(error) != 0:
            os._exit(exit_status(error))
        return _Outcome(None, None)
    except Exception as error:
        return _Outcome(None, f"{type(error).__name__}: {' '.join(str(error).split())}")


def progress_bar(console: Console) -> Progress:
    """Return a progress bar with the time passed, shown in a terminal only and removed at its end."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=1,
        transient=True,
        disable=not console.is_terminal,
    )


@contextlib.contextmanager
def log_to(file: Path) -> Iterator[None]:
    """Append everything that the block prints, its warnings, and the traceback of its error to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with (
        file.open("a", encoding="utf-8") as stream,
        contextlib.redirect_stdout(stream),
        contextlib.redirect_stderr(stream),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        handler = logging.StreamHandler(stream)
        loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            yield
        except Exception:
            traceback.print_exc(file=stream)
            raise
        finally:
            for logger in loggers:
                logger.handlers = []
