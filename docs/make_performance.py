"""What each speed option does to a training step: seconds, and what the forward pass keeps for the backward one.

python docs/make_performance.py CONFIG[,CONFIG] [BATCH] [ROUNDS] [VARIANT ...]

All variants run in this process, round after round, on the same batch of random pixels and captions; ratios are of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from sdr_lightning.configure import build
from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.training.gradient_caching import encode_in_chunks
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Tokens

ENCODER, OPTIMISATION = "--model.init_args.encoder.init_args", "--model.init_args.optimisation.init_args"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VARIANTS: dict[str, tuple[str, ...]] = {
    "as it is": (),
    "fused AdamW": (f"{OPTIMISATION}.fused=true",),
    "activation checkpointing": (f"{ENCODER}.activation_checkpointing=true",),
    "micro_batch of a quarter": (),
    "bf16": (),
    "compile": (f"{ENCODER}.compile=true",),
    "not channels_last": (),
}


def configs(names: str) -> list[str]:
    """Files separated by commas as options."""
    return [word for name in names.split(",") for word in ("--config", name)]


class Case:
    """A student ready for steps."""

    def __init__(self, config: str, name: str, batch: int, size: int, length: int) -> None:
        torch.manual_seed(0)
        model = build([*configs(config), *VARIANTS[name]]).model
        assert isinstance(model, RetrievalModule)
        self.module = model.to(DEVICE).train()
        if name == "not channels_last":
            self.module.to(memory_format=torch.contiguous_format)
        self.micro_batch = batch // 4 if name.startswith("micro_batch") else None
        self.half = name == "bf16"
        self.optimizer = torch.optim.AdamW(
            [p for p in self.module.parameters() if p.requires_grad], fused=self.module.optimisation.fused or None
        )
        self.images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=DEVICE)
        vocabulary = int(self.module.encoder.text_tower.vocabulary_size)  # type: ignore[arg-type]
        ids = torch.randint(1, vocabulary, (batch, length), device=DEVICE)
        self.texts = Tokens(ids, torch.ones_like(ids))
        self.index = torch.arange(batch, device=DEVICE)
        self.seconds: list[float] = []
        self.kept = 0

    def loss(self) -> Tensor:
        """Towers and contrast."""
        context: AbstractContextManager[object] = (
            torch.autocast(DEVICE.type, torch.bfloat16) if self.half else nullcontext()
        )
        with context:
            image = encode_in_chunks(self.module.encoder.image, self.images, self.micro_batch).vector
            text = encode_in_chunks(self.module.encoder.text, self.texts, self.micro_batch).vector
        return image_text_contrast(image.float(), text.float(), self.index, 0.07)

    def step(self) -> None:
        """A whole training step, timed."""
        _wait()
        started = time.perf_counter()
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        _wait()
        self.seconds.append(time.perf_counter() - started)

    def measure_kept(self) -> None:
        """MiB of activations between the passes: on a GPU all that is allocated, here what autograd saves."""
        own = {p.untyped_storage().data_ptr() for p in self.module.parameters()}
        found: dict[int, int] = {}
        kept: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in own:
                found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                kept.append(tensor)  # so that no address is given twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            self.loss()
        self.kept = sum(found.values())


def _wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def main(config: str, batch: int = 32, rounds: int = 5, names: tuple[str, ...] = ()) -> None:
    """Print the table."""
    data = build(configs(config)).datamodule
    size, length = int(data.image_size or 0), 24  # type: ignore[union-attr]
    cases = {name: Case(config, name, batch, size, length) for name in (names or VARIANTS)}
    for name, case in cases.items():
        if name != "compile":
            case.measure_kept()
        case.step()  # the first compiles, and allocates
        case.seconds.clear()
    for _ in range(rounds):
        for case in cases.values():
            case.step()
    first = next(iter(cases.values()))
    base = statistics.median(first.seconds)
    print(f"{config}, {batch} pairs, {size} px, {length} tokens, {DEVICE}, {torch.get_num_threads()} threads")
    print("| variant | s a step (min, median, max) | ratio | MiB kept |\n|---|---|---|---|")
    for name, case in cases.items():
        low, middle, high = min(case.seconds), statistics.median(case.seconds), max(case.seconds)
        kept = f"{case.kept / 2**20:,.0f}" if case.kept else "-"
        print(f"| {name} | {low:.3f}, {middle:.3f}, {high:.3f} | {middle / base:.2f} | {kept} |")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0], *map(int, arguments[1:3]), names=tuple(arguments[3:]))
