"""`sdr import-checkpoint`: import of checkpoints of the public code for `sdr test`, and errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdr_lightning.cli.main import main
from sdr_lightning.configure import build
from sdr_lightning.types import Tokens
from tests.e2e.sdr import sdr, succeeded
from tests.reference import public_sdr as public
from tests.reference.public_sdr import Architecture
from tests.reference.ranking import rank_of_best_positive

MODEL = Architecture(  # that of experiments/models/tiny_fusion.yaml
    image_size=32,
    patch=4,
    window=4,
    embed_dim=48,
    depths=(1, 1),
    image_heads=(2, 4),
    vocabulary=80,
    positions=64,
    hidden=64,
    intermediate=128,
    layers=2,
    fusion_layer=1,
    text_heads=2,
    embedding=64,
    image_teacher=96,
    text_teacher=64,
)
IMAGES, CANDIDATES = 16, 12


def write_configuration(folder: Path, experiments: Path) -> tuple[Path, Path]:
    """Write a student configuration, and an overlay with the pixel normalisation of the public code."""
    student, pixels = folder / "student.yaml", folder / "pixels.yaml"
    student.write_text(
        f"model: {experiments / 'models/tiny_fusion.yaml'}\n"
        f"data: {experiments / 'data/scenes.yaml'}\n"
        "trainer: {accelerator: cpu, enable_progress_bar: false}\n"
    )
    tower = {"init_args": {"mean": public.MEAN, "std": public.STD}}
    overlay = {"model": {"init_args": {"encoder": {"init_args": {"image_tower": tower}}, "rerank": CANDIDATES}}}
    data = {"init_args": {"source": {"init_args": {"num_train": 20, "num_val": 5, "num_test": IMAGES}}}}
    pixels.write_text(json.dumps(overlay | {"data": data}))
    return student, pixels


def whole_checkpoint(state: dict[str, Tensor], config: Any = None) -> dict[str, Any]:
    """Return a checkpoint of the public code with optimiser, schedule, configuration and epoch."""
    trained = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=5e-5, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    trained(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule.step()
    return {
        "model": state,
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "config": {"image_res": 384, "schedular": {"sched": "linear", "lr": 5e-5}, "k_test": 128, "temp": None}
        if config is None
        else config,
        "epoch": 3,
    }


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return public.random_state(MODEL)


@pytest.fixture(scope="module")
def configuration(tmp_path_factory: pytest.TempPathFactory, experiments: Path) -> tuple[str, ...]:
    files = write_configuration(tmp_path_factory.mktemp("configuration"), experiments)
    return tuple(word for file in files for word in ("--config", str(file)))


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor]) -> Path:
    """Write a bare state dict."""
    path = tmp_path_factory.mktemp("bare") / "state.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def imported(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, Tensor], configuration: tuple[str, ...]
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("imported")
    torch.save(whole_checkpoint(state), folder / "checkpoint_best.pth")
    output = folder / "made/here/student.ckpt"
    command = ("import-checkpoint", folder / "checkpoint_best.pth", "--from", "public-sdr", *configuration)
    return output, succeeded(sdr(*command, "--output", output, cwd=folder))


@pytest.mark.slow
def test_every_key_is_printed_once(imported: tuple[Path, str], state: dict[str, Tensor]) -> None:
    output, printed = imported
    *lines, last = printed.splitlines()
    words = [line.split() for line in lines]
    used = {word[1]: word[3] for word in words if word[0] == "used" and word[2] == "->"}
    unused = [word[1] for word in words if word[0] == "unused"]
    assert len(used) + len(unused) == len(lines)
    assert sorted([*used, *unused]) == sorted(state)
    assert unused == [
        "text_encoder.embeddings.position_ids",
        *(f"vision_encoder.layers.{stage}.blocks.0.attn.relative_position_index" for stage in (0, 1)),
    ]
    assert last == (
        f"{len(used)} keys used, 3 unused, 0 missing; written to {output}: sdr test --protocol paper --ckpt_path {output}"
    )
    weights = torch.load(output, weights_only=True)["state_dict"]
    assert sorted(used.values()) == sorted(weights)
    for theirs, mine in used.items():
        assert torch.equal(weights[mine], state[theirs].reshape(weights[mine].shape)), theirs
    assert [path.name for path in output.parent.iterdir()] == ["student.ckpt"]


@pytest.mark.slow
def test_metrics_equal_those_of_the_public_model(
    imported: tuple[Path, str], state: dict[str, Tensor], configuration: tuple[str, ...], tmp_path: Path
) -> None:
    options = ("--protocol", "paper", "--ckpt_path", imported[0], "--run_dir", tmp_path / "run")
    assert "Cross-modal retrieval reranked" in succeeded(sdr("test", *configuration, *options, cwd=tmp_path))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["protocol"] == "paper"
    expected = recalls(state, configuration)
    assert {name: results["metrics"][name] for name in expected} == pytest.approx(expected)
    assert len(set(expected.values())) > 4


def recalls(state: dict[str, Tensor], configuration: tuple[str, ...]) -> dict[str, float]:
    """Return recall by cosine, and with candidates re-ranked by the matching head of the public model."""
    data = build(list(configuration)).datamodule
    data.setup("test")
    (pictures,) = [batch.inputs for batch in data.items("test", "image")]
    captions = Tokens(*collated([batch.inputs for batch in data.items("test", "text")]))
    shown = data.split("test").caption_image.tolist()
    image, text = public.image_embeddings(state, MODEL, pictures), public.text_embeddings(state, MODEL, *captions)
    cosine = (image.double() @ text.double().T).tolist()
    matching = [
        public.matching_logits(state, MODEL, pictures[[row] * len(text)], *captions)[:, 1].tolist()
        for row in range(IMAGES)
    ]
    found: dict[str, float] = {}
    for way, queries, gallery, turn in (
        ("i2t", list(range(IMAGES)), shown, list),
        ("t2i", shown, list(range(IMAGES)), lambda scores: [list(column) for column in zip(*scores, strict=True)]),
    ):
        by_cosine, by_head = turn(cosine), turn(matching)
        ranks = rank_of_best_positive(by_cosine, queries, gallery)
        reranked = rank_of_best_positive(
            [put_first(*scores) for scores in zip(by_cosine, by_head, strict=True)], queries, gallery
        )
        for prefix, values in (("", ranks), ("reranked_", reranked)):
            for k in (1, 5, 10):
                found[f"{prefix}{way}_R@{k}"] = 100 * sum(value < k for value in values) / len(values)
    return found


def put_first(cosines: list[float], logits: list[float]) -> list[float]:
    """Rank candidates by logits, ahead of all other items by cosine."""
    best = sorted(range(len(cosines)), key=lambda item: -cosines[item])[:CANDIDATES]
    return [1e6 + logits[item] if item in best else cosines[item] for item in range(len(cosines))]


def collated(batches: list[Tokens]) -> tuple[Tensor, Tensor]:
    """Concatenate batches of captions, padded to the longest."""
    longest = max(batch.input_ids.shape[1] for batch in batches)
    ids, mask = (
        torch.cat([nn.functional.pad(batch[side], (0, longest - batch[side].shape[1])) for batch in batches])
        for side in (0, 1)
    )
    return ids, mask


# --- Errors.


@pytest.fixture
def error_of(capsys: pytest.CaptureFixture[str], configuration: tuple[str, ...], tmp_path: Path) -> Callable[..., str]:
    """Run an import that must fail without writing a file, and return its error line."""

    def run(file: Path, *options: str, config: tuple[str, ...] = configuration) -> str:
        output = tmp_path / "error_of" / "student.ckpt"
        command = ["import-checkpoint", str(file), "--from", "public-sdr", *config, "--output", str(output), *options]
        assert main(command) == 2
        captured = capsys.readouterr()
        lines = [line for line in captured.err.splitlines() if line.startswith("sdr")]
        assert len(lines) == 1, lines
        assert not captured.out
        assert not output.parent.exists()
        return lines[0]

    return run


class Harmful:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.mark,)


@pytest.mark.parametrize("place", ["config", "model"])
def test_objects_are_not_unpickled(
    place: str, state: dict[str, Tensor], tmp_path: Path, error_of: Callable[..., str]
) -> None:
    harmful, file = Harmful(tmp_path / "mark"), tmp_path / "harmful.pth"
    saved = {
        "config": lambda: whole_checkpoint(state, config=harmful),
        "model": lambda: whole_checkpoint(state | {"temp": harmful}),
    }
    torch.save(saved[place](), file)
    assert f"{file} is not a plain state dict of tensors" in error_of(file)
    assert not (tmp_path / "mark").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "mark").exists()


def test_invalid_files_are_rejected(tmp_path: Path, error_of: Callable[..., str]) -> None:
    assert f"no weights at {tmp_path / 'absent.pth'}" in error_of(tmp_path / "absent.pth")
    assert f"no weights at {tmp_path}" in error_of(tmp_path)
    (tmp_path / "text.pth").write_text("not a checkpoint")
    assert f"{tmp_path / 'text.pth'} " in error_of(tmp_path / "text.pth")
    torch.save({"model": {"temp": 0.07}}, tmp_path / "numbers.pth")
    assert "is not a plain state dict: expected tensors by name" in error_of(tmp_path / "numbers.pth")


def test_unsupported_students_are_rejected(bare: Path, experiments: Path, error_of: Callable[..., str]) -> None:
    narrow = "--model.init_args.encoder.init_args.embedding_width=32"
    assert "vision_proj.weight is of shape (64, 96) and encoder.image_projection.1.weight of (32, 96)" in error_of(
        bare, narrow
    )
    scenes = ("--config", str(experiments / "scenes/sdr.yaml"))
    assert "timm image tower and a fusion encoder" in error_of(bare, config=scenes)
    teacher = ("--config", str(experiments / "scenes/image_teacher.yaml"))
    assert "is a TeacherModule, expected a RetrievalModule" in error_of(bare, config=teacher)
    assert "did you mean 'embedding_width'" in error_of(bare, "--model.init_args.encoder.init_args.embeding_width=32")


def test_output_must_not_be_an_input(bare: Path, configuration: tuple[str, ...], error_of: Callable[..., str]) -> None:
    before = bare.read_bytes()
    assert "is a file that this command reads" in error_of(bare, "--output", str(bare))
    assert bare.read_bytes() == before
