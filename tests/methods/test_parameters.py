import pytest
import torch

from sdr_lightning.methods.parameters import Temperature, TextShare


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial": 0.0},
        {"initial": -0.07},
        {"initial": 0.005},  # below the range's lower end
        {"initial": 1.5},  # above its upper end
        {"initial": 0.5, "minimum": 0.0},
        {"initial": 0.5, "minimum": -1.0},
        {"initial": 0.5, "minimum": 0.9, "maximum": 0.1},
        {"initial": float("nan")},
    ],
)
def test_a_temperature_outside_its_range_is_refused(arguments):
    with pytest.raises(ValueError, match="0 < minimum <= initial <= maximum, got"):
        Temperature(**arguments)


def test_the_ends_belong_to_the_range():
    assert Temperature(0.01).value.item() == pytest.approx(0.01)
    assert Temperature(1.0).value.item() == 1.0
    assert Temperature(3.0, minimum=3.0, maximum=3.0).value.item() == 3.0


@pytest.mark.parametrize(
    ("moved", "clamped"), [(-1.0, 0.1), (0.02, 0.1), (0.1, 0.1), (0.25, 0.25), (0.5, 0.5), (7.0, 0.5)]
)
def test_clamp(moved, clamped):
    temperature = Temperature(0.2, minimum=0.1, maximum=0.5)
    parameter = temperature.value
    with torch.no_grad():
        parameter.fill_(moved)
    temperature.clamp()
    assert temperature.value is parameter  # the optimiser holds this very tensor
    assert parameter.requires_grad
    assert temperature().item() == pytest.approx(clamped)


def test_a_step_beyond_the_range_can_be_undone():
    temperature = Temperature(0.2, minimum=0.1, maximum=0.5)
    optimizer = torch.optim.SGD(temperature.parameters(), lr=1.0)
    (3 * temperature()).backward()
    optimizer.step()
    assert temperature().item() == pytest.approx(-2.8)
    temperature.clamp()
    assert temperature().item() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("learned", "fixed", "slope"),
    [
        (Temperature(0.3), Temperature(0.3, learnable=False), 1),
        (TextShare(0.3), TextShare(0.3, "fixed"), 1),
        (TextShare(0.3, "bounded"), TextShare(0.3, "fixed"), 0.5 * 0.6**2),  # of the softsign
    ],
    ids=["temperature", "free share", "bounded share"],
)
def test_learned_or_fixed(learned, fixed, slope):
    assert learned().item() == fixed().item() == pytest.approx(0.3)
    assert learned().ndim == 0
    assert [name for name, _ in learned.named_parameters()] == ["value"]
    assert list(fixed.parameters()) == []
    assert not fixed().requires_grad
    assert learned.state_dict().keys() == fixed.state_dict().keys() == {"value"}
    (2 * learned()).backward()
    assert learned.value.grad.item() == pytest.approx(2 * slope)


def test_a_share_starts_free_at_a_half():
    assert TextShare().kind == "free"
    assert TextShare()().item() == 0.5
    assert TextShare(kind="bounded")().item() == 0.5


@pytest.mark.parametrize("kind", ["free", "fixed"])
@pytest.mark.parametrize("initial", [-0.5, 0.0, 1.0, 1.5])
def test_a_share_that_is_not_bounded_may_start_anywhere(kind, initial):
    assert TextShare(initial, kind)().item() == initial


@pytest.mark.parametrize("initial", [-0.5, 0.0, 1.0, 1.5, float("nan")])
def test_a_bounded_share_starts_inside(initial):
    with pytest.raises(ValueError, match=rf"starts inside \(0, 1\), got {initial}"):
        TextShare(initial, "bounded")


def test_an_unknown_kind_of_share():
    with pytest.raises(ValueError, match="free, bounded or fixed, got 'learned'"):
        TextShare(0.5, "learned")


def after_a_step(kind, rate):
    share = TextShare(0.5, kind)
    optimizer = torch.optim.SGD(share.parameters(), lr=abs(rate))
    (-share() if rate > 0 else share()).backward()
    optimizer.step()
    return share


@pytest.mark.parametrize("rate", [-20.0, 20.0, -1e6, 1e6])
def test_a_step_takes_a_free_share_out_of_its_bounds(rate):
    assert after_a_step("free", rate)().item() == pytest.approx(0.5 + rate)


@pytest.mark.parametrize("rate", [-1e6, -200.0, -20.0, 20.0, 60.0, 200.0, 1e6])
def test_a_step_leaves_a_bounded_share_inside_where_it_can_return(rate):
    share = after_a_step("bounded", rate)
    assert 0 < share().item() < 1
    assert (share() > 0.5) == (rate > 0)
    share.zero_grad()
    share().backward()
    assert share.value.grad > 0


@pytest.mark.parametrize("rate", [-1e30, -1e6, -200.0, 200.0, 1e6, 1e30])
def test_no_step_takes_a_bounded_share_beyond_its_bounds(rate):
    share = after_a_step("bounded", rate)().item()
    assert 0.99 < share <= 1 if rate > 0 else 0 <= share < 0.01
