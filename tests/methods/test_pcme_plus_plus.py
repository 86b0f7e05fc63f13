"""PCME++: numbers of the author's code, a pair-by-pair reference, and what its encoder does to cosines."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdr_lightning.encoders import DualEncoder, ProbabilisticEncoder
from sdr_lightning.encoders.probabilistic import Gaussians, join_gaussians, split_gaussians
from sdr_lightning.methods import InfoNCE, PCMEPlusPlus
from sdr_lightning.metrics.structure import preserved
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Pairs, Tokens
from tests.training.student import LIGHTNINGS_OWN_WARNINGS, ImageTower, TextTower, scenes, trainer

SIZE = 5


def some_pairs(ids: tuple[int, ...] = (0, 1, 2, 3, 4), log_variance: float = 0) -> Pairs:
    def rows(step: float) -> Tensor:
        return torch.arange(20, dtype=torch.float64).mul(step).reshape(SIZE, 4)

    image = F.normalize(rows(1.7).sin(), dim=1)
    text = F.normalize(image + F.normalize(rows(2.3).cos(), dim=1), dim=1)
    image = join_gaussians(Gaussians(image, rows(0.9).cos() - 2 + log_variance))
    text = join_gaussians(Gaussians(text, rows(1.3).sin() - 3 + log_variance))
    return Pairs(image.requires_grad_(), text.requires_grad_(), torch.tensor(ids))


# --- Numbers of naver-ai/pcmepp at 8829c0d7 on some_pairs()


@pytest.mark.parametrize(
    ("scale", "shift", "pseudo", "vib", "expected"),
    [
        (5, 5, 0, 0, 1.7270904052995173),
        (5, 5, 0.1, 1e-4, 2.066181590403729),
        (2, 3, 0, 0.5, 2.225247371008154),
        (2, 3, 0.7, 0, 2.171137792374216),
    ],
)
def test_the_loss_is_that_of_the_public_code(
    scale: float, shift: float, pseudo: float, vib: float, expected: float
) -> None:
    """ClosedFormSampledDistanceLoss in float64, one caption per image."""
    method = PCMEPlusPlus(scale, shift, pseudo, vib).double()
    terms = method(some_pairs())
    assert terms.keys() == method.weights.keys()
    assert method.total(terms).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("vib", "scale", "shift", "expected"), [(0, 5, 5, 2.571589976220727), (0.5, 2, 3, 2.403047199376638)]
)
def test_captions_of_the_same_image_match_as_in_the_public_code(
    vib: float, scale: float, shift: float, expected: float
) -> None:
    """The same class, where matched holds a second caption of an image."""
    method = PCMEPlusPlus(scale, shift, 0, vib).double()
    assert method.total(method(some_pairs((0, 1, 0, 2, 3)))).item() == pytest.approx(expected, rel=1e-12)


def test_evaluation_scores_are_those_of_the_public_code() -> None:
    """compute_csd_sims, the first image."""
    pairs = some_pairs()
    expected = [-2.2835788223395985, -1.1196643594505715, -3.15734007343088, -1.775195679934484, -3.82980521091903]
    assert PCMEPlusPlus().similarity(pairs.image, pairs.text)[0].tolist() == pytest.approx(expected, rel=1e-12)


# --- The equations


def slow_terms(pairs: Pairs, a: float, b: float) -> dict[str, float]:
    """The equations of the docstring, pair by pair."""
    (mu, log_s), (nu, log_t) = (
        tuple(part.tolist() for part in split_gaussians(side.detach())) for side in (pairs.image, pairs.text)
    )
    ids, n, d = pairs.image_index.tolist(), len(mu), len(mu[0])
    z = [
        [
            b - a * sum((mu[i][k] - nu[j][k]) ** 2 + math.exp(log_s[i][k]) + math.exp(log_t[j][k]) for k in range(d))
            for j in range(n)
        ]
        for i in range(n)
    ]
    match = pseudo = 0.0
    for i in range(n):
        for j in range(n):
            for score, own in ((z[i][j], z[i][i]), (z[j][i], z[i][i])):
                for_match, for_miss = math.log1p(math.exp(-score)), math.log1p(math.exp(score))
                match += (for_match if ids[i] == ids[j] else for_miss) / n**2
                pseudo += (for_match if ids[i] == ids[j] or score >= own else for_miss) / n**2
    divergence = [
        (m**2 + math.exp(s) - 1 - s) / 2
        for means, logs in ((mu, log_s), (nu, log_t))
        for row, log_row in zip(means, logs, strict=True)
        for m, s in zip(row, log_row, strict=True)
    ]
    return {"match": match, "pseudo_match": pseudo, "vib": sum(divergence) / n / d}


@pytest.mark.parametrize("ids", [(0, 1, 2, 3, 4), (0, 1, 0, 2, 3), (0, 0, 0, 1, 1)])
def test_terms_equal_a_pair_by_pair_reference(ids: tuple[int, ...]) -> None:
    pairs, method = some_pairs(ids), PCMEPlusPlus(2.5, 1.5).double()
    found = {name: value.item() for name, value in method(pairs).items()}
    assert found == pytest.approx(slow_terms(pairs, 2.5, 1.5), rel=1e-9)


def test_small_variances_leave_a_sigmoid_loss_on_squared_distances() -> None:
    pairs, method = some_pairs(log_variance=-60), PCMEPlusPlus(3, 2, 0, 0).double()
    image, text = (split_gaussians(side).mean for side in (pairs.image, pairs.text))
    logits = 2 - 3 * torch.cdist(image, text).square()
    expected = 2 * F.binary_cross_entropy_with_logits(logits, torch.eye(SIZE, dtype=torch.float64))
    torch.testing.assert_close(method(pairs)["match"], expected)


def test_every_part_learns_and_a_matched_pair_becomes_closer_and_more_certain() -> None:
    pairs, method = some_pairs(), PCMEPlusPlus(pseudo_weight=0, vib_weight=0).double()
    method.total(method(pairs)).backward()
    assert pairs.image.grad is not None
    assert all(parameter.grad is not None and parameter.grad != 0 for parameter in method.parameters())
    assert bool((pairs.image.grad.abs() > 0).all())
    pair = Pairs(*(side[:1].detach().requires_grad_() for side in (pairs.image, pairs.text)), torch.tensor([0]))
    method(pair)["match"].backward()
    assert pair.image.grad is not None
    _, toward_certainty = pair.image.grad.tensor_split(2, dim=1)
    assert bool((toward_certainty > 0).all())  # descent lowers the variance
    assert (pair.image.grad[:, :4] * (pair.image - pair.text)[:, :4]).sum() > 0  # and the distance


def test_vib_pulls_variances_to_one() -> None:
    pairs, method = some_pairs(), PCMEPlusPlus(vib_weight=1).double()
    (gradient,) = torch.autograd.grad(method(pairs)["vib"], pairs.image)
    assert bool((gradient[:, 4:] < 0).all())  # variances are below 1: descent raises them
    assert method(some_pairs(log_variance=2))["vib"] < method(pairs)["vib"]


# --- The contract of methods


def test_order_local_rows_half_precision_and_state() -> None:
    method, pairs, order = PCMEPlusPlus().double(), some_pairs((0, 1, 0, 2, 3)), torch.tensor([3, 0, 4, 1, 2])
    whole = method(pairs)
    moved = Pairs(pairs.image[order], pairs.text[order], pairs.image_index[order])
    torch.testing.assert_close(method(moved), whole)
    assert method.supports_local_loss
    parts = [method(pairs, slice(row, row + 1)) for row in range(SIZE)]
    for name, value in whole.items():
        torch.testing.assert_close(torch.stack([part[name] for part in parts]).mean(), value)
    method(pairs)
    other = PCMEPlusPlus().double()
    other.load_state_dict(method.state_dict())
    torch.testing.assert_close(other.scalars(), method.scalars(), rtol=0, atol=0)
    assert not any(value.requires_grad for value in method.scalars().values())
    half = pairs._replace(image=pairs.image.detach().bfloat16(), text=pairs.text.detach().bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = PCMEPlusPlus()(half)
    assert {value.dtype for value in found.values()} == {torch.float32}
    exact = PCMEPlusPlus()(half._replace(image=half.image.float(), text=half.text.float()))
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 0}, "scale must be positive, got 0"),
        ({"pseudo_weight": -1}, "at least 0, got -1 and 0.0001"),
        ({"vib_weight": -1}, "at least 0, got 0.1 and -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PCMEPlusPlus(**options)


@pytest.mark.parametrize("width", [4, 5])
def test_embeddings_of_another_encoder_are_refused(width: int) -> None:
    embeddings = F.normalize(torch.ones(3, width), dim=1)
    with pytest.raises(ValueError, match=rf"width {width} hold no Gaussians .*: set the encoder's class_path to"):
        PCMEPlusPlus()(Pairs(embeddings, embeddings, torch.arange(3)))


# --- The encoder


def encoder(kind: type[DualEncoder] = ProbabilisticEncoder, **options: object) -> DualEncoder:
    torch.manual_seed(0)
    return kind(ImageTower(), TextTower(), **({"embedding_width": 6} | options)).eval()


def inputs() -> tuple[Tensor, Tokens]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=generator)
    words = torch.randint(0, 80, (12, 5), generator=generator)
    return pixels, Tokens(words, torch.ones_like(words))


@pytest.mark.parametrize("options", [{}, {"hidden_width": 7, "normalise_features": True}, {"embedding_width": None}])
def test_means_are_the_embeddings_of_the_same_dual_encoder(options: dict[str, object]) -> None:
    plain, probabilistic = encoder(DualEncoder, **options), encoder(**options)
    for found, expected in zip(
        (probabilistic.encode_image(inputs()[0]), probabilistic.encode_text(inputs()[1])),
        (plain.encode_image(inputs()[0]), plain.encode_text(inputs()[1])),
        strict=True,
    ):
        mean, log_variance = split_gaussians(found)
        assert torch.equal(mean, expected)
        assert mean.shape == log_variance.shape
        assert log_variance.std() > 0
        assert 0.03 < log_variance.exp().sum(dim=1).mean() < 0.3
        torch.testing.assert_close(found.norm(dim=1), torch.ones(12), rtol=0, atol=1e-6)


def test_both_heads_are_newly_initialized_and_differ() -> None:
    names = {name.split(".")[0] for name in encoder().newly_initialized_parameters()}
    assert {"image_log_variance", "text_log_variance", "image_projection", "text_projection"} <= names
    found = encoder()
    assert not torch.equal(
        found.get_parameter("image_log_variance.1.weight"), found.get_parameter("image_projection.1.weight")
    )


def test_joining_loses_nothing_and_cosines_are_those_of_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = F.normalize(torch.randn(60, 512, generator=generator), dim=1)
    gaussians = Gaussians(mean, torch.randn(60, 512, generator=generator).mul(4).sub(9))
    joined = join_gaussians(gaussians)
    assert all(torch.equal(*both) for both in zip(split_gaussians(joined), gaussians, strict=True))
    torch.testing.assert_close(joined @ joined.T, mean @ mean.T, rtol=0, atol=1e-6)
    teacher = torch.randn(60, 16, generator=generator)
    assert preserved(joined, teacher) == pytest.approx(preserved(mean, teacher), abs=1e-4)
    half = join_gaussians(Gaussians(*(part.bfloat16() for part in gaussians)))
    assert half.dtype == torch.float32
    assert torch.equal(split_gaussians(half).log_variance, gaussians.log_variance.bfloat16().float())


@pytest.mark.filterwarnings(*(mark.args[0] for mark in LIGHTNINGS_OWN_WARNINGS))
def test_training_ranks_by_distance_and_by_the_means_under_another_method() -> None:
    torch.manual_seed(0)
    module = RetrievalModule(ProbabilisticEncoder(ImageTower(), TextTower(), 6), PCMEPlusPlus())
    run = trainer(max_epochs=1)
    run.fit(module, datamodule=scenes())
    run.test(module, datamodule=scenes(), verbose=False)
    assert module.test_metrics["t2i_MnR"] >= 1
    assert "i2i_NDCG@10" not in module.test_metrics
    by_means = RetrievalModule(module.encoder, InfoNCE())
    trainer().test(by_means, datamodule=scenes(), verbose=False)
    assert "i2i_NDCG@10" in by_means.test_metrics
