"""Effect of the speed options, or of the method, on a training step.

    sdr bench training                                            # tiny student on scenes; a minute on one core
    sdr bench training --methods [infonce sdr ...] [--batch 256]  # methods of experiments/methods; the first is the reference
    sdr bench training --batch 16 --size 224 --variants plain bf16 compile -- --model MODEL.yaml [--config OVERLAY.yaml ...]

Steps of `sdr fit` on generated scenes with random teacher features: forward, loss, backward and optimiser, without data
loading and without what a method computes before an epoch. Variants alternate in one process over several rounds; each is a
set of options of `sdr fit`. Ratios of medians are against the first variant. Memory: tensors saved by autograd on a CPU, peak
allocated memory on a GPU.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sdr_lightning.configure import build
from sdr_lightning.features.bank import FeatureBank

ENCODER, OPTIMISATION = "--model.init_args.encoder.init_args", "--model.init_args.optimisation.init_args"
VARIANTS: dict[str, tuple[str, ...]] = {
    "plain": (),
    "fused": (f"{OPTIMISATION}.fused=true",),
    "activation_checkpointing": (f"{ENCODER}.activation_checkpointing=true",),
    "micro_batch": ("--model.init_args.micro_batch={quarter}",),
    "bf16": ("--trainer.precision=bf16-mixed",),
    "fp16": ("--trainer.precision=16-mixed",),
    "compile": (f"{ENCODER}.compile=true",),
    "channels_first": (f"{ENCODER}.image_tower.init_args.channels_last=false",),
}
METHODS = {path.stem: (f"--config={path}",) for path in sorted(Path("experiments/methods").glob("*.yaml"))}
WITHOUT_BATCH_NORM = "experiments/models/tiny_vit_clip.yaml"


class Case(pl.Callback):
    """A student with some options; trains a few steps at a time and times them."""

    def __init__(self, words: list[str]) -> None:
        cli = build(words)
        self.module, self.data, self.trainer = cli.model, cli.datamodule, cli.trainer
        self.trainer.callbacks = [self]
        self.seconds: list[float] = []
        self.started = 0.0
        self.kept = self.flops = 0.0

    def train(self, steps: int) -> None:
        self.trainer.fit_loop.epoch_loop.max_steps = self.trainer.global_step + steps
        self.trainer.fit(self.module, self.data)

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = now()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(now() - self.started)

    def measure(self) -> None:
        """Train one step to measure memory and FLOPs instead of time."""
        step, kept = self.module.training_step, Kept(self.module)
        counter = FlopCounterMode(display=False)

        def watched(*arguments: Any) -> Tensor:
            with kept:
                return step(*arguments)

        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        else:
            self.module.training_step = watched  # type: ignore[method-assign]
        with counter:
            self.train(1)
        self.module.training_step = step  # type: ignore[method-assign]
        self.kept = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else kept.total()
        self.flops = counter.get_total_flops()
        self.seconds.clear()


class Kept(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes saved by autograd for the backward pass, without parameters."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.sizes: dict[int, int] = {}
        self.alive: list[Tensor] = []  # keeps tensors alive, so that addresses are unique
        super().__init__(self.keep, lambda tensor: tensor)

    def keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.alive.append(tensor.detach())
        return tensor

    def total(self) -> float:
        found = float(sum(self.sizes.values()))
        self.alive.clear()
        return found


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def banks(words: list[str], folder: Path) -> list[str]:
    """Write banks of random teacher features and return the options that name them."""
    cli = build(words)
    cli.datamodule.setup("fit")
    split, method = cli.datamodule.split("train"), cli.model.method
    options = []
    for modality in ("image", "text"):
        if f"{modality}_teacher" in method.needs:
            width = cli.config.model.init_args.method.init_args[f"{modality}_teacher_width"] or 64
            ids = split.ids(modality)
            path = folder / f"{modality}.safetensors"
            FeatureBank(modality, ids, split.content(modality), torch.randn(len(ids), width), "random").save(path)
            options.append(f"--data.init_args.{modality}_bank={path}")
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="pairs a step")
    parser.add_argument("--size", type=int, default=32, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="the first is the reference of the ratios")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, help="instead of options; all with infonce first if none is named"
    )
    options, rest = parser.parse_known_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")  # Lightning warns about a training without validation and end
    on_gpu = torch.cuda.is_available()
    variants = VARIANTS if options.methods is None else METHODS
    chosen = options.variants or [name for name in VARIANTS if on_gpu or name != "fp16"]
    if options.methods is not None:
        chosen = options.methods or ["infonce", *(name for name in METHODS if name != "infonce")]
    if "fp16" in chosen and not on_gpu:
        parser.error("fp16 needs a GPU: Lightning turns it into bf16 on a CPU")
    rest = [word for word in rest if word != "--"] or ["--model", WITHOUT_BATCH_NORM]
    with tempfile.TemporaryDirectory() as name:
        base = [
            *("--data", "experiments/data/scenes.yaml", "--data.init_args.augmentation=none"),
            *(f"--data.init_args.image_size={options.size}", f"--data.init_args.batch_size={options.batch}"),
            f"--data.init_args.source.init_args.num_train={max(64, 2 * options.batch)}",
            *("--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.limit_val_batches=0"),
            *("--trainer.max_epochs=-1", "--trainer.max_steps=1"),
            *(f"--run_dir={name}", f"--data.init_args.cache={name}", *rest),
        ]
        base += banks(base, Path(name))
        quarter = max(1, options.batch // 4)
        cases = {
            variant: Case([*base, *(word.format(quarter=quarter) for word in variants[variant])]) for variant in chosen
        }
        for variant, case in cases.items():
            case.train(3)  # warm-up: allocation and compilation, once more for captions of other lengths
            if variant != "compile":
                case.measure()
            case.seconds.clear()
        for _ in range(options.rounds):
            for case in cases.values():
                case.train(2)  # the first moves the model to the device
                del case.seconds[-2]
    first = next(iter(cases.values()))
    base_seconds = statistics.median(first.seconds)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} thread(s)"
    parameters = sum(p.numel() for p in first.module.parameters()) / 1e6
    print(
        f"{' '.join(rest)}: {parameters:.1f} M parameters, {options.batch} pairs, {options.size} px, {where}, "
        f"{first.flops / options.batch / 1e9:,.2f} GFLOP a pair"
    )
    print(
        f"| options | s a step (min, median, max) | ratio | MiB {'allocated' if on_gpu else 'kept'} |\n|---|---|---|---|"
    )
    for variant, case in cases.items():
        low, middle, high = min(case.seconds), statistics.median(case.seconds), max(case.seconds)
        kept = f"{case.kept / 2**20:,.0f}" if case.kept else "-"
        print(f"| {variant} | {low:.3f}, {middle:.3f}, {high:.3f} | {middle / base_seconds:.2f} | {kept} |")


if __name__ == "__main__":
    main()
