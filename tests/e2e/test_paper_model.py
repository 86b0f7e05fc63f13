"""The paper's student at full size with random weights: one training step, and import of a public checkpoint.

``python -m tests.e2e.test_paper_model FOLDER`` runs both in a separate process and writes the results.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor

from sdr_lightning.configure import build
from sdr_lightning.training.checkpoints.public_code import import_public_sdr
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import RetrievalBatch, Tokens
from tests.reference import public_sdr as public
from tests.reference.public_sdr import Architecture

ROOT = Path(__file__).parent.parent.parent
PAPER = Architecture()
TERMS = {"itc", "itm", "iic", "ttc", "kd", "kdi", "kdt"}
GIGABYTES = 12


def captions(lengths: tuple[int, ...]) -> Tokens:
    """Return random captions with [CLS] and [SEP], padded to the longest."""
    ids, mask = (torch.zeros(len(lengths), max(lengths), dtype=torch.int64) for _ in range(2))
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.tensor([101, *torch.randint(1000, 30522, (length - 2,)).tolist(), 102])
        mask[row, :length] = 1
    return Tokens(ids, mask)


def pictures(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 384, 384), dtype=torch.uint8)


def parameters(module: RetrievalModule) -> dict[str, int]:
    """Count the parameters of each part."""
    parts = {"encoder.image_tower.": "image tower", "encoder.text_tower.": "text tower", "encoder.fusion.": "fusion"}
    counts = dict.fromkeys([*parts.values(), "rest"], 0)
    for name, parameter in module.named_parameters():
        counts[next((part for prefix, part in parts.items() if name.startswith(prefix)), "rest")] += parameter.numel()
    return counts


def peak() -> float:
    """Return the peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


class Stopwatch:
    """Measures wall and CPU seconds per lap."""

    def __init__(self) -> None:
        self.laps: dict[str, tuple[float, float]] = {}
        self.last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        self.laps[name] = now[0] - self.last[0], now[1] - self.last[1]
        self.last = now


def digests(module: RetrievalModule) -> dict[str, str]:
    """Hash every parameter, to compare without copies in memory."""
    named = module.named_parameters()
    return {name: sha256(parameter.detach().contiguous().view(-1).numpy()).hexdigest() for name, parameter in named}


def one_step(module: RetrievalModule) -> dict[str, Any]:
    """Run forward, backward and AdamW on two pairs."""
    module.train()
    paths = [layer for layer in module.modules() if isinstance(layer, DropPath)]
    rates = [layer.drop_prob for layer in paths]
    for layer in paths:
        layer.drop_prob = 0.0  # otherwise a block may be dropped for both images
    before = digests(module)
    new = [f"encoder.{name}" for name in module.encoder.newly_initialized_parameters()]
    groups = module.optimisation.groups(module, new)
    optimizer = torch.optim.AdamW(groups, lr=module.optimisation.learning_rate, betas=module.optimisation.betas)
    batch = RetrievalBatch(
        pictures(2), captions((22, 17)), torch.arange(2), torch.arange(2), torch.randn(2, 1024), torch.randn(2, 768)
    )
    watch = Stopwatch()
    loss = module.training_step(batch, 0)
    watch.lap("forward")
    loss.backward()
    watch.lap("backward")
    optimizer.step()
    watch.lap("AdamW")
    named, after = dict(module.named_parameters()), digests(module)
    return {
        "seconds": watch.laps,
        "drop path": max(rates),
        "loss": loss.item(),
        "terms": {name: value.item() for name, value in module.epoch_terms[0].items()},
        "frozen": [name for name, parameter in named.items() if not parameter.requires_grad],
        "without gradient": [name for name, parameter in named.items() if parameter.grad is None],
        "not finite": [name for name, parameter in named.items() if not parameter.isfinite().all()],
        "unchanged": [name for name in named if after[name] == before[name]],
        "optimised": sum(parameter.numel() for group in groups for parameter in group["params"]),
    }


@torch.no_grad()
def imported(module: RetrievalModule) -> dict[str, Any]:
    """Import a public checkpoint and return the differences from the reference, for an image and two captions."""
    state = public.random_state(PAPER)
    report = import_public_sdr(module, state)
    module.eval()
    pixels, texts = pictures(1), captions((21, 14))
    assert module.encoder.fusion is not None
    image, text = module.encoder.image(pixels), module.encoder.text(texts)
    assert image.tokens is not None
    assert text.tokens is not None
    logits = module.encoder.fusion.head(module.encoder.fusion(text, module.encoder.fusion.contexts(image.tokens)))
    real = texts.attention_mask.bool()
    pairs = {
        "image tokens": (image.tokens, public.image_tokens(state, PAPER, pixels)),
        "text tokens": (text.tokens[real], public.text_tokens(state, PAPER, *texts)[real]),
        "image embedding": (image.embedding, public.image_embeddings(state, PAPER, pixels)),
        "text embeddings": (text.embedding, public.text_embeddings(state, PAPER, *texts)),
        "matching": (logits, public.matching_logits(state, PAPER, pixels.expand(2, -1, -1, -1), *texts)),
    }
    return {
        "image tokens": list(image.tokens.shape),
        "keys": {"used": len(report.used), "unused": len(report.unused), "missing": report.missing},
        "apart": {name: (mine - theirs).abs().max().item() for name, (mine, theirs) in pairs.items()},
        "logits": logits.tolist(),
    }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started = time.perf_counter()
    experiments = ROOT / "experiments"
    files = (experiments / "flickr30k/sdr.yaml", experiments / "_base/random_weights.yaml")
    options = [word for file in files for word in ("--config", str(file))]
    cli = build([*options, "--trainer.accelerator", "cpu", "--run_dir", str(folder / "run")])
    module = cli.model
    assert isinstance(module, RetrievalModule)
    module.trainer = cli.trainer
    found: dict[str, Any] = {"build": time.perf_counter() - started, "parameters": parameters(module)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found |= {"step": one_step(module), "peak of the step": peak()}
        module.zero_grad()
        found |= {"imported": imported(module), "peak": peak()}
    found["image size"] = cli.datamodule.image_size
    (folder / "found.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("paper")
    settings = {"OMP_NUM_THREADS": "1", "FLICKR30K_ROOT": str(folder), "HF_HUB_OFFLINE": "1"}
    inherited = {key: value for key, value in os.environ.items() if key not in ("IMAGE_WEIGHTS", "TEXT_WEIGHTS")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.test_paper_model", str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=inherited | settings,
        timeout=840,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    values: dict[str, Any] = json.loads((folder / "found.json").read_text())
    print(json.dumps(values, indent=1))
    return values


pytestmark = pytest.mark.slow


def test_architecture_and_parameter_counts(found: dict[str, Any]) -> None:
    assert found["image size"] == 384
    assert found["imported"]["image tokens"] == [1, 1 + 12 * 12, 1024]
    # Swin-B without a classifier; BERT-base's embeddings and 6 layers; 6 layers with cross-attention from 1024 to 768, and
    # the matching head; projections of 1024 and 768, of the teachers' 1024 and 768, to 256, two temperatures and lambda.
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 2 * 2 * 768
    cross = 2 * (768 * 768 + 768) + 2 * (1024 * 768 + 768) + 2 * 768
    head = 768 * 1536 + 1536 + 2 * 1536 + 1536 * 2 + 2
    assert found["parameters"] == {
        "image tower": 86_878_584,
        "text tower": (30522 + 512 + 2 + 2) * 768 + 6 * layer,
        "fusion": 6 * (layer + cross) + head,
        "rest": 2 * (1024 * 256 + 256) + 2 * (768 * 256 + 256) + 3,
    }


def test_step_trains_all_parameters(found: dict[str, Any]) -> None:
    step = found["step"]
    assert set(step["terms"]) == {"loss", *TERMS}
    assert all(value == value and abs(value) != float("inf") for value in [step["loss"], *step["terms"].values()])
    assert all(value > 0 for value in step["terms"].values())
    for what in ("frozen", "without gradient", "not finite", "unchanged"):
        assert step[what] == [], what
    assert step["drop path"] == pytest.approx(0.1)
    assert step["optimised"] == sum(found["parameters"].values())


def test_step_fits_into_memory(found: dict[str, Any]) -> None:
    assert found["peak"] < GIGABYTES


def test_full_size_public_checkpoint_is_imported(found: dict[str, Any]) -> None:
    imported = found["imported"]
    assert imported["keys"]["missing"] == []
    assert max(imported["apart"].values()) < 1e-4, imported["apart"]
    (first, second) = imported["logits"]
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 1e-3


if __name__ == "__main__":
    main(Path(sys.argv[1]))
