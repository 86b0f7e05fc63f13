"""Several gloo processes: ``python -m tests.training.ranks FOLDER WORLD_SIZE SETTING,SETTING``.

Each process trains one step of every setting on its share of a batch and writes its gradients. Processes are forked after
all imports, to save time.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from torch import Tensor

from sdr_lightning.functional.matching import draw_negatives
from sdr_lightning.training import matching
from sdr_lightning.training.distributed.collectives import gather, gather_encoded
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Encoded, RetrievalBatch
from tests.training.student import ALL, WITH_MATCHING, FixedBatches, hardest, pairs, student, trainer

# Images repeat within and across ranks; the maximum caption length differs between ranks.
IDS = ((0, 1, 1, 3), (0, 4, 5, 1), (6, 6, 2, 0))
LENGTHS = ((3, 5, 2, 4), (7, 2, 6, 3), (1, 4, 2, 2))
SETTINGS: dict[str, dict[str, Any]] = {
    "averaged exact": {"weights": ALL, "relation": "averaged", "fusion": False},
    "averaged albef": {"weights": ALL, "relation": "averaged", "fusion": False, "gather": "albef"},
    "local exact": {"weights": WITH_MATCHING, "relation": "fused"},
    "local albef": {"weights": WITH_MATCHING, "relation": "fused", "gather": "albef"},
    "global exact": {"weights": WITH_MATCHING, "relation": "fused", "negatives": "global"},
    "averaged exact local rows": {"weights": ALL, "relation": "averaged", "fusion": False, "local_loss": True},
    "global exact local rows in chunks": {
        **{"weights": WITH_MATCHING, "relation": "fused", "negatives": "global"},
        **{"micro_batch": 3, "local_loss": True},
    },
    "by text global exact local rows": {
        **{"weights": WITH_MATCHING, "relation": "fused", "negatives": "global"},
        **{"positives": "image_or_text", "local_loss": True},
    },
    "global albef": {"weights": WITH_MATCHING, "relation": "fused", "negatives": "global", "gather": "albef"},
}
DRAWN_BATCHES = 12
Results = list[dict[str, Any]]


def run_ranks(
    folder: Path, world_size: int, settings: Sequence[str], module: str = "tests.training.ranks", timeout: int = 250
) -> Results:
    """Run the settings of a module like this one in several processes, and return what each process found."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", module, str(folder), str(world_size), ",".join(settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world_size)]


def share(rank: int) -> RetrievalBatch:
    """Return the pairs of one rank."""
    return pairs(IDS[rank], LENGTHS[rank], seed=rank)


class Gradients(pl.Callback):
    """Stores the gradients after DDP's averaging, and the terms."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.terms: dict[str, Tensor] = {}

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.terms = pl_module.epoch_terms[-1]  # type: ignore[assignment]
        self.found = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}


class Gathered(pl.Callback):
    """Stores the results of gathering captions of different lengths, images and None."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank = trainer.global_rank
        length = 2 + rank
        tokens = torch.full((2, length, 3), float(rank + 1))
        text = gather_encoded(pl_module, Encoded(torch.full((2, 1), float(rank)), tokens, torch.ones(2, length).long()))
        image = gather_encoded(pl_module, Encoded(torch.full((2, 1), float(rank)), tokens[:, :2]))
        self.found = {
            "text": tuple(text),
            "image": tuple(image),
            "rows": gather(pl_module, torch.tensor([10 * rank, 10 * rank + 1])),
            "nothing": gather(pl_module, None),
        }


def one_rank(rank: int, folder: Path, world_size: int, settings: list[str]) -> None:
    """Run all settings, then random draws of negatives."""
    os.environ["LOCAL_RANK"] = str(rank)
    warnings.simplefilter("ignore")
    options: dict[str, Any] = {"devices": world_size, "strategy": "ddp", "precision": "64-true", "max_steps": 1}
    result: dict[str, Any] = {}
    for name in settings:
        gradients, gathered = Gradients(), Gathered()
        with patch.object(matching, "draw_negatives", hardest):
            fit = trainer(**options, callbacks=[gradients, gathered])
            fit.fit(student(**SETTINGS[name]), datamodule=FixedBatches([share(rank)]))
        result[name], result["gathered"] = gradients.found, gathered.found
        result[f"{name} terms"] = gradients.terms
    result["draws"] = draws(rank, options)
    torch.save(result, folder / f"{rank}.pt")


def draws(rank: int, options: dict[str, Any]) -> list[tuple[Tensor, Tensor]]:
    """Return the rows drawn as negatives from the pairs of all ranks, and whether they exist, per call."""
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(weights: Tensor, generator: torch.Generator | None = None) -> Any:
        drawn = draw_negatives(weights, generator)
        seen.append(tuple(drawn))
        return drawn

    module: RetrievalModule = student(**SETTINGS["global exact"])
    fit = trainer(**{**options, "max_steps": DRAWN_BATCHES})
    with patch.object(matching, "draw_negatives", spy):
        fit.fit(module, datamodule=FixedBatches([share(rank)] * DRAWN_BATCHES))
    return seen


def main(arguments: Sequence[str], one_rank: Callable[[int, Path, int, list[str]], None]) -> int:
    """Run all ranks, with the arguments of the command, and return their greatest exit status."""
    torch.set_num_threads(1)
    folder, world_size, settings = Path(arguments[0]), int(arguments[1]), arguments[2].split(",")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=one_rank, args=(rank, folder, world_size, settings)) for rank in range(world_size)]
    for process in ranks:
        process.start()
    while any(process.is_alive() for process in ranks):
        for process in ranks:
            process.join(0.1)
        if any(process.exitcode for process in ranks):  # otherwise the others wait forever
            for process in ranks:
                process.kill()
    return max(abs(process.exitcode or 0) for process in ranks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], one_rank))
