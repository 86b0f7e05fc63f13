"""The structure terms tile by tile against the same over whole matrices, and what they cost in memory."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from sdr_lightning.functional.relational import fuse_relations, relation_distance
from sdr_lightning.functional.relational_tiled import tile_size, tiled_structure, tiled_teacher_gap
from sdr_lightning.methods import SDR
from sdr_lightning.types import Pairs
from tests.reference import losses as reference

KINDS = {1: "mae", 2: "mse"}


def unit_rows(count, width, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def inputs(size, with_gallery, seed=0):
    """Queries, gallery or None, image teacher, text teacher, lambda."""
    rows = [unit_rows(size, width, 4 * seed + i) for i, width in enumerate((4, 4, 6, 3))]
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gallery = rows[1].requires_grad_() if with_gallery else None
    return rows[0].requires_grad_(), gallery, rows[2], rows[3], share


def dense(queries, gallery, image_teacher, text_teacher, share, power):
    image, text = image_teacher @ image_teacher.T, text_teacher @ text_teacher.T
    student = queries @ (queries if gallery is None else gallery).T
    return (
        relation_distance(student, fuse_relations(image, text, share), KINDS[power]),
        relation_distance(image, text, KINDS[power]),
    )


def slopes(value, given):
    wanted = [tensor for tensor in given if tensor is not None and tensor.requires_grad]
    return torch.autograd.grad(2.5 * value, wanted)  # the gradient that flows in is not 1


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("with_gallery", [False, True])
def test_tiles_equal_whole_matrices_at_every_size(with_gallery, power):
    for size in range(1, 14):
        given = inputs(size, with_gallery, seed=size)
        student, teachers = dense(*given, power)
        expected = student.detach(), teachers, slopes(student, given)
        for tile in range(1, 21):
            found = tiled_structure(*given, power, tile)
            alone = tiled_teacher_gap(given[2], given[3], power, tile)
            torch.testing.assert_close(alone, found.teachers, rtol=1e-12, atol=1e-14)
            actual = found.student.detach(), found.teachers, slopes(found.student, given)
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14, msg=lambda m, t=tile: f"{t}: {m}")


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("with_gallery", [False, True])
def test_mean_over_row_shards_equals_the_whole(with_gallery, power):
    for tile in (1, 3, 20):
        for size, shares in ((6, 2), (6, 3), (12, 4), (12, 12), (4, 1)):
            given = inputs(size, with_gallery, seed=size)
            whole = tiled_structure(*given, power, 4)
            rows = [slice(first, first + size // shares) for first in range(0, size, size // shares)]
            parts = [tiled_structure(*given, power, tile, own) for own in rows]
            student, teachers = (torch.stack(column).mean() for column in zip(*parts, strict=True))
            torch.testing.assert_close((student, teachers), tuple(whole), rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(slopes(student, given), slopes(whole.student, given), rtol=1e-10, atol=1e-14)
            gaps = torch.stack([tiled_teacher_gap(given[2], given[3], power, tile, own) for own in rows])
            torch.testing.assert_close(gaps, torch.stack([part.teachers for part in parts]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("power", "with_gallery"), [(1, True), (2, False)])
def test_tiles_equal_the_loops(with_gallery, power):
    given = inputs(5, with_gallery)
    student = tiled_structure(*given, power, tile=2).student
    queries, gallery, image, text, share = (None if tensor is None else tensor.tolist() for tensor in given)

    def loops(queries, gallery, share):
        def cosines(rows, columns):
            return [[reference.dot(row, column) for column in columns] for row in rows]

        target = reference.fused(cosines(image, image), cosines(text, text), share)
        return reference.distance(cosines(queries, queries if gallery is None else gallery), target, KINDS[power])

    assert student.item() == pytest.approx(loops(queries, gallery, share), rel=1e-12)
    expected = [reference.gradient(lambda r: loops(r, gallery, share), queries)]
    if with_gallery:
        expected.append(reference.gradient(lambda r: loops(queries, r, share), gallery))
    expected.append(reference.derivative(lambda value: loops(queries, gallery, value), share))
    torch.autograd.backward(student)
    found = [tensor.grad for tensor in given if tensor is not None and tensor.requires_grad]
    for actual, slope in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, torch.tensor(slope, dtype=torch.float64), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize(("power", "with_gallery"), [(1, True), (2, False)])
def test_gradients_by_gradcheck(with_gallery, power):
    given = inputs(5, with_gallery, seed=1)
    assert torch.autograd.gradcheck(lambda *moved: tiled_structure(*moved, power, tile=2).student, given)


def test_diagonal_is_ignored():
    queries, _, image, text, share = inputs(5, with_gallery=False)
    image[1] = 0  # a feature that is missing is no nearer to itself than to the others
    given = queries, None, image, text, share
    found, (student, teachers) = tiled_structure(*given, 2, tile=2), dense(*given, 2)
    torch.testing.assert_close((found.student, found.teachers), (student, teachers))
    torch.testing.assert_close(tiled_teacher_gap(image, text, 2, tile=2), teachers)
    torch.testing.assert_close(slopes(found.student, given), slopes(student, given))


def test_gradient_is_zero_where_the_difference_is_zero():
    rows = unit_rows(6, 4, 0).requires_grad_()
    share = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    exact = torch.eye(6, 4, dtype=torch.float64).requires_grad_()  # products of zeros and ones are exact
    value = tiled_structure(exact, None, exact.detach(), exact.detach(), share, 1, tile=4).student
    value.backward()
    assert value.item() == 0
    assert not exact.grad.any()
    assert tiled_structure(rows, None, exact.detach(), exact.detach(), share, 1, tile=4).student > 0


def test_gradient_for_a_subset_of_inputs():
    for wanted in [(True, False), (False, True), (False, False)]:
        given = inputs(7, with_gallery=True)
        queries, gallery = (
            tensor.detach().requires_grad_(want) for tensor, want in zip(given[:2], wanted, strict=True)
        )
        partial = queries, gallery, *given[2:]
        found = tiled_structure(*partial, 2, 3).student
        torch.testing.assert_close(slopes(found, partial), slopes(dense(*partial, 2)[0], partial))


def test_the_teachers_never_receive_a_gradient():
    queries, _, image, text, share = inputs(5, with_gallery=False)
    image.requires_grad_()
    text.requires_grad_()
    found = tiled_structure(queries, None, image, text, share, 1, 2)
    assert not found.teachers.requires_grad
    assert not tiled_teacher_gap(image, text, 1, 2).requires_grad
    found.student.backward()
    assert image.grad is None
    assert text.grad is None
    assert queries.grad.any()


def test_float32_matches_float64():
    given = inputs(300, with_gallery=False)  # more than one tile of the default size
    assert tile_size(torch.device("cpu")) < 300
    single = [None if tensor is None else tensor.detach().float().requires_grad_() for tensor in given]
    found, exact = tiled_structure(*single, 1).student, dense(*given, 1)[0]
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)
    found.backward()
    assert single[0].grad.dtype == torch.float32
    # An entry's sign is lost in rounding near 0 only: the gradients agree as a whole.
    (expected,) = torch.autograd.grad(exact, given[0])
    assert F.cosine_similarity(single[0].grad.flatten().double(), expected.flatten(), dim=0) > 0.9999


class Memory(TorchDispatchMode):
    """The largest tensor that any operation returns, and the most bytes of returned tensors alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.peak = 0, 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in self._tensors(out):
            self.largest = max(self.largest, tensor.numel())
            storage = tensor.untyped_storage()
            self._alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out

    def _tensors(self, out: Any) -> Iterator[torch.Tensor]:
        if isinstance(out, torch.Tensor):
            yield out
        elif isinstance(out, (tuple, list)):
            for item in out:
                yield from self._tensors(item)


def test_memory_measure_detects_a_dense_matrix():
    rows = unit_rows(100, 4, 0).requires_grad_()
    with Memory() as memory:
        dense(rows, None, rows.detach(), rows.detach(), 0.5, 1)[0].backward()
    assert memory.largest == 100**2
    assert memory.peak > 8 * 3 * 100**2


@pytest.mark.slow
@pytest.mark.parametrize("with_gallery", [False, True])
def test_memory_is_linear_in_the_batch(with_gallery):
    peaks = {}
    for size in (1024, 2048):
        given = inputs(size, with_gallery)
        with Memory() as memory:
            tiled_structure(*given, 1, tile=64).student.backward()
        assert memory.largest <= max(64**2, size * 6)  # a tile, or the image teacher's rows
        peaks[size] = memory.peak
    # Rows, gradients and a few tiles in float64, where a matrix has 2048 rows of 2048.
    assert peaks[2048] < 8 * (2048 * 32 + 8 * 64**2)
    assert peaks[2048] <= 2 * peaks[1024]


@pytest.mark.parametrize("distance", ["mae", "mse"])
def test_method_creates_no_dense_matrix(distance):
    module = SDR({"kd": 1, "kdi": 1, "kdt": 1}, relation={"averaged": 1, "image_text": 1}, distance=distance)
    peaks = {}
    for size in (1024, 2048):
        image, text = (unit_rows(size, 4, seed).float().requires_grad_() for seed in range(2))
        pairs = Pairs(
            image, text, torch.arange(size), None, unit_rows(size, 6, 2).float(), unit_rows(size, 3, 3).float()
        )
        with Memory() as memory:
            module.total(module(pairs)).backward()
        assert memory.largest <= tile_size(torch.device("cpu")) ** 2
        peaks[size] = memory.peak
    assert peaks[2048] < 2 * peaks[1024] < 2 * 4 * 1024**2
