"""The pool of workers: values, failures, lost processes, signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdr_lightning.workers import Task, Workers

_RUN = "from tests.test_workers import hold; from pathlib import Path; import sys; hold(Path(sys.argv[1]))"


def double(value: int) -> int:
    if value < 0:
        raise ValueError("negative\nvalue")
    return 2 * value


class Large:
    """An object in a cycle, as a trainer and its model are."""

    alive = 0

    def __init__(self) -> None:
        self.itself = self
        Large.alive += 1

    def __del__(self) -> None:
        Large.alive -= 1


def large_objects() -> int:
    """Leave a large object behind, and return how many there were before."""
    before = Large.alive
    Large()
    return before


def leave(status: int) -> None:
    sys.exit(status)


def wait_in(folder: Path) -> None:
    """Say that it runs, then wait; SIGTERM leaves a mark, as a training saves a checkpoint."""

    def save(*_: object) -> None:
        (folder / f"{os.getpid()}.saved").touch()
        os._exit(143)

    signal.signal(signal.SIGTERM, save)
    (folder / f"{os.getpid()}.pid").touch()
    time.sleep(120)


def hold(folder: Path) -> None:
    """Run two waiting tasks in a pool."""
    with Workers(2) as workers:
        for number in range(2):
            workers.start(Task(str(number), wait_in, (folder,)))
        workers.ended()


@pytest.mark.slow  # starts processes that import torch
def test_workers_return_values_and_failures_and_replace_a_lost_process(tmp_path: Path) -> None:
    with Workers(1) as workers:
        assert workers.call("double", double, 4) == 8
        with pytest.raises(ValueError, match="ValueError: negative value"):
            workers.call("double", double, -1)
        workers.start(Task("leave", leave, (0,)))
        assert workers.ended()[0].failure is None
        waiting = Task("wait", wait_in, (tmp_path,))
        workers.start(waiting)
        assert not workers.has_free
        assert workers.ended(0.01) == []
        while not list(tmp_path.glob("*.pid")):
            time.sleep(0.1)
        workers.terminate(waiting)
        assert workers.ended() == [waiting]
        assert waiting.failure == "its process ended with status 143"
        assert workers.call("double", double, 5) == 10
        done = Task("done", double, (6,))
        workers.start(done)
        while not workers._workers[0].connection.poll(0.1):
            pass
        workers.terminate(done)  # just too late
        assert (workers.ended(), done.value) == ([done], 12)
        assert workers.call("double", double, 7) == 14


@pytest.mark.slow
def test_a_task_leaves_no_memory_behind() -> None:
    with Workers(1) as workers:
        assert [workers.call("large", large_objects) for _ in range(3)] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])  # SIGTERM: tests/e2e/test_study.py
def test_tasks_are_saved_and_end_with_the_pool(name: str, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _RUN, str(tmp_path)], stderr=subprocess.DEVNULL)
    while len(list(tmp_path.glob("*.pid"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.Signals[name])
    process.wait(30)
    deadline = time.monotonic() + 10
    while len(list(tmp_path.glob("*.saved"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert {path.stem for path in tmp_path.glob("*.saved")} == {path.stem for path in tmp_path.glob("*.pid")}
