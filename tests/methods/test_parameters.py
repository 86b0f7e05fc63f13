import pytest
import torch

from sdr_lightning.methods.parameters import Temperature, TextShare


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": 0.005},  # below the minimum
        {"initial": 1.5},  # above the maximum
        {"initial": 0.5, "minimum": 0.0},
        {"initial": 0.5, "minimum": 0.9, "maximum": 0.1},
        {"initial": float("nan")},
    ],
)
def test_invalid_temperature_ranges_are_rejected(arguments):
    with pytest.raises(ValueError, match="0 < minimum <= initial <= maximum, got"):
        Temperature(**arguments)


def test_range_includes_its_ends():
    assert Temperature(0.01).value.item() == pytest.approx(0.01)
    assert Temperature(1.0).value.item() == 1.0
    assert Temperature(3.0, minimum=3.0, maximum=3.0).value.item() == 3.0


@pytest.mark.parametrize(("moved", "clamped"), [(-1.0, 0.1), (0.25, 0.25), (7.0, 0.5)])
def test_clamp(moved, clamped):
    temperature = Temperature(0.2, minimum=0.1, maximum=0.5)
    parameter = temperature.value
    with torch.no_grad():
        parameter.fill_(moved)
    temperature.clamp()
    assert temperature.value is parameter  # referenced by the optimiser
    assert parameter.requires_grad
    assert temperature().item() == pytest.approx(clamped)


@pytest.mark.parametrize(
    ("learned", "fixed", "slope"),
    [
        (Temperature(0.3), Temperature(0.3, learnable=False), 1),
        (TextShare(0.3), TextShare(0.3, "fixed"), 1),
        (TextShare(0.3, "bounded"), TextShare(0.3, "fixed"), 0.5 * 0.6**2),  # of the softsign
    ],
    ids=["temperature", "free share", "bounded share"],
)
def test_learned_values_are_parameters_and_fixed_ones_buffers(learned, fixed, slope):
    assert learned().item() == fixed().item() == pytest.approx(0.3)
    assert learned().ndim == 0
    assert [name for name, _ in learned.named_parameters()] == ["value"]
    assert list(fixed.parameters()) == []
    assert not fixed().requires_grad
    assert learned.state_dict().keys() == fixed.state_dict().keys() == {"value"}
    (2 * learned()).backward()
    assert learned.value.grad.item() == pytest.approx(2 * slope)


def test_share_is_free_and_one_half_by_default():
    assert TextShare().kind == "free"
    assert TextShare()().item() == 0.5
    assert TextShare(kind="bounded")().item() == 0.5


@pytest.mark.parametrize(("kind", "initial"), [("free", -0.5), ("free", 1.0), ("fixed", 0.0), ("fixed", 1.5)])
def test_unbounded_share_accepts_any_initial_value(kind, initial):
    assert TextShare(initial, kind)().item() == initial


@pytest.mark.parametrize("initial", [0.0, 1.0, float("nan")])
def test_bounded_share_rejects_initial_values_outside(initial):
    with pytest.raises(ValueError, match=rf"starts inside \(0, 1\), got {initial}"):
        TextShare(initial, "bounded")


def test_unknown_kind_of_share_is_rejected():
    with pytest.raises(ValueError, match="free, bounded or fixed, got 'learned'"):
        TextShare(0.5, "learned")


def after_a_step(kind, rate):
    share = TextShare(0.5, kind)
    optimizer = torch.optim.SGD(share.parameters(), lr=abs(rate))
    (-share() if rate > 0 else share()).backward()
    optimizer.step()
    return share


@pytest.mark.parametrize("rate", [-20.0, 20.0])
def test_free_share_leaves_the_unit_interval(rate):
    assert after_a_step("free", rate)().item() == pytest.approx(0.5 + rate)


@pytest.mark.parametrize("rate", [-1e6, -20.0, 60.0, 1e6])
def test_bounded_share_stays_inside_with_gradient(rate):
    share = after_a_step("bounded", rate)
    assert 0 < share().item() < 1
    assert (share() > 0.5) == (rate > 0)
    share.zero_grad()
    share().backward()
    assert share.value.grad > 0


@pytest.mark.parametrize("rate", [-1e30, 1e30])
def test_bounded_share_never_exceeds_its_bounds(rate):
    share = after_a_step("bounded", rate)().item()
    assert 0.99 < share <= 1 if rate > 0 else 0 <= share < 0.01
