"""NCR with two networks: independent references, and which network teaches which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdr_lightning.configure import build
from sdr_lightning.encoders import TwinEncoder
from sdr_lightning.methods import NCR, BiCro, CoTeachingNCR, Method
from sdr_lightning.methods.co_teaching import CoTeaching, networks_of
from sdr_lightning.types import Pairs
from tests.methods import test_methods as contract
from tests.methods.twin import SIZE, separable_pairs, twin_pairs

FIRST, SECOND = [1.0, 0.9, 0.2, 0.7, 0.1], [0.8, 0.3, 0.6, 1.0, 0.4]
SHARED = torch.tensor([0, 1, 0, 2, 3])


def ready(kind: type[CoTeaching], warming_up: bool = False, noisy: bool = True, **options: float) -> CoTeaching:
    """A method that was set up, with the probabilities FIRST and SECOND by its networks."""
    method = kind(**options).double()
    method.setup(contract.training_pairs(SIZE))
    method.warming_up.fill_(warming_up)
    method.with_noisy.fill_(noisy)
    method.network_probability.copy_(torch.tensor([FIRST, SECOND]))
    return method


METHODS: dict[str, Callable[[], CoTeaching]] = {
    "CoTeachingNCR, warm-up": lambda: ready(CoTeachingNCR, warming_up=True),
    "CoTeachingNCR": lambda: ready(CoTeachingNCR),
    "BiCro, warm-up": lambda: ready(BiCro, warming_up=True),
    "BiCro": lambda: ready(BiCro, least_label=0.3),
}


@pytest.mark.parametrize("name", METHODS)
def test_state_is_restored_from_a_state_dict(name: str) -> None:
    method, other = METHODS[name](), ready(type(METHODS[name]()), **({"least_label": 0.3} if name == "BiCro" else {}))
    other.network_probability.fill_(1)
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other(twin_pairs()), method(twin_pairs()), rtol=0, atol=0)
    torch.testing.assert_close(other.scalars(), method.scalars(), rtol=0, atol=0)


# --- CoTeachingNCR


def test_costs_and_labels_equal_the_public_code() -> None:
    """XLearning-SCU/2021-NeurIPS-NCR at 60256ba1: ContrastiveLoss in modes warmup (over 5) and predict, means of two networks."""
    method, pairs = ready(CoTeachingNCR, warming_up=True), twin_pairs()
    assert method(pairs)["triplet"].item() == pytest.approx(0.27454801083103264)
    labels = method.labels(networks_of(pairs), torch.zeros(2, SIZE).double())
    expected = [0.13503056617078832, 0.6073955207942384, 0.7313066263678315, 0.5, 0.6193052161678274]
    assert labels.tolist() == [pytest.approx(expected)] * 2


def test_equal_labels_give_the_loss_of_the_public_code() -> None:
    """The same commit, mode train, label 0.6 for every pair, over 5."""
    method = ready(CoTeachingNCR)
    method.labels = lambda *_: torch.full((2, SIZE), 0.6).double()  # type: ignore[method-assign]
    assert method(twin_pairs())["triplet"].item() == pytest.approx(0.5591175739240308)


def slow_network(scores: list[list[float]], ids: list[int], margin: float = 0.2) -> tuple[list[float], list[float]]:
    """Cost and prediction of each pair, step 3 of the docstring."""
    everyone, costs = range(len(ids)), []
    for i in everyone:
        others = [j for j in everyone if ids[j] != ids[i]]
        hinges = [max(0.0, margin + scores[i][j] - scores[i][i]) for j in others]
        hinges += [max(0.0, margin + scores[j][i] - scores[i][i]) for j in others]
        costs.append(sum(hinges) / len(ids))
    predicted = [min(margin, max(0.0, margin - cost / 2)) for cost in costs]
    greatest = sorted(predicted)[-(len(ids) // 10 + 1) :]
    return costs, [min(1.0, value / (sum(greatest) / len(greatest))) for value in predicted]


def slow_loss(scores: list[list[float]], ids: list[int], labels: list[float | None], margin: float = 0.2) -> float:
    """Step 4: the mean over all pairs; a label of None does not contribute."""
    total = 0.0
    for i, label in enumerate(labels):
        if label is not None:
            own, others = margin * (10**label - 1) / 9 - scores[i][i], [j for j in range(len(ids)) if ids[j] != ids[i]]
            total += max(0.0, *(own + scores[i][j] for j in others)) + max(0.0, *(own + scores[j][i] for j in others))
    return total / len(ids)


@pytest.mark.parametrize("with_noisy", [False, True])
def test_ncr_equals_a_pair_by_pair_reference(with_noisy: bool) -> None:
    pairs, ids = twin_pairs(SHARED), SHARED.tolist()
    scores = [(network.image @ network.text.T).tolist() for network in networks_of(pairs)]
    predicted = [slow_network(each, ids)[1] for each in scores]
    expected = 0.0
    for own, probability in ((0, SECOND), (1, FIRST)):  # each by the other
        labels: list[float | None] = []
        for i, p in enumerate(probability):
            if p > 0.5:
                labels.append(p + (1 - p) * predicted[own][i])
            else:
                labels.append((predicted[0][i] + predicted[1][i]) / 2 if with_noisy else None)
        expected += slow_loss(scores[own], ids, labels) / 2
    method = ready(CoTeachingNCR, noisy=with_noisy)
    assert method(pairs)["triplet"].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", [CoTeachingNCR, BiCro])
def test_each_network_learns_from_the_probabilities_of_the_other(kind: type[CoTeaching]) -> None:
    def gradients(probability: list[list[float]]) -> tuple[Tensor, Tensor]:
        method, pairs = ready(kind, noisy=False), twin_pairs()
        method.network_probability.copy_(torch.tensor(probability))
        method(pairs)["triplet"].backward()
        assert pairs.image.grad is not None
        first, second = pairs.image.grad.chunk(2, dim=1)
        return first, second

    before, after = gradients([FIRST, SECOND]), gradients([SECOND, SECOND])
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert not torch.allclose(after[1], before[1])


def test_two_equal_networks_are_ncr() -> None:
    single = contract.ncr(False).double()
    one = contract.some_pairs(SHARED)
    both = [torch.cat([half, half], dim=1) / 2**0.5 for half in (one.image, one.text)]
    method = ready(CoTeachingNCR)
    method.network_probability.copy_(single.clean_probability.expand(2, -1))
    found = method(one._replace(image=both[0], text=both[1]))
    torch.testing.assert_close(found["triplet"], single(one)["triplet"])


@pytest.mark.parametrize("kind", [CoTeachingNCR, BiCro])
def test_each_network_estimates_which_pairs_it_finds_mismatched(kind: type[CoTeaching]) -> None:
    method, pairs = kind(warmup_epochs=1, noisy_from=2), separable_pairs()
    method.setup(contract.training_pairs(40))
    for epoch, (warming_up, noisy) in enumerate([(True, False), (False, False), (False, True)]):
        method.begin_epoch(epoch, lambda per_pair: per_pair(pairs).float())
        assert (bool(method.warming_up), bool(method.with_noisy)) == (warming_up, noisy)
        assert bool((method.network_probability == 1).all()) == warming_up
    wrong = torch.zeros(2, 40, dtype=torch.bool)
    wrong[0, :8], wrong[1, 4:12] = True, True
    assert ((method.network_probability < 0.5) == wrong).all()
    assert method.clean_probability is not None
    torch.testing.assert_close(method.clean_probability, method.network_probability.mean(dim=0))
    expected = {"clean_share": torch.tensor(0.8), "agreement": torch.tensor(0.8)}
    torch.testing.assert_close(method.scalars(), expected)


# --- Configuration and errors


@pytest.mark.parametrize(("overlay", "kind"), [("ncr_co_teaching", CoTeachingNCR), ("bicro", BiCro)])
@pytest.mark.parametrize("model", ["tiny", "tiny_fusion"])
def test_the_overlay_keeps_the_encoders_other_options(
    model: str, overlay: str, kind: type[CoTeaching], experiments: Path, tmp_path: Path
) -> None:
    configs = "scenes/sdr.yaml", f"methods/{overlay}.yaml"
    options = [word for config in configs for word in ("--config", str(experiments / config))]
    options[2:2] = ["--model", str(experiments / f"models/{model}.yaml")]
    encoder = build([*options, "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]).model.encoder
    assert type(encoder) is TwinEncoder
    assert encoder.fusion is None
    assert encoder.text_tower.vocabulary_size == 80
    assert encoder.second_image_projection[-1].out_features == 64


def test_the_embeddings_of_one_network_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"set model.init_args.encoder.class_path to sdr_lightning.encoders.TwinEncoder"
    ):
        ready(CoTeachingNCR)(contract.some_pairs())
    assert isinstance(contract.ncr(False), NCR)


@pytest.mark.parametrize("kind", [CoTeachingNCR, BiCro])
def test_pairs_without_index_and_methods_without_setup_are_refused(kind: type[CoTeaching]) -> None:
    with pytest.raises(ValueError, match="the batch must hold pair_index"):
        ready(kind)(twin_pairs()._replace(pair_index=None))
    fresh = kind()
    assert fresh.scalars() == {}
    fresh.warming_up.fill_(False)
    with pytest.raises(ValueError, match="call setup with the training pairs first"):
        fresh(twin_pairs())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoTeachingNCR(margin=0), "CoTeachingNCR's margin must be positive, got 0"),
        (lambda: BiCro(warmup_epochs=0), "BiCro needs at least 1 warm-up epoch"),
        (lambda: BiCro(threshold=1), r"BiCro's threshold must be in \[0, 1\), got 1"),
        (lambda: BiCro(warmup_share=0), r"warmup_share must be in \(0, 1\], got 0"),
        (lambda: BiCro(least_label=1), r"least_label must be in \[0, 1\), got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(make: Callable[[], Method], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_networks_of_pairs_are_normalised() -> None:
    pairs: Pairs = twin_pairs()
    first, second = networks_of(pairs)
    torch.testing.assert_close(first.image, contract.some_pairs().image)
    torch.testing.assert_close(second.text.norm(dim=1), torch.ones(SIZE).double())
