"""What every test shares: no network, one thread, and where the real data is."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch  # not above: the process that distributes the tests does without it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data and weights, named by SDR_SHARED; none of it is part of the project."""
    folder = os.environ.get("SDR_SHARED")
    if folder is None:
        pytest.skip("SDR_SHARED is not set: it names the folder with data/ and weights/ that this test reads")
    return Path(folder)


@pytest.fixture(scope="session")
def experiments() -> Path:
    """The project's experiment files."""
    return Path(__file__).parent.parent / "experiments"
