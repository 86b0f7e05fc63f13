"""Time of a training step by global batch size and number of processes, on CPUs.

    sdr bench processes                                     # 1 and 2 processes of one thread; about four minutes
    sdr bench processes --processes 1 2 4 --batches 256 1024 [-- --model MODEL.yaml ...]

Runs `sdr fit` with gloo on generated scenes; settings alternate over several rounds. A step is forward, gathering, loss,
backward with averaging of gradients, and optimiser, without data loading. The last column is the additional time over one
process with batch / W pairs: communication, and the loss over all pairs instead of batch / W.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

WARM_UP, STEPS = 4, 12
MATCHING_ALONE = '{"itc": 1, "iic": 0, "ttc": 0, "kd": 0, "kdi": 0, "kdt": 0}'


class StepTimer(pl.Callback):
    """Times the steps of the first process.

    Args:
        output: JSON file to write the seconds of each step to.
    """

    def __init__(self, output: str) -> None:
        self.output, self.started = Path(output), 0.0
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.output.write_text(json.dumps(self.seconds))


def steps(processes: int, batch: int, local_loss: bool, more: list[str]) -> list[float]:
    """Return the seconds of the steps of one training, after warm-up."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "steps.json"
        words = [
            *(sys.executable, "-m", "sdr_lightning", "fit", "--model", "experiments/models/tiny_vit_clip.yaml"),
            *("--data", "experiments/data/scenes.yaml", f"--data.init_args.batch_size={batch}", "--run_dir", folder),
            *(f"--data.init_args.source.init_args.num_train={2 * batch}", "--data.init_args.augmentation=none"),
            *("--model.init_args.method.init_args.weights", MATCHING_ALONE, *more),
            f"--model.init_args.local_loss={str(local_loss).lower()}",
            *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"),
            *(f"--trainer.max_steps={WARM_UP + STEPS}", "--trainer.max_epochs=-1", "--checkpoint.monitor=null"),
            *(f"--trainer.devices={processes}", f"--trainer.strategy={'ddp' if processes > 1 else 'auto'}"),
            *("--trainer.callbacks+=benchmarks.bench_processes.StepTimer", f"--trainer.callbacks.output={output}"),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"sdr fit failed: {done.stderr.strip().splitlines()[-1]}")
        return list(json.loads(output.read_text())[WARM_UP:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=2)
    options, rest = parser.parse_known_args()
    rest = [word for word in rest if word != "--"]
    smallest, most = min(options.batches), max(options.processes)
    batches = sorted({batch // n for batch in options.batches for n in options.processes} | set(options.batches))
    settings = [(1, batch, False) for batch in batches]
    settings += [
        (n, batch, local) for n in options.processes if n > 1 for batch in options.batches for local in (False, True)
    ]
    if smallest % most:
        parser.error(f"{most} processes cannot share a batch of {smallest}")
    found: dict[tuple[int, int, bool], list[float]] = {setting: [] for setting in settings}
    for _ in range(options.rounds):
        for setting in settings:
            found[setting] += steps(*setting, rest)
    print(
        "| processes | batch | loss | ms a step (min, median, max) | pairs a second | over one process with batch / W |"
    )
    print("|---|---|---|---|---|---|")
    for (processes, batch, local), seconds in found.items():
        middle = statistics.median(seconds)
        alone = statistics.median(found[1, batch // processes, False])
        added = "" if processes == 1 else f"+{1e3 * (middle - alone):.0f} ms"
        shown = ", ".join(f"{1e3 * value:.0f}" for value in (min(seconds), middle, max(seconds)))
        print(
            f"| {processes} | {batch} | {'local' if local else 'global'} | {shown} | {batch / middle:,.0f} | {added} |"
        )


if __name__ == "__main__":
    main()
