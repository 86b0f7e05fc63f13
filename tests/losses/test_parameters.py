import pytest
import torch

from sdr_lightning.losses.parameters import Temperature, TextShare


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


@pytest.mark.parametrize("scalar", [Temperature, TextShare])
def test_learned_or_fixed(scalar):
    learned, fixed = scalar(0.3), scalar(0.3, learnable=False)
    assert learned() == fixed() == pytest.approx(0.3)
    assert learned().ndim == 0
    assert [name for name, _ in learned.named_parameters()] == ["value"]
    assert list(fixed.parameters()) == []
    assert learned.state_dict().keys() == fixed.state_dict().keys() == {"value"}
    (2 * learned()).backward()
    assert learned.value.grad.item() == 2


def test_the_share_is_unconstrained():
    assert TextShare(-0.5)().item() == -0.5
    assert TextShare(1.5)().item() == 1.5
    assert TextShare()().item() == 0.5
