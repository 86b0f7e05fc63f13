"""What every method of experiments/methods promises, in each phase of its training."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from sdr_lightning.methods import Method
from sdr_lightning.types import Pairs
from tests.methods.overlays import BATCH, OVERLAYS, REST, TRAINING, Training, phases, student

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # a method may warn of batches as small as these
Terms = dict[str, Tensor]
CLOSE: Any = {"rtol": 1e-5, "atol": 1e-6}
EXACT: Any = {"rtol": 0, "atol": 0}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def trainings(overlay: str) -> Iterator[Training]:
    """Yield a copy of the training in each phase."""
    return map(deepcopy, phases(overlay).values())


def computed(method: Method, pairs: Pairs, local_rows: slice = slice(None), seed: int = 0) -> tuple[Terms, Method]:
    """Return the terms, and the method after computing them: a copy, because terms may update its state."""
    used = deepcopy(method)
    torch.manual_seed(seed)
    return used(pairs, local_rows), used


def assert_same_state(first: torch.nn.Module, second: torch.nn.Module, tolerance: dict[str, float] = EXACT) -> None:
    torch.testing.assert_close(first.state_dict(), second.state_dict(), **tolerance)


def assert_valid_state(method: Method) -> None:
    state = {name: value for name, value in method.state_dict().items() if value.is_floating_point()}
    assert [name for name, value in state.items() if not bool(value.isfinite().all())] == []
    if method.clean_probability is not None:
        assert method.clean_probability.shape == (TRAINING.num_pairs,)
        assert method.clean_probability.dtype == torch.float32
        assert 0 <= method.clean_probability.min() <= method.clean_probability.max() <= 1


# --- Terms


def test_terms_are_the_same_finite_scalars_in_every_phase(overlay: str) -> None:
    for training in trainings(overlay):
        terms = training.method(training.pairs(BATCH))
        assert set(terms) == set(training.method.weights)
        assert all(value.ndim == 0 and bool(value.isfinite()) for value in terms.values())


def test_gradient_flows_to_both_embeddings_and_to_every_parameter(overlay: str) -> None:
    """The latter is required by DDP. What the method is given stays as it was."""
    for training in trainings(overlay):
        pairs = training.pairs(BATCH)
        before = [None if tensor is None else tensor.detach().clone() for tensor in pairs]
        training.method.total(training.method(pairs)).backward()
        assert all(value is None or torch.equal(value, now) for value, now in zip(before, pairs, strict=True))  # type: ignore[arg-type]
        for embedding in (pairs.image, pairs.text):
            assert embedding.grad is not None
            assert bool(embedding.grad.isfinite().all())
            assert embedding.grad.abs().max() > 0
        trained = {name: p for name, p in training.module.named_parameters() if p.requires_grad}
        assert [name for name, p in trained.items() if p.grad is None] == []


def test_the_order_of_pairs_changes_nothing(overlay: str) -> None:
    """With two captions of each image, so that no choice between equal values is made by position; in float64."""
    rows = torch.arange(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    for training in trainings(overlay):
        training.module.double()
        pairs = training.pairs(rows)
        terms, method = computed(training.method, pairs)
        if computed(training.method, pairs, seed=1)[0] != terms:
            continue  # terms that draw a random number for each row depend on the order
        moved = Pairs(*(None if tensor is None else tensor[order] for tensor in pairs))
        others, other = computed(training.method, moved)
        torch.testing.assert_close(others, terms, **CLOSE)
        assert_same_state(other, method, CLOSE)


@pytest.mark.parametrize("rows", [1, 4])
def test_the_mean_over_processes_of_local_rows_is_the_term_of_all_rows(overlay: str, rows: int) -> None:
    """And the method has the same state in all processes."""
    if not student(overlay).method.supports_local_loss:
        pytest.skip("its terms do not decompose over rows")
    for training in trainings(overlay):
        pairs = training.pairs(BATCH)
        terms, method = computed(training.method, pairs)
        parts = [computed(training.method, pairs, slice(row, row + rows)) for row in range(0, len(BATCH), rows)]
        for name, value in terms.items():
            torch.testing.assert_close(torch.stack([part[name] for part, _ in parts]).mean(), value, **CLOSE)
        for _, other in parts:
            assert_same_state(other, method, CLOSE)


def test_half_precision_embeddings_are_computed_in_float32(overlay: str) -> None:
    for training in trainings(overlay):
        pairs = training.pairs(BATCH)
        half = Pairs(*(t.bfloat16() if t is not None and t.is_floating_point() else t for t in pairs))
        whole = Pairs(*(t.float() if t is not None and t.is_floating_point() else t for t in half))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, method = computed(training.method, half)
        exact, other = computed(training.method, whole)
        assert {value.dtype for value in found.values()} == {torch.float32}
        torch.testing.assert_close(found, exact, **EXACT)
        assert_same_state(method, other)


def test_pairs_with_an_equal_value_in_any_column_are_positives(overlay: str) -> None:
    """As ``positives: image_or_text`` gives them, of different images with equal captions."""
    index = torch.tensor([0, 1, 0, 2, 3, 3, 4, 0])
    columns = torch.stack([torch.arange(len(BATCH)), index + 100], dim=1)
    for training in trainings(overlay):
        pairs = training.pairs(BATCH)
        terms, method = computed(training.method, pairs._replace(image_index=index))
        found, other = computed(training.method, pairs._replace(image_index=columns))
        torch.testing.assert_close(found, terms, **CLOSE)
        assert_same_state(other, method, CLOSE)


def all_alike(pairs: Pairs, image: Tensor | None = None, text: Tensor | None = None) -> Pairs:
    """Give all pairs the embeddings of the first, or these."""
    image, text = pairs.image[:1] if image is None else image, pairs.text[:1] if text is None else text
    return pairs._replace(image=image.repeat(len(pairs.image), 1), text=text.repeat(len(pairs.text), 1))


EXTREMES: dict[str, Callable[[Pairs], Pairs]] = {
    "ordinary pairs": lambda pairs: pairs,
    "captions of one image": lambda pairs: pairs._replace(
        image=pairs.image[:1].repeat(len(BATCH), 1), image_index=torch.zeros_like(pairs.image_index)
    ),
    "two pairs": lambda pairs: Pairs(*(None if tensor is None else tensor[:4:2] for tensor in pairs)),
    "perfect pairs": lambda pairs: pairs._replace(text=pairs.image),
    "wrong pairs": lambda pairs: pairs._replace(text=pairs.image.roll(4, 0)),
    "opposite pairs": lambda pairs: pairs._replace(text=-pairs.image),
    "equal embeddings": all_alike,
    "one embedding": lambda pairs: all_alike(pairs, text=pairs.image[:1]),
}


@pytest.mark.parametrize("change", EXTREMES.values(), ids=EXTREMES)
def test_extreme_batches_have_finite_terms_and_gradients(overlay: str, change: Callable[[Pairs], Pairs]) -> None:
    """With the method's own probabilities, and where it takes every pair for wrong, or for right."""
    for training in trainings(overlay):
        pairs = change(training.pairs(BATCH))
        pairs = pairs._replace(image=pairs.image.detach().requires_grad_(), text=pairs.text.detach().requires_grad_())
        for believed in (None, 0.0, 1.0) if training.method.clean_probability is not None else (None,):
            method = deepcopy(training.method)
            if believed is not None and method.clean_probability is not None:
                method.clean_probability.fill_(believed)
            terms = method(pairs)
            found = f"{terms} where all pairs have the probability {believed}"
            assert all(bool(value.isfinite()) for value in terms.values()), found
            of = [pairs.image, pairs.text, *method.parameters()]
            gradients = torch.autograd.grad(method.total(terms), of, materialize_grads=True)
            assert all(bool(gradient.isfinite().all()) for gradient in gradients), found
            method.after_step()
            assert_valid_state(method)


# --- State


def test_state_is_valid_in_every_phase(overlay: str) -> None:
    for training in trainings(overlay):
        assert_valid_state(training.method)


@pytest.mark.parametrize("value", [Tensor.min, Tensor.max, None], ids=["lowest", "greatest", "of equal embeddings"])
def test_equal_measurements_of_all_pairs_leave_a_valid_state(
    overlay: str, value: Callable[[Tensor], Tensor] | None
) -> None:
    """As of a student whose embeddings have collapsed: a mixture has nothing to tell apart."""
    for epoch, training in zip(phases(overlay), trainings(overlay), strict=True):
        one = training.pairs(BATCH[:1])

        def measure(per_pair: Any, training: Training = training, one: Pairs = one) -> Tensor:
            if value is None:
                return training.measure(lambda pairs: per_pair(all_alike(pairs, one.image, one.text)))
            found = training.measure(per_pair)
            return value(found).expand_as(found)

        training.method.begin_epoch(epoch, measure)
        assert_valid_state(training.method)
        assert all(bool(term.isfinite()) for term in training.step(BATCH).values())
        assert_valid_state(training.method)


def test_training_continues_with_the_same_numbers_from_every_phase(overlay: str) -> None:
    """From the middle of an epoch, and over the start of the next."""
    for epoch, training in zip(phases(overlay), trainings(overlay), strict=True):
        file = io.BytesIO()
        torch.save(training.module.state_dict(), file)
        file.seek(0)
        torch.manual_seed(1)
        continued = Training(overlay)
        continued.module.load_state_dict(torch.load(file, weights_only=True))
        for following in range(epoch, epoch + 2):
            if following > epoch:
                continued.begin_epoch(following)
                training.begin_epoch(following)
            torch.testing.assert_close(continued.step(REST), training.step(REST), **EXACT)
            torch.testing.assert_close(continued.method.scalars(), training.method.scalars(), **EXACT)
            assert_same_state(continued.module, training.module)


def test_the_state_and_the_order_of_an_epoch_are_the_same_in_all_processes(overlay: str) -> None:
    """Although their random generators differ."""
    order = torch.randperm(TRAINING.num_pairs, generator=torch.Generator().manual_seed(0))
    for epoch, training in zip(phases(overlay), trainings(overlay), strict=True):
        methods, orders = [], []
        for process in range(2):
            one = deepcopy(training)
            torch.manual_seed(process)
            one.begin_epoch(epoch + 1)
            methods.append(one.method)
            orders.append(one.method.epoch_order(epoch + 1, order, len(BATCH)))
        assert_same_state(*methods)
        assert torch.equal(*orders)
        assert orders[0].dtype == torch.int64
        assert len(orders[0]) >= TRAINING.num_pairs // len(BATCH) * len(BATCH)
        assert 0 <= orders[0].min() <= orders[0].max() < TRAINING.num_pairs


# --- What is logged


def test_scalars_are_the_same_finite_detached_values_in_every_phase(overlay: str) -> None:
    names = {tuple(training.method.scalars()) for training in trainings(overlay)}
    assert len(names) == 1
    for training in trainings(overlay):
        values = training.method.scalars().values()
        assert all(value.ndim == 0 and bool(value.isfinite()) and not value.requires_grad for value in values)
        tau = training.method.hard_negative_temperature()
        assert float(tau) > 0
        assert not (isinstance(tau, Tensor) and tau.requires_grad)


def test_methods_log_what_they_believe() -> None:
    """A scalar tells whether a method takes all pairs for wrong or for right, if training decides what it believes."""
    silent = []
    for overlay in OVERLAYS:
        beliefs = [training.method.clean_probability for training in phases(overlay).values()]
        if beliefs[0] is None or all(torch.equal(each, beliefs[0]) for each in beliefs if each is not None):
            continue
        method, logged = deepcopy(next(iter(phases(overlay).values())).method), []
        for believed in (0, 1):
            for state in method.buffers():
                if state.ndim and state.shape[-1] == TRAINING.num_pairs:  # also of each of two networks
                    state.fill_(believed)
            logged.append({name: value.item() for name, value in method.scalars().items()})
        silent += [overlay] if logged[0] == logged[1] else []
    assert silent == []


def test_every_schedule_goes_beyond_its_first_epoch() -> None:
    """Otherwise the tests of this file see a warm-up alone: raise EPOCHS."""
    scheduled = [name for name in OVERLAYS if type(student(name).method).begin_epoch is not Method.begin_epoch]
    assert [name for name in scheduled if len(phases(name)) == 1] == []
