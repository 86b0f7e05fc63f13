"""Training, evaluation and search on one GPU: the measurements of benchmarks/gpu.sh.

    benchmarks/gpu.sh gpu.json

Each part adds to the JSON file when it is done, so that an interrupted run keeps what it measured. A part that fails is
recorded with its error, and the exit status is 1. What does not begin within --minutes is recorded as left out.
"""

import argparse
import contextlib
import gc
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from bench_training import ENCODER, OPTIMISATION, Case, banks, now
from torch.nn.functional import normalize

from sdr_lightning.configure import build, run
from sdr_lightning.functional.search import top_k
from sdr_lightning.metrics import CaptionRelevance, evaluate
from sdr_lightning.paths import read_json, write_json
from sdr_lightning.training.tracking.record import environment

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
CHANNELS_LAST = f"{ENCODER}.image_tower.init_args.channels_last"
TOLERANCE = 10.0
"""Largest mean difference of rsum between bf16 and fp32 on the scenes, over the seeds."""

PLAIN = (f"{CHANNELS_LAST}=false",)
BF16 = ("--trainer.precision=bf16-mixed",)
FASTER = (f"{CHANNELS_LAST}=true", *BF16)
FUSED = (*FASTER, f"{OPTIMISATION}.fused=true")
STUDENT: dict[str, tuple[str, ...]] = {
    "fp32": PLAIN,
    "TF32": PLAIN,
    "bf16": (*PLAIN, *BF16),
    "bf16, channels_last": FASTER,
    "bf16, channels_last, fused": FUSED,
    "bf16, channels_last, fused, activation_checkpointing": (*FUSED, f"{ENCODER}.activation_checkpointing=true"),
    "bf16, channels_last, fused, compile": (*FUSED, f"{ENCODER}.compile=true"),
}
"""Options of the paper's student, each row with one more."""


@dataclass
class Sizes:
    """Sizes of all problems; the defaults are those of one GPU."""

    model: tuple[str, ...] = (
        f"--model={EXPERIMENTS / 'models/swin_bert.yaml'}",
        f"--config={EXPERIMENTS / '_base/random_weights.yaml'}",
    )
    image: int = 384
    batches: tuple[int, ...] = (36, 64, 128)
    compiled: tuple[int, ...] = (64,)  # batches at which compile is measured: each takes about a minute
    steps: int = 5
    matrix: int = 8192
    image_tower: str = "swin_base_patch4_window12_384"
    bert: dict[str, int] = field(default_factory=dict)  # the defaults of transformers are BERT-base
    tower_batch: int = 64
    loader_batches: int = 20
    fit_steps: int = 40
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    epochs: int = 8
    images: int = 5000
    gallery: int = 1_000_000


def miniature() -> Sizes:
    return Sizes(
        model=(f"--model={EXPERIMENTS / 'models/tiny_vit_clip.yaml'}",),
        image=32,
        batches=(8,),
        compiled=(),
        steps=1,
        matrix=64,
        image_tower="test_vit",
        bert={"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
        tower_batch=1,
        loader_batches=2,
        fit_steps=2,
        seeds=(0,),
        epochs=1,
        images=20,
        gallery=500,
    )


@dataclass
class Bench:
    """What the parts share."""

    sizes: Sizes
    device: str
    folder: Path
    until: float  # time.monotonic at which no further cell starts
    peak: float = 0.0  # TFLOP/s of a bf16 matrix product
    left_out: list[str] = field(default_factory=list)

    def has_time(self, cell: str) -> bool:
        if time.monotonic() < self.until:
            return True
        self.left_out.append(cell)
        return False

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Return the median time of a call after one that is not counted."""
        call()
        found = []
        for _ in range(repeats):
            start = now()
            call()
            found.append(now() - start)
        return statistics.median(found)

    def memory(self) -> float | None:
        """Return the peak memory of the GPU in MiB since the last call."""
        if self.device != "cuda":
            return None
        found = torch.cuda.max_memory_allocated() / 2**20
        torch.cuda.reset_peak_memory_stats()
        return round(found)

    def data(self, batch: int) -> list[str]:
        """Return the options of the training data: Flickr8k if it is at hand, else generated scenes."""
        photographs = "FLICKR8K_ROOT" in os.environ
        source = EXPERIMENTS / "data" / ("flickr8k.yaml" if photographs else "scenes.yaml")
        options = ["--data", str(source), "--data.init_args.augmentation=none", f"--data.init_args.cache={self.folder}"]
        options += [f"--data.init_args.image_size={self.sizes.image}", f"--data.init_args.batch_size={batch}"]
        if not photographs:
            options.append(f"--data.init_args.source.init_args.num_train={max(64, 4 * batch)}")
        return options

    def training(self, name: str) -> list[str]:
        return [
            *("--trainer.enable_progress_bar=false", "--trainer.logger=false", "--trainer.limit_val_batches=0"),
            *("--trainer.max_epochs=-1", "--trainer.max_steps=1", f"--run_dir={self.folder / name}"),
        ]


Rows = Iterable[dict[str, Any]]


def peak(bench: Bench) -> Rows:
    """Measure the bf16 matrix product to which other rows refer."""
    size = bench.sizes.matrix
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        first, second = (torch.randn(size, size, device=bench.device, dtype=dtype) for _ in range(2))
        rate = 2 * size**3 / bench.seconds(lambda first=first, second=second: first @ second, 10) / 1e12
        bench.peak = rate if name == "bf16" else bench.peak
        yield {"product": f"{name}, {size} x {size}", "TFLOP/s": rate}


def student(bench: Bench) -> Rows:
    """Time steps of the paper's student with all terms of the loss: forward, backward, optimiser; without loading data."""
    for batch in bench.sizes.batches:
        scenes = [
            *("--data", str(EXPERIMENTS / "data/scenes.yaml"), "--data.init_args.augmentation=none"),
            *(f"--data.init_args.image_size={bench.sizes.image}", f"--data.init_args.batch_size={batch}"),
            f"--data.init_args.source.init_args.num_train={max(64, 2 * batch)}",
            *(f"--data.init_args.cache={bench.folder}", *bench.training("student"), *bench.sizes.model),
        ]
        scenes += banks(scenes, bench.folder)
        flops = 0.0
        for name, options in STUDENT.items():
            compiled = name.endswith("compile")
            if (compiled and batch not in bench.sizes.compiled) or not bench.has_time(
                f"student, {name}, batch {batch}"
            ):
                continue
            tf32 = name != "fp32"
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            row: dict[str, Any] = {"options": name, "batch": batch}
            try:
                case = Case([*scenes, *options])
                case.train(2)  # allocation and compilation
                if not flops:
                    case.measure()
                    flops = case.flops
                bench.memory()
                case.seconds.clear()
                case.train(bench.sizes.steps + 1)  # the first moves the model to the device
                seconds = statistics.median(case.seconds[1:])
                used = flops / seconds / 1e12
                yield row | {
                    "images/s": batch / seconds,
                    "MiB": bench.memory(),
                    "TFLOP/s": used,
                    "share of the bf16 product in %": 100 * used / bench.peak if bench.peak else None,
                }
            except torch.OutOfMemoryError:
                yield row | {"images/s": None, "note": "out of memory"}
            case = None
            gc.collect()
            torch.cuda.empty_cache()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def attention(bench: Bench) -> Rows:
    """Time the towers, forward and backward in bf16, with the fused attention of torch and with plain products."""
    import timm
    from timm.layers import set_fused_attn
    from transformers import BertConfig, BertModel

    name = bench.sizes.image_tower
    batch = bench.sizes.tower_batch
    for kind in ("eager", "sdpa"):
        set_fused_attn(kind == "sdpa")
        image = timm.create_model(name, pretrained=False).to(bench.device)
        pixels = torch.randn(batch, 3, *image.default_cfg["input_size"][1:], device=bench.device)
        text = BertModel(BertConfig(**bench.sizes.bert, attn_implementation=kind)).to(bench.device)
        tokens = torch.randint(1000, 2000, (batch, 32), device=bench.device)
        calls = {
            name: lambda image=image, pixels=pixels: image(pixels).sum(),
            "BERT": lambda text=text, tokens=tokens: text(tokens).last_hidden_state.sum(),
        }
        for tower, call in calls.items():

            def step(call: Callable[[], torch.Tensor] = call) -> None:
                with torch.autocast(bench.device, torch.bfloat16):
                    total = call()
                total.backward()

            yield {"tower": tower, "attention": kind, "items/s": batch / bench.seconds(step), "MiB": bench.memory()}
    set_fused_attn(True)


class Clock(pl.Callback):
    """Times steps, and the waiting for data between them."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self.ended: float | None = None
        self.started = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.started = now()
        if self.ended is not None:
            self.waits.append(self.started - self.ended)

    def on_train_batch_end(self, *_: Any) -> None:
        self.ended = now()
        self.steps.append(self.ended - self.started)


def fit(bench: Bench) -> Rows:
    """Train the student with InfoNCE on photographs, with different numbers of readers: is it bound by the data?"""
    batch = bench.sizes.batches[len(bench.sizes.batches) // 2]
    for workers in sorted({0, min(8, os.cpu_count() or 1), os.cpu_count() or 1}):
        if not bench.has_time(f"fit, {workers} workers"):
            continue
        words = [
            *(*bench.data(batch), f"--data.init_args.workers={workers}", *bench.training("fit")),
            *(*bench.sizes.model, f"--config={EXPERIMENTS / 'methods/itc.yaml'}"),
            *(FUSED if bench.device == "cuda" else ()),
        ]
        cli = build(words)
        cli.datamodule.setup("fit")
        loader, start, count = cli.datamodule.train_dataloader(), time.perf_counter(), 0
        for count, _ in enumerate(loader, 1):
            if count == bench.sizes.loader_batches:
                break
        alone = count * batch / (time.perf_counter() - start)
        cli, clock = build(words), Clock()
        cli.trainer.callbacks = [clock]
        cli.trainer.fit_loop.epoch_loop.max_steps = bench.sizes.fit_steps
        cli.trainer.fit(cli.model, cli.datamodule)
        steps, waits = sum(clock.steps[1:]), sum(clock.waits)
        yield {
            "data": "Flickr8k" if "FLICKR8K_ROOT" in os.environ else "scenes",
            "workers": workers,
            "loader alone, images/s": alone,
            "images/s": batch * len(clock.steps[1:]) / (steps + waits),
            "waiting for data in %": 100 * waits / (steps + waits),
        }


def precision(bench: Bench) -> Rows:
    """Train on scenes in fp32 and bf16 from several seeds, and compare rsum of validation."""
    found: dict[str, list[float]] = {}
    for name in ("32-true", "bf16-mixed"):
        for seed in bench.sizes.seeds:
            if not bench.has_time(f"precision, {name}, seed {seed}"):
                return
            folder = bench.folder / f"{name}-{seed}"
            words = [
                *("fit", "--config", str(EXPERIMENTS / "scenes/sdr.yaml")),
                *("--config", str(EXPERIMENTS / "methods/infonce.yaml"), f"--data.init_args.cache={bench.folder}"),
                *(f"--trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'}", "--trainer.devices=1"),
                *(f"--trainer.precision={name}", f"--trainer.max_epochs={bench.sizes.epochs}"),
                *(f"--seed_everything={seed}", f"--run_dir={folder}", "--trainer.enable_progress_bar=false"),
            ]
            with contextlib.redirect_stdout(io.StringIO()):  # where the run folder is, and what to do next
                run(words)
            kept = read_json(folder / "results.json", "the results of the training")["training"]["kept"]
            found.setdefault(name, []).append(float(kept["val/rsum"]))
    means = [statistics.mean(values) for values in found.values()]
    yield {
        "seeds": len(bench.sizes.seeds),
        "rsum fp32": means[0],
        "rsum bf16": means[1],
        "difference": means[1] - means[0],
        "within tolerance": abs(means[1] - means[0]) <= TOLERANCE,
    }


def strategies(bench: Bench) -> Rows:
    """Train a few steps under each strategy on one device, in a process of its own."""
    for strategy in ("auto", "ddp", "fsdp"):
        if not bench.has_time(f"strategies, {strategy}"):
            continue
        words = [
            *("fit", *bench.data(bench.sizes.batches[0]), *bench.training(strategy), *bench.sizes.model),
            *(f"--config={EXPERIMENTS / 'methods/itc.yaml'}", f"--trainer.strategy={strategy}", "--trainer.devices=1"),
            *(f"--trainer.accelerator={'gpu' if bench.device == 'cuda' else 'cpu'}", "--trainer.max_steps=5"),
        ]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "sdr_lightning", *words], capture_output=True, text=True, timeout=240, check=False
        )
        row = {"strategy": strategy, "works": done.returncode == 0, "s": time.perf_counter() - start}
        yield row if row["works"] else row | {"note": done.stderr.strip().splitlines()[-2:][0][:300]}


def evaluation(bench: Bench) -> Rows:
    """Time all metrics at the size of COCO's test split, from embeddings on the device."""
    images = bench.sizes.images
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(images).repeat_interleave(5)
    image = torch.randn(images, 256, generator=generator)
    text = image[index] + 4 * torch.randn(len(index), 256, generator=generator)
    scores = np.random.default_rng(0).random((len(index), images), np.float32)
    relevance = CaptionRelevance(scores, index, "random")
    image, text = normalize(image).to(bench.device), normalize(text).to(bench.device)
    bench.memory()
    seconds = bench.seconds(lambda: evaluate(image, text, index, relevance), 1)
    yield {"task": f"evaluation, {images:,} images, {len(index):,} captions", "s": seconds, "MiB": bench.memory()}


def search(bench: Bench) -> Rows:
    """Time exact search of 1 and of 256 queries."""
    gallery = normalize(torch.randn(bench.sizes.gallery, 256, device=bench.device))
    for count in (1, 256):
        queries = normalize(torch.randn(count, 256, device=bench.device))
        seconds = bench.seconds(lambda queries=queries: top_k(queries, gallery, 10))
        yield {"task": f"search, {count} in {len(gallery):,}", "s": seconds, "MiB": bench.memory()}


PARTS: dict[str, Callable[[Bench], Rows]] = {
    "peak": peak,
    "evaluation": evaluation,
    "search": search,
    "attention": attention,
    "strategies": strategies,
    "precision": precision,
    "fit": fit,
    "student": student,
}
"""The longest come last: what does not fit into the time are rows of the student."""


def measure(output: Path, mini: bool, device: str, minutes: float, chosen: list[str]) -> bool:
    """Run the parts and write the record; return whether all succeeded."""
    sizes = miniature() if mini else Sizes()
    start = time.monotonic()
    record: dict[str, Any] = {
        **environment(),
        "miniature": mini,
        "parts": {},
        "left_out": [],
    }
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(sizes, device, Path(name), start + 60 * minutes)
        for part in chosen:
            if not bench.has_time(part):
                continue
            print(f"[{time.monotonic() - start:5.0f} s] {part}", flush=True)
            found: dict[str, Any] = {"rows": []}
            try:
                for row in PARTS[part](bench):
                    found["rows"].append(row)
                    print("   ", ", ".join(f"{key} {shown(value)}" for key, value in row.items()), flush=True)
            except Exception as error:  # the other parts are still worth measuring
                found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]
                print("    failed:", found["error"], flush=True)
            record["parts"][part] = found
            record["left_out"], record["minutes"] = bench.left_out, (time.monotonic() - start) / 60
            write_json(output, record)
    for cell in bench.left_out:
        print(f"left out, no time: {cell}")
    failed = [part for part, found in record["parts"].items() if "error" in found]
    print(
        f"{output}: {len(record['parts'])} parts in {record.get('minutes', 0):.1f} min, failed: {', '.join(failed) or 'none'}"
    )
    return not failed


def shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    return (
        f"{value:,.4g}"
        if isinstance(value, float) and abs(value) < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def tables(record: dict[str, Any]) -> str:
    """Return the record as Markdown: one table per part."""
    names = ("torch", "lightning", "transformers", "timm")
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in names)
    lines = [f"{record['hardware']}; {versions}; {record['minutes']:.1f} minutes in all."]
    if record["miniature"]:
        lines += ["", "In miniature, to test the script: small models and data, not those named below."]
    for part, found in record["parts"].items():
        lines += ["", f"**{part}**: {(PARTS[part].__doc__ or '').splitlines()[0]}", ""]
        keys = list(dict.fromkeys(key for row in found["rows"] for key in row))
        if keys:
            lines += [f"| {' | '.join(keys)} |", f"|{'---|' * len(keys)}"]
            lines += [f"| {' | '.join(shown(row.get(key)) for key in keys)} |" for row in found["rows"]]
        if "error" in found:
            lines += ["", f"Failed: {found['error']}"]
    if record["left_out"]:
        lines += ["", f"Left out for lack of time: {'; '.join(record['left_out'])}."]
    return "\n".join(lines) + "\n"


def pack(root: Path, output: Path, most: int = 55 * 2**20) -> None:
    """Copy 20 photographs of each other split of Flickr8k, and of the training split as many as fit into `most` bytes."""
    annotations = read_json(root / "dataset_flickr8k.json", "the annotations of Flickr8k")
    splits: dict[str, list[dict[str, Any]]] = {}
    for image in annotations["images"]:
        splits.setdefault(image["split"], []).append(image)
    order = [image for name, some in splits.items() for image in (some if name == "train" else some[:20])]
    order.sort(key=lambda image: image["split"] == "train")
    (output / "images").mkdir(parents=True)
    kept, size = [], 0
    for image in order:
        size += (root / "images" / image["filename"]).stat().st_size
        if size > most:
            break
        shutil.copy(root / "images" / image["filename"], output / "images")
        kept.append(image)
    (output / "dataset_flickr8k.json").write_text(json.dumps(annotations | {"images": kept}))
    print(f"{output}: {len(kept)} images")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--minutes", type=float, default=7.0, help="no measurement starts after this time (default: 7)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--mini", action="store_true", help="small problems, on a CPU if there is no GPU")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="print the tables of a record instead")
    parser.add_argument(
        "--pack", type=Path, nargs=2, metavar=("FLICKR8K_ROOT", "FOLDER"), help="copy photographs instead"
    )
    options = parser.parse_args()
    try:
        if options.tables:
            print(tables(read_json(options.tables, "the record of benchmarks/gpu.sh")), end="")
            return 0
        if options.pack:
            pack(*options.pack)
            return 0
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.output is None:
        parser.error("expected the JSON file to write, e.g. gpu.json")
    if not options.mini and not torch.cuda.is_available():
        parser.error("found no GPU; --mini runs small problems on a CPU")
    warnings.simplefilter("ignore")  # Lightning warns about trainings without validation and end
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return 0 if measure(options.output, options.mini, device, options.minutes, options.parts) else 1


if __name__ == "__main__":
    sys.exit(main())
