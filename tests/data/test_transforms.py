import random
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.scenes import draw_scene
from sdr_lightning.data.transforms import Augmentation, augmentation, seeded, to_input

SCENE = torch.from_numpy(draw_scene(0, 0).pixels).permute(2, 0, 1)


def random_numbers(image: Tensor) -> Tensor:
    """A transform that shows the generator's state."""
    return torch.rand(4)


def transform_of(kind: Augmentation, size: int = 32) -> Callable[[Tensor], Tensor]:
    transform = augmentation(kind, size)
    assert transform is not None
    return transform


def test_input_of_the_right_size_is_left_as_it_is() -> None:
    pixels = draw_scene(0, 0).pixels
    image = to_input(pixels, 32)
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels)


def test_input_becomes_a_whole_square() -> None:
    for shape in [(20, 50), (50, 20), (8, 8), (100, 100)]:
        # The left half black, the right half white: nothing is cropped, whatever the aspect ratio.
        pixels = np.zeros((*shape, 3), dtype=np.uint8)
        pixels[:, shape[1] // 2 :] = 255
        image = to_input(pixels, 32)
        assert image.shape == (3, 32, 32)
        assert image.dtype == torch.uint8
        assert (image[:, :, :13] < 30).all()
        assert (image[:, :, 19:] > 225).all()


def test_channels_stay_in_order() -> None:
    pixels = np.empty((10, 20, 3), dtype=np.uint8)
    pixels[:] = (10, 100, 200)
    assert to_input(pixels, 4)[:, 0, 0].tolist() == [10, 100, 200]


@pytest.mark.parametrize("kind", [kind for kind in get_args(Augmentation) if kind != "none"])
def test_augmentation_keeps_the_form_and_varies(kind: Augmentation) -> None:
    transform = transform_of(kind)
    views = [seeded(transform, SCENE, 0, epoch) for epoch in range(8)]
    assert all(view.shape == (3, 32, 32) and view.dtype == torch.uint8 for view in views)
    assert len({view.numpy().tobytes() for view in views}) == 8


def test_no_augmentation_is_none() -> None:
    assert augmentation("none", 32) is None


def test_paper_augmentation_takes_any_size() -> None:
    for shape in ((3, 20, 50), (3, 64, 40)):
        assert transform_of("paper")(torch.zeros(shape, dtype=torch.uint8)).shape == (3, 32, 32)


def test_weak_augmentation_takes_any_size() -> None:
    for shape in [(3, 20, 50), (3, 96, 96)]:
        # A white frame: moved by an eighth at most, one side of it stays in view; a crop out of the middle loses it.
        image = torch.zeros(shape, dtype=torch.uint8)
        for edge in (image[:, :6], image[:, -6:], image[:, :, :6], image[:, :, -6:]):
            edge[:] = 255
        for key in range(5):
            view = seeded(transform_of("weak"), image, key)
            assert view.shape == (3, 32, 32)
            assert max(view[:, 0].float().mean(), view[:, -1].float().mean()) > 100


def test_weak_augmentation_keeps_what_is_seen() -> None:
    transform = transform_of("weak")
    plain = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    spread = torch.stack([seeded(transform, plain, key).float().mean() for key in range(40)])
    assert 0.65 * 128 < spread.min() < 0.85 * 128
    assert 1.15 * 128 < spread.max() < 1.35 * 128
    # One bright point moves by at most an eighth of the side.
    point = torch.zeros(3, 32, 32, dtype=torch.uint8)
    point[:, 16, 16] = 255
    places = {divmod(int(seeded(transform, point, key)[0].argmax()), 32) for key in range(40)}
    rows, columns = {row for row, _ in places}, {column for _, column in places}
    assert len(rows) > 3
    assert rows | columns <= set(range(12, 21))


def test_seeded_is_a_function_of_the_whole_key() -> None:
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0), (0, 0, 0, 0)]
    draws = [seeded(random_numbers, SCENE, *key) for key in keys]
    assert len({tuple(draw.tolist()) for draw in draws}) == len(keys)
    torch.manual_seed(99)
    for key, draw in zip(keys, draws, strict=True):
        assert torch.equal(seeded(random_numbers, SCENE, *key), draw)


@pytest.mark.parametrize("kind", ["weak", "paper"])
def test_seeded_leaves_the_global_state(kind: Augmentation) -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    seeded(transform_of(kind), SCENE, 1, 2, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def test_seeded_leaves_the_accelerators_state(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seeded(random_numbers, SCENE, 1, 2, 3)
    assert not seeds


def test_seeded_survives_an_error() -> None:
    def failing(image: Tensor) -> Tensor:
        raise RuntimeError("cannot")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="cannot"):
        seeded(failing, SCENE, 1)
    assert torch.equal(torch.get_rng_state(), before)
