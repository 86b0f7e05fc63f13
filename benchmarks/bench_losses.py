"""Loss functions: dense and looped implementations against those of this package.

    python benchmarks/bench_losses.py                # times; about 90 s on one core
    python benchmarks/bench_losses.py --memory       # also peak memory at B = 8,192, each side in its own process
    python benchmarks/bench_losses.py --step         # also the share of the loss in a training step at B = 64
    python benchmarks/bench_losses.py --paper        # also images/s, memory and TFLOP/s of the paper's student in bf16 (GPU)

One thread; both sides run alternately in one process, after their values were compared. Compare ratios of medians, not
times, between machines.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.functional.matching import draw_negatives, negative_weights
from sdr_lightning.functional.relational import (
    fuse_relations,
    off_diagonal,
    relation_distance,
    relation_matrix,
    weighted_wasserstein,
)
from sdr_lightning.functional.relational_tiled import tiled_structure
from sdr_lightning.methods import SDR
from sdr_lightning.types import Pairs

WIDTHS = {"student": 256, "image": 1024, "text": 768}
TAU = 0.07


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(what: str, naive: Callable[[], object], ours: Callable[[], object], rounds: int) -> None:
    naive(), ours()
    pairs = [(timed(naive), timed(ours)) for _ in range(rounds)]
    ratios = sorted(first / second for first, second in pairs)
    medians = [1e3 * statistics.median(side) for side in zip(*pairs, strict=True)]
    print(
        f"{what:44} {medians[0]:9.2f} ms {medians[1]:9.2f} ms   {statistics.median(ratios):5.1f}x "
        f"({ratios[0]:.1f} to {ratios[-1]:.1f})"
    )


class Batch:
    """Random embeddings of a student and its teachers, with learnable lambda and tau2."""

    def __init__(self, size: int) -> None:
        torch.manual_seed(size)
        self.student = torch.randn(size, WIDTHS["student"], requires_grad=True)
        self.image, self.text = torch.randn(size, WIDTHS["image"]), torch.randn(size, WIDTHS["text"])
        self.share, self.tau = torch.tensor(0.4, requires_grad=True), torch.tensor(TAU, requires_grad=True)
        self.learned = [self.student, self.share, self.tau]


def dense_structure(batch: Batch) -> tuple[Tensor, ...]:
    student, image, text = (relation_matrix(rows) / batch.tau for rows in (batch.student, batch.image, batch.text))
    fused = fuse_relations(image, text, batch.share)
    kd, kdi, kdt = (relation_distance(relation, fused) for relation in (student, image, text))
    total = 2 * kd + kdi + kdt
    return (total.detach(), *torch.autograd.grad(total, batch.learned))


def tiled_mae(batch: Batch) -> tuple[Tensor, ...]:
    rows = [F.normalize(rows, dim=1) for rows in (batch.student, batch.image, batch.text)]
    found = tiled_structure(rows[0], None, rows[1], rows[2], batch.share, power=1)
    total = (2 * found.student + (batch.share.abs() + (1 - batch.share).abs()) * found.teachers) / batch.tau
    return (total.detach(), *torch.autograd.grad(total, batch.learned))


def bench_structure() -> None:
    for size, rounds in ((64, 30), (1024, 9), (4096, 5)):
        batch = Batch(size)
        for first, second in zip(dense_structure(batch), tiled_mae(batch), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-6)
        compare(
            f"MAE relations, B = {size:,}", lambda b=batch: dense_structure(b), lambda b=batch: tiled_mae(b), rounds
        )


def looped_negatives(weights: Tensor, generator: torch.Generator) -> Tensor:
    return torch.tensor([torch.multinomial(row, 1, generator=generator).item() for row in weights])


def bench_negatives() -> None:
    for size in (36, 64, 256):
        rows = F.normalize(torch.randn(size, 256), dim=1)
        index = torch.arange(size) // 2
        weights = negative_weights(rows, rows.flip(0), index, index.flip(0), TAU)
        first, second = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        assert torch.equal(looped_negatives(weights, first), draw_negatives(weights, second).rows)
        compare(
            f"ITM negatives, B = {size}",
            lambda w=weights, g=first: looped_negatives(w, g),
            lambda w=weights, g=second: draw_negatives(w, g),
            30,
        )


def naive_wasserstein(values: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Batched version of SciPy's algorithm: two sorts, two searches and two cumulative sums per row."""
    first, second = values * weights, others * weights
    union = torch.cat([first, second], dim=1).sort(dim=1).values
    gaps = []
    for side in (first, second):
        order = side.argsort(dim=1)
        sums = F.pad(weights.gather(1, order).cumsum(dim=1), (1, 0))
        place = torch.searchsorted(side.gather(1, order).detach(), union[:, :-1].detach().contiguous(), right=True)
        gaps.append(sums.gather(1, place) / sums[:, -1:])
    return ((gaps[0] - gaps[1]).abs() * union.diff(dim=1)).sum(dim=1).mean()


def bench_wasserstein() -> None:
    for size in (64, 256):
        values, others = (torch.randn(size, size, requires_grad=True) for _ in range(2))
        weights = off_diagonal(torch.rand(size, size))

        def naive(v: Tensor = values, o: Tensor = others, w: Tensor = weights) -> tuple[Tensor, ...]:
            return torch.autograd.grad(naive_wasserstein(off_diagonal(v), off_diagonal(o), w), [v, o])

        def ours(v: Tensor = values, o: Tensor = others, w: Tensor = weights) -> tuple[Tensor, ...]:
            return torch.autograd.grad(weighted_wasserstein(off_diagonal(v), off_diagonal(o), w), [v, o])

        torch.testing.assert_close(naive(), ours(), rtol=1e-3, atol=1e-5)
        compare(f"weighted Wasserstein, B = {size}", naive, ours, 15)


def peak(which: str, size: int) -> float:
    """Return the peak memory in MB of one call, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (which, size))


def _peak(which: str, size: int) -> float:
    torch.set_num_threads(1)
    function = {"dense": dense_structure, "tiled": tiled_mae}[which]
    function(Batch(64))
    batch = Batch(size)
    before = high_water()
    function(batch)
    return high_water() - before


def high_water() -> float:
    """Return the peak memory of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def bench_memory(size: int = 8192) -> None:
    dense, tiled = peak("dense", size), peak("tiled", size)
    print(f"MAE relations, B = {size:,}: peak memory        {dense:9.0f} MB {tiled:9.0f} MB   {dense / tiled:5.1f}x")


def method_and_pairs(size: int, fused_width: int, device: torch.device) -> tuple[SDR, Pairs]:
    torch.manual_seed(0)
    method = SDR(None, 256, WIDTHS["image"], WIDTHS["text"], relation="fused").to(device)
    unit = [F.normalize(torch.randn(size, 256, device=device), dim=1).requires_grad_() for _ in range(2)]
    return method, Pairs(
        *unit,
        torch.arange(size, device=device),
        None,
        torch.randn(size, WIDTHS["image"], device=device),
        torch.randn(size, WIDTHS["text"], device=device),
        torch.randn(size, fused_width, device=device, requires_grad=True),
        torch.randn(3 * size, 2, device=device, requires_grad=True),
        torch.cat([torch.ones(size), torch.zeros(2 * size)]).long().to(device),
    )


def bench_step(size: int = 64) -> None:
    """Time all seven terms against forward and backward of small towers: ViT-tiny at 224 px and a 6-layer MiniLM."""
    from sdr_lightning.encoders import DualEncoder, TimmImageTower, TransformersTextTower
    from sdr_lightning.types import Tokens

    method, pairs = method_and_pairs(size, 768, torch.device("cpu"))
    bert = {"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    encoder = DualEncoder(TimmImageTower("vit_tiny_patch16_224"), TransformersTextTower(config=bert))
    images = torch.randint(0, 256, (size, 3, 224, 224), dtype=torch.uint8)
    tokens = Tokens(torch.randint(1000, 2000, (size, 16)), torch.ones(size, 16, dtype=torch.long))

    def losses() -> None:
        method.total(method(pairs)).backward()

    def towers() -> None:
        (encoder.encode_image(images) * encoder.encode_text(tokens)).sum().backward()

    losses()
    share = [timed(losses) / timed(towers) for _ in range(3)]
    print(
        f"all seven terms, B = {size}: {100 * statistics.median(share):.2f} % of ViT-tiny's and MiniLM's step without fusion"
    )
    compiled = torch.compile(method)
    plain, quick = method(pairs), compiled(pairs)
    torch.testing.assert_close(quick, plain, rtol=1e-4, atol=1e-5)
    compare(f"all seven terms, B = {size}, compiled", lambda: method(pairs), lambda: compiled(pairs), 20)


def bench_paper(size: int = 36, steps: int = 20) -> None:
    """Time training steps of the paper's student with all seven terms, random weights and bf16 autocast."""
    from torch.utils.flop_counter import FlopCounterMode

    from sdr_lightning.encoders import DualEncoder, FusionEncoder, TimmImageTower, TransformersTextTower
    from sdr_lightning.training.matching import Pool, match
    from sdr_lightning.types import Tokens

    device = torch.device("cuda")
    bert = {"model_type": "bert"}
    encoder = DualEncoder(
        TimmImageTower("swin_base_patch4_window12_384", model_args={"drop_path_rate": 0.1}),
        TransformersTextTower(config=bert, pooling="cls", layers=6),
        fusion=FusionEncoder(1024, config=bert),
    ).to(device)
    method, pairs = method_and_pairs(size, 768, device)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *method.parameters()], lr=5e-5, fused=True)
    images = torch.randint(0, 256, (size, 3, 384, 384), dtype=torch.uint8, device=device)
    tokens = Tokens(
        torch.randint(1000, 2000, (size, 20), device=device), torch.ones(size, 20, dtype=torch.long, device=device)
    )

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            image, text = encoder.image(images), encoder.text(tokens)
            matched = match(encoder.fusion, Pool(image, text, pairs.image_index), size, TAU, with_negatives=True)
        terms = method(
            pairs._replace(
                image=image.embedding,
                text=text.embedding,
                fused=matched.fused,
                match_logits=matched.logits,
                match_labels=matched.labels,
            )
        )
        method.total(terms).backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        step()
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / steps
    flops = counter.get_total_flops() / seconds / 1e12
    print(
        f"{torch.cuda.get_device_name()}: {size / seconds:.1f} images/s at B = {size}, {1e3 * seconds:.0f} ms a step, "
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GB, {flops:.0f} TFLOP/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("memory", "step", "paper"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'':44} {'naive':>12} {'here':>12}   ratio of medians (range)")
    bench_negatives()
    bench_wasserstein()
    bench_structure()
    if options.memory:
        bench_memory()
    if options.step:
        bench_step()
    if options.paper:
        bench_paper()


if __name__ == "__main__":
    main()
