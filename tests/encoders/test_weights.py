from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdr_lightning.encoders.weights import load_state, near_names, unreachable


def make_model(seed=0, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(body=nn.Linear(3, width), norm=nn.BatchNorm1d(width)))


def write(path, state):
    state = {key: tensor.contiguous() for key, tensor in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture(params=[".safetensors", ".pth"])
def path(request, tmp_path):
    return tmp_path / f"weights{request.param}"


def test_round_trip(path):
    source, target = make_model(1), make_model(2)
    load_state(target, write(path, source.state_dict()))
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_weights_are_cast_to_the_models_precision(path):
    source, target = make_model(1), make_model(2)
    load_state(target, write(path, make_model(1).half().state_dict()))
    assert target.body.weight.dtype == torch.float32
    assert torch.equal(target.body.weight, source.body.weight.half().float())


def test_a_training_checkpoint_holds_the_state_dict_inside(tmp_path):
    source, target = make_model(1), make_model(2)
    torch.save({"epoch": 3, "state_dict": source.state_dict()}, tmp_path / "weights.pth")
    load_state(target, tmp_path / "weights.pth")
    assert torch.equal(target.body.weight, source.body.weight)


def test_an_unused_classifier_is_ignored_only_if_the_caller_says_so(path):
    state = make_model(1).state_dict() | {"classifier.weight": torch.ones(9, 4), "classifier.bias": torch.ones(9)}
    write(path, state)
    target = make_model(2)
    with pytest.raises(ValueError, match=r"has unknown 2 of 7 keys, first 'classifier\.bias'"):
        load_state(target, path)
    load_state(target, path, ignore=("head.", "classifier."))
    assert torch.equal(target.body.weight, state["body.weight"])


def test_a_classifier_the_model_has_is_loaded_although_it_may_be_absent(path):
    source, target = make_model(1), make_model(2)
    load_state(target, write(path, source.state_dict()), ignore=("body.",))
    assert torch.equal(target.body.weight, source.body.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.bias"), r"lacks 1 of 7 keys, first 'norm\.bias'"),
        (lambda s: s.update(extra=torch.ones(1)), r"has unknown 1 of 7 keys, first 'extra'"),
        (lambda s: s.update({"body.bias": torch.ones(5)}), r"has other shapes for 1 of 7 keys, first 'body\.bias'"),
    ],
)
def test_keys_that_do_not_fit_are_named_and_nothing_is_loaded(path, change, message):
    state, target = make_model(1).state_dict(), make_model(2)
    change(state)
    write(path, state)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_state(target, path)
    assert str(path) in str(caught.value)
    torch.testing.assert_close(dict(target.state_dict()), before, rtol=0, atol=0)


def test_no_file(path):
    with pytest.raises(ValueError, match=r"no weights at .*weights.*: expected a state dict as \.safetensors or \.pth"):
        load_state(make_model(), path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="no weights at"):
        load_state(make_model(), tmp_path)


def test_garbage(path):
    path.write_bytes(b"<html>not found</html>" * 40)
    with pytest.raises(ValueError, match="state dict") as caught:
        load_state(make_model(), path)
    assert str(path) in str(caught.value)


def test_a_truncated_file(path):
    write(path, make_model().state_dict())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="state dict") as caught:
        load_state(make_model(), path)
    assert str(path) in str(caught.value)


class Trap:
    """Runs code when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_nothing_is_unpickled(tmp_path):
    for name, content in (("module", make_model()), ("trap", {"body.weight": Trap()})):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match="is not a plain state dict of tensors"):
            load_state(make_model(), tmp_path / f"{name}.pth")
    assert not Trap.sprung


def test_near_names():
    known = ["resnet18", "resnet50", "vit_tiny"]
    assert near_names("resnet19", known) == "; did you mean resnet18 or resnet50?"
    assert near_names("vit_tini", known) == "; did you mean vit_tiny?"
    assert near_names("qqqq", known) == ""


def test_unreachable_says_what_where_and_why():
    error = unreachable("text tower", "a/b", "text_tower.init_args.weights", OSError("a long story"))
    assert isinstance(error, ValueError)
    assert "text tower 'a/b'" in str(error)
    assert "(OSError)" in str(error)
    assert "set text_tower.init_args.weights to a local folder" in str(error)
