"""Generalised pooling: numbers of the author's code, a scalar reference, masks, and the tower around it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sdr_lightning.encoders import DualEncoder, GPOTower, HeadTower, PrecomputedImageTower
from sdr_lightning.encoders.gpo import GeneralisedPooling, position_code
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.types import CachedFeatures, Tokens
from tests.encoders.tiny import image_tower, images, text_tower, tokens

# woodfrog/vse_infty at 29df9d65: GPO(32, 32) in float64, parameters as in filled(), position code in float64
WHOLE = [
    [-0.4138551885496409, -0.4383562791819801, -0.20020004061700913, -0.18981858236407087],
    [-0.42762906385362337, -0.19595474920744804, -0.17717993186037842, -0.38850546480020043],
    [-0.18759067135561497, -0.18519060077850252, -0.4128384838688195, -0.4402801608449183],
]
PADDED = [
    WHOLE[0],
    [0.5891292724876271, 0.5016260604813274, 0.6906462766007354, 0.512221936328037],
    [0.5704676336373723, -0.4732045970455711, -0.9997551733586196, -0.43376554097568404],
]
SIX = [0.0690866958516, 0.02267606878386, 0.0604184382311, 0.3580308158231, 0.4457126110721, 0.04407537023821]
THREE = [0.7630212407984, 0.1389589014029, 0.0980198578087]


def filled(pooling: GeneralisedPooling) -> GeneralisedPooling:
    """Set parameters to sines, in the order of their names."""
    with torch.no_grad():
        for number, (_, each) in enumerate(sorted(pooling.named_parameters())):
            places = torch.arange(each.numel(), dtype=torch.float64)
            each.copy_((places * (0.37 + 0.11 * number) + number).sin().mul(0.3).reshape(each.shape))
    return pooling


def some_tokens() -> Tensor:
    return torch.arange(72, dtype=torch.float64).mul(1.1).sin().reshape(3, 6, 4)


def masks(*lengths: int, total: int = 6) -> Tensor:
    return (torch.arange(total) < torch.tensor(lengths)[:, None]).long()


# --- The operator


@pytest.mark.parametrize(("mask", "expected"), [(None, WHOLE), (masks(6, 6, 6), WHOLE), (masks(6, 3, 1), PADDED)])
def test_pooled_values_are_those_of_the_public_code(mask: Tensor | None, expected: list[list[float]]) -> None:
    pooling = filled(GeneralisedPooling().double())
    torch.testing.assert_close(
        pooling(some_tokens(), mask), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7
    )


def test_weights_are_those_of_the_public_code() -> None:
    found = filled(GeneralisedPooling().double()).weights(torch.tensor([1, 3, 6]), 6)
    assert found[2].tolist() == pytest.approx(SIX, rel=1e-5)
    assert found[1].tolist() == pytest.approx([*THREE, 0, 0, 0], rel=1e-5)
    assert found[0].tolist() == [1, 0, 0, 0, 0, 0]


def slow_weights(pooling: GeneralisedPooling, length: int) -> list[float]:
    """Number by number: position code, GRU in both directions, linear map, softmax."""
    weights = {name: each.tolist() for name, each in pooling.named_parameters()}
    width, hidden = pooling.position_width, pooling.gru.hidden_size
    codes = [
        [
            (math.cos if column % 2 else math.sin)(place / 10_000 ** ((column - column % 2) / width))
            for column in range(width)
        ]
        for place in range(length)
    ]

    def sigmoid(value: float) -> float:
        return 1 / (1 + math.exp(-value))

    def states(inputs: list[list[float]], suffix: str) -> list[list[float]]:
        state, found = [0.0] * hidden, []
        for values in inputs:
            own, recurrent = (
                [
                    sum(a * b for a, b in zip(row, vector, strict=True)) + bias
                    for row, bias in zip(
                        weights[f"gru.weight_{kind}_l0{suffix}"], weights[f"gru.bias_{kind}_l0{suffix}"], strict=True
                    )
                ]
                for kind, vector in (("ih", values), ("hh", state))
            )
            reset, update = (
                [sigmoid(own[gate * hidden + k] + recurrent[gate * hidden + k]) for k in range(hidden)]
                for gate in (0, 1)
            )
            new = [math.tanh(own[2 * hidden + k] + reset[k] * recurrent[2 * hidden + k]) for k in range(hidden)]
            state = [(1 - update[k]) * new[k] + update[k] * state[k] for k in range(hidden)]
            found.append(state)
        return found

    forwards, backwards = states(codes, ""), states(codes[::-1], "_reverse")[::-1]
    scores = [
        sum(w * (a + b) / 2 for w, a, b in zip(weights["score.weight"][0], *both, strict=True)) / pooling.temperature
        for both in zip(forwards, backwards, strict=True)
    ]
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


def test_pooling_equals_a_number_by_number_reference() -> None:
    torch.manual_seed(0)
    pooling = GeneralisedPooling(position_width=4, hidden_width=3, temperature=0.2).double()
    values, mask = some_tokens(), torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 1, 0]])
    for item, (rows, kept) in enumerate(zip(values.tolist(), mask.tolist(), strict=True)):
        own = [row for row, is_token in zip(rows, kept, strict=True) if is_token]
        weights = slow_weights(pooling, len(own))
        expected = [
            sum(w * x for w, x in zip(weights, sorted((row[d] for row in own), reverse=True), strict=True))
            for d in range(4)
        ]
        assert pooling(values, mask)[item].tolist() == pytest.approx(expected, rel=1e-6)


def test_padding_and_order_of_tokens_change_nothing() -> None:
    torch.manual_seed(0)
    pooling, values = GeneralisedPooling(), some_tokens().float()
    mask = masks(6, 4, 2)
    filler = torch.where(mask[:, :, None] == 1, values, torch.full_like(values, 1e9))
    found = pooling(filler, mask)
    for item, length in enumerate((6, 4, 2)):
        torch.testing.assert_close(found[item], pooling(values[item : item + 1, :length])[0])
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    torch.testing.assert_close(pooling(values[:, order], mask[:, order]), pooling(values, mask))


@pytest.mark.parametrize(("temperature", "pooled"), [(1e9, "mean"), (1e-4, "one of the order statistics")])
def test_limits_of_the_temperature(temperature: float, pooled: str) -> None:
    torch.manual_seed(0)
    pooling, values = GeneralisedPooling(temperature=temperature).double(), some_tokens()
    found = pooling(values)
    if pooled == "mean":
        torch.testing.assert_close(found, values.mean(dim=1))
    else:
        place = int(pooling.weights(torch.tensor([6]), 6)[0].argmax())
        torch.testing.assert_close(found, values.sort(dim=1, descending=True).values[:, place])


def test_gradient_reaches_tokens_and_weights_and_not_padding() -> None:
    torch.manual_seed(0)
    pooling, values = GeneralisedPooling(), some_tokens().float().requires_grad_()
    pooling(values, masks(6, 3, 1)).square().sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad.abs().sum(dim=2) > 0, masks(6, 3, 1) == 1)
    assert all(each.grad is not None and bool(each.grad.abs().sum() > 0) for each in pooling.parameters())


def test_an_item_without_tokens_is_pooled_to_zero_and_half_precision_keeps_its_type() -> None:
    pooling = GeneralisedPooling()
    assert pooling(torch.ones(2, 3, 4), masks(0, 2, total=3))[0].tolist() == [0] * 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = pooling(some_tokens().bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), pooling(some_tokens().float()), rtol=0, atol=0.02)


def test_position_codes_are_sines_and_cosines() -> None:
    codes = position_code(5, 6)
    assert codes[0].tolist() == [0, 1] * 3
    assert codes[3, 4].item() == pytest.approx(math.sin(3 / 10_000 ** (4 / 6)))
    assert codes[3, 5].item() == pytest.approx(math.cos(3 / 10_000 ** (4 / 6)))


@pytest.mark.parametrize("options", [{"position_width": 3}, {"hidden_width": 0}, {"temperature": 0}])
def test_settings_of_the_pooling_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="an even position_width, a hidden_width of at least 1 and a positive temperature"
    ):
        GeneralisedPooling(**options)


# --- The tower


def regions(number: int = 5) -> Tensor:
    return torch.randn(3, number, 6, generator=torch.Generator().manual_seed(1))


def region_tower(**options: object) -> PrecomputedImageTower:
    torch.manual_seed(0)
    return PrecomputedImageTower(**{"features_width": 6, "width": 8} | options)  # type: ignore[arg-type]


INPUTS = {"regions": (region_tower, regions()), "patches": (image_tower, images()), "words": (text_tower, tokens())}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("width", [None, 7])
def test_a_tower_pools_its_own_tokens(kind: str, width: int | None) -> None:
    build, inputs = INPUTS[kind]
    inner = build().eval()
    tower = GPOTower(inner, width).eval()
    assert (tower.modality, tower.tokens_width, tower.pretrained) == (inner.modality, inner.tokens_width, False)
    own, found = inner.encode(inputs), tower.encode(inputs)
    assert torch.equal(found.tokens, own.tokens)
    assert (found.mask is None) == (own.mask is None)
    torch.testing.assert_close(found.embedding, tower.pooling(tower.layer(own.tokens), own.mask))
    assert found.embedding.shape == (3, tower.width) == (3, inner.tokens_width if width is None else 7)
    if isinstance(inputs, Tokens):
        assert own.mask is not None
        assert int(own.mask.sum()) < own.mask.numel()
        assert (tower.vocabulary_size, tower.max_positions) == (inner.vocabulary_size, inner.max_positions)


def test_freezing() -> None:
    tower = GPOTower(region_tower(frozen=True)).train()
    trained = {name.split(".")[0] for name, each in tower.named_parameters() if each.requires_grad}
    assert trained == {"pooling"}
    assert not tower.tower.training
    assert tower.pooling.training
    tower.encode(regions()).embedding.sum().backward()
    tower.freeze()
    assert not any(each.requires_grad for each in tower.parameters())
    assert not any(module.training for module in tower.train().modules())
    assert torch.equal(tower(CachedFeatures(torch.ones(2, 8))), torch.ones(2, 8))
    assert all(each.requires_grad for each in GPOTower(region_tower()).parameters())
    assert GPOTower(region_tower(), frozen=True).tower.frozen


def test_tokens_are_dropped_in_training_only() -> None:
    torch.manual_seed(0)
    tower = GPOTower(region_tower(), token_dropout=0.2)
    kept = torch.cat([tower._kept(torch.ones(64, 5, 8), None).double() for _ in range(20)])  # type: ignore[union-attr]
    assert kept.mean().item() == pytest.approx(0.8, abs=0.02)
    nearly_all = GPOTower(region_tower(), token_dropout=0.99)
    found = nearly_all._kept(torch.ones(64, 5, 8), masks(*[3] * 64, total=5))
    assert found is not None
    assert set(found.sum(dim=1).tolist()) <= {1, 2, 3}
    assert not bool(found[:, 3:].any())
    assert not torch.equal(tower(regions()), tower(regions()))
    tower.eval()
    assert torch.equal(tower(regions()), tower(regions()))


def test_fingerprint_covers_tower_width_and_pooling() -> None:
    def build(inner: Tower, width: int | None = None) -> GPOTower:
        torch.manual_seed(1)
        return GPOTower(inner, width)

    other = build(region_tower())
    nn.init.ones_(other.pooling.score.weight)
    towers = [build(region_tower()), build(region_tower(pooling="max")), build(region_tower(), 8), other]
    assert len({each.fingerprint() for each in towers}) == len(towers)
    assert build(region_tower()).fingerprint() == build(region_tower()).fingerprint()


def test_two_towers_share_a_space_without_projections() -> None:
    encoder = DualEncoder(GPOTower(region_tower(), 9, 0.2), GPOTower(text_tower(), 9), embedding_width=None)
    (encoder.encode_image(regions()) * encoder.encode_text(tokens())).sum().backward()
    assert all(each.grad is not None for each in encoder.parameters())


@pytest.mark.parametrize(("options", "found"), [({"width": 0}, "0 and 0.0"), ({"token_dropout": 1}, "None and 1")])
def test_options_out_of_range_are_refused(options: dict[str, float], found: str) -> None:
    with pytest.raises(ValueError, match=rf"width of at least 1 and a token_dropout in \[0, 1\), got {found}"):
        GPOTower(region_tower(), **options)  # type: ignore[arg-type]


def test_a_tower_without_tokens_is_refused() -> None:
    with pytest.raises(
        ValueError, match="GPOTower pools tokens, and HeadTower returns none: give it a tower with tokens"
    ):
        GPOTower(HeadTower(region_tower()))(regions())
