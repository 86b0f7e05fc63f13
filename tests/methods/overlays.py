"""Every overlay of experiments/methods over a tiny student, and the calls that training makes to its method."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from sdr_lightning.methods import Method, PerPair
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Pairs, Tokens, TrainingPairs
from tests.training.student import IMAGE_TEACHER, TEXT_TEACHER, pictures, sentences

OVERLAYS = {path.stem: path for path in sorted((Path(__file__).parents[2] / "experiments/methods").glob("*.yaml"))}
IMAGES = 60
INDEX = torch.arange(IMAGES).repeat_interleave(2)  # two captions of each image
RIGHT = torch.arange(2 * IMAGES) % 3 > 0  # a third of the pairs is wrong
BATCH = torch.tensor([0, 1, 8, 9, 2, 15, 20, 33])  # captions of six images, of pairs that are right and wrong
REST = torch.arange(40, 64)
EPOCHS = 6
LOOKED_AT = (0, 1, 2, 5)  # epochs
_RATE = 0.02


@cache
def _built(overlay: str) -> RetrievalModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(RetrievalModule, "model", required=True)
    for section in ("data", "trainer"):
        parser.add_argument(f"--{section}", type=dict[str, Any])
    model = Path(__file__).with_name("student.yaml")
    torch.manual_seed(0)
    module = parser.instantiate(parser.parse_args([f"--model={model}", f"--config={OVERLAYS[overlay]}"])).model
    assert isinstance(module, RetrievalModule)
    return module


def student(overlay: str) -> RetrievalModule:
    """Build a student from its YAML and an overlay, with the same random weights at each call."""
    return deepcopy(_built(overlay))


def teachers(image_index: Tensor, images: int, is_right: Tensor) -> tuple[Tensor, Tensor]:
    """Return random features of images, and features of captions that agree with them where a pair is right."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(images, IMAGE_TEACHER, generator=generator)
    seen = torch.where(is_right, image_index, (image_index + images // 2) % images)
    return image, image[seen] @ torch.randn(IMAGE_TEACHER, TEXT_TEACHER, generator=generator)


TRAINING = TrainingPairs(INDEX, RIGHT, *teachers(INDEX, IMAGES, RIGHT))


@cache
def _inputs() -> tuple[Tensor, Tokens]:
    return pictures(range(IMAGES)), sentences([3 + row % 4 for row in range(2 * IMAGES)])


class Training:
    """A training of the student of an overlay: the calls of the trainer to its method, in their order."""

    def __init__(self, overlay: str) -> None:
        self.module = student(overlay)
        self.method.setup(TRAINING)

    @property
    def method(self) -> Method:
        return self.module.method

    def pairs(self, rows: Tensor) -> Pairs:
        """Encode pairs. Embeddings keep their gradient, so that it can be looked at."""
        pixels, tokens = _inputs()
        assert TRAINING.image_teacher is not None
        assert TRAINING.text_teacher is not None
        index = INDEX[rows]
        image = self.module.encoder.encode_image(pixels[index])
        text = self.module.encoder.encode_text(Tokens(tokens.input_ids[rows], tokens.attention_mask[rows]))
        if image.requires_grad:
            image.retain_grad()
            text.retain_grad()
        return Pairs(image, text, index, rows, TRAINING.image_teacher[index], TRAINING.text_teacher[rows])

    def measure(self, per_pair: PerPair) -> Tensor:
        """Measure all pairs, see :meth:`~sdr_lightning.methods.Method.begin_epoch`."""
        self.module.eval()
        with torch.no_grad():
            values = [per_pair(self.pairs(rows)) for rows in torch.arange(2 * IMAGES).split(50)]
        self.module.train()
        assert all(found.ndim in (1, 2) and len(found) == 50 for found in values[:-1])
        return torch.cat(values).float()

    def begin_epoch(self, epoch: int) -> None:
        """Let the method measure and update its state."""
        self.method.begin_epoch(epoch, self.measure)

    def step(self, rows: Tensor) -> dict[str, Tensor]:
        """Take one step of gradient descent and return the terms."""
        torch.manual_seed(0)
        terms: dict[str, Tensor] = self.method(self.pairs(rows))
        self.method.total(terms).backward()
        self.method.modify_gradients(self.module.encoder)
        with torch.no_grad():
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter -= _RATE * parameter.grad
        self.module.zero_grad()
        self.method.after_step()
        return {name: value.detach() for name, value in terms.items()}


@cache
def phases(overlay: str) -> dict[int, Training]:
    """Train an overlay, and return the training after the first step of some epochs; copy it before changing it.

    An epoch without another state of the method, which is in its buffers, is left out: a method without any has one phase.
    """
    training = Training(overlay)
    found: dict[int, Training] = {}
    last: dict[str, Tensor] = {}
    for epoch in range(EPOCHS):
        training.begin_epoch(epoch)
        training.step(BATCH)
        state = {name: value.clone() for name, value in training.method.named_buffers()}
        if epoch in LOOKED_AT and (not found or any(not torch.equal(last[name], state[name]) for name in state)):
            found[epoch], last = deepcopy(training), state
        training.step(REST)
    return found
