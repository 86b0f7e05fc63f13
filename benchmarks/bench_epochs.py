"""Time that a method adds to an epoch besides its steps: what it computes before training, and before each epoch.

    sdr bench epochs                                     # methods that compute something, tiny student, 30,000 pairs
    sdr bench epochs --methods ncr agree [--steps 40]    # methods of experiments/methods

Each method trains on generated scenes (five captions an image) with random teacher features. Its own work is timed in full:
before training (`setup`), and before an epoch (`begin_epoch` and `epoch_order`) without the passes that encode all pairs, which
are listed apart. Of the steps of an epoch, only some are taken; an epoch is the median step times the number of steps. Loading of
data is not included.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from bench_training import METHODS, WITHOUT_BATCH_NORM, banks

from sdr_lightning.configure import build

CAPTIONS = 5  # of an image
COMPUTING = ("agree", "osa", "ncr", "ncr_co_teaching", "bicro", "decl", "crcl", "gsc", "sdr")
"""Methods that override ``begin_epoch``, or compute more than a mean in ``setup``; and SDR."""
EARLY = ("ncr", "ncr_co_teaching", "bicro", "decl")
"""Methods whose warm-up is set to one epoch, so that the second epoch is an ordinary one."""


class Epochs(pl.Callback):
    """Trains two epochs of some steps, and times the method's own work in the second one."""

    def __init__(self, words: list[str], steps: int) -> None:
        cli = build([*words, f"--trainer.limit_train_batches={steps}", "--trainer.max_epochs=2"])
        self.module, self.data, self.trainer = cli.model, cli.datamodule, cli.trainer
        self.trainer.callbacks = [self]
        self.steps: list[float] = []
        self.setup_seconds = self.own = self.passes = self.started = 0.0

    def run(self) -> None:
        """Train; the results are attributes, in seconds."""
        method = self.module.method
        before, order, measure = method.begin_epoch, method.epoch_order, self.module._measure

        def setup(training: Any) -> None:
            _, self.setup_seconds = timed(prepare, training)

        def timed_pass(per_pair: Any) -> Any:
            found, seconds = timed(measure, per_pair)
            self.passes += seconds
            return found

        def begin_epoch(epoch: int, _: Any) -> None:
            self.passes = 0.0
            _, seconds = timed(before, epoch, timed_pass)
            self.own = seconds - self.passes

        def epoch_order(*arguments: Any) -> Any:
            found, seconds = timed(order, *arguments)
            self.own += seconds
            return found

        prepare, method.setup = method.setup, setup
        method.begin_epoch, method.epoch_order = begin_epoch, epoch_order
        self.trainer.fit(self.module, self.data)

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(time.perf_counter() - self.started)


def timed(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """The result of a call and its wall time in seconds."""
    started = time.perf_counter()
    found = work(*arguments)
    return found, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30000, help="training pairs")
    parser.add_argument("--batch", type=int, default=128, help="pairs a step")
    parser.add_argument("--steps", type=int, default=20, help="steps of each of two epochs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=COMPUTING)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # Lightning warns about a training without validation
    whole = options.pairs // options.batch
    print(
        f"{options.pairs:,} pairs, {whole} steps of {options.batch} pairs, {options.threads} thread(s); seconds\n"
        "| method | before training | steps of an epoch | own work, share of the steps | passes over all pairs, share |\n"
        "|---|---|---|---|---|"
    )
    for name in options.methods:
        with tempfile.TemporaryDirectory() as folder:
            words = [
                *("--data", "experiments/data/scenes.yaml", "--data.init_args.augmentation=none"),
                *("--data.init_args.image_size=32", f"--data.init_args.batch_size={options.batch}"),
                f"--data.init_args.source.init_args.num_train={options.pairs // CAPTIONS}",
                *("--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.limit_val_batches=0"),
                *(f"--run_dir={folder}", f"--data.init_args.cache={folder}", "--model", WITHOUT_BATCH_NORM),
            ]
            words += [*banks(words, Path(folder)), *METHODS[name]]
            if name in EARLY:
                words.append("--model.init_args.method.init_args.warmup_epochs=1")
            case = Epochs(words, options.steps)
            case.run()
        steps = statistics.median(case.steps) * whole
        print(
            f"| {name} | {case.setup_seconds:.1f} | {steps:.0f} | {case.own:.1f}, {case.own / steps:.1%} | "
            f"{case.passes:.0f}, {case.passes / steps:.0%} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
