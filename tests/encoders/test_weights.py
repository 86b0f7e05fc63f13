"""Loading of state dicts."""

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


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_round_trip(suffix, tmp_path):
    source, target = make_model(1), make_model(2)
    load_state(target, write(tmp_path / f"weights{suffix}", source.state_dict()))
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_weights_are_cast_to_the_precision_of_the_model(path):
    source, target = make_model(1), make_model(2)
    load_state(target, write(path, make_model(1).half().state_dict()))
    assert target.body.weight.dtype == torch.float32
    assert torch.equal(target.body.weight, source.body.weight.half().float())


def test_state_dict_inside_a_training_checkpoint(tmp_path):
    source, target = make_model(1), make_model(2)
    torch.save({"epoch": 3, "state_dict": source.state_dict()}, tmp_path / "weights.pth")
    load_state(target, tmp_path / "weights.pth")
    assert torch.equal(target.body.weight, source.body.weight)


def test_classifier_is_ignored_only_on_request(path):
    state = make_model(1).state_dict() | {"classifier.weight": torch.ones(9, 4), "classifier.bias": torch.ones(9)}
    write(path, state)
    target = make_model(2)
    with pytest.raises(ValueError, match=r"has unknown 2 of 7 keys, first 'classifier\.bias'"):
        load_state(target, path)
    load_state(target, path, ignore=("head.", "classifier."))
    assert torch.equal(target.body.weight, state["body.weight"])


def test_ignored_prefixes_are_loaded_if_the_model_has_them(path):
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
def test_unfitting_keys_are_named_and_nothing_is_loaded(path, change, message):
    state, target = make_model(1).state_dict(), make_model(2)
    change(state)
    write(path, state)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        load_state(target, path)
    assert str(path) in str(caught.value)
    torch.testing.assert_close(dict(target.state_dict()), before, rtol=0, atol=0)


def renamed(model):
    """The state dict of a release with other names, and a classifier at its end."""
    state = {f"_{name.replace('body', 'trunk')}": tensor for name, tensor in model.state_dict().items()}
    return state | {"_fc.weight": torch.ones(9, 4), "_fc.bias": torch.ones(9)}


def test_other_names_are_matched_by_order_on_request(path):
    source, target = make_model(1), make_model(2)
    write(path, renamed(source))
    with pytest.raises(ValueError, match="it lacks 7 of 7 keys"):
        load_state(target, path, ignore=("fc.",))
    load_state(target, path, ignore=("fc.",), match_by="order")
    torch.testing.assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("_norm.bias"), "it has 6 tensors and the model 7"),
        (lambda s: s.update(extra=torch.ones(1)), "it has 8 tensors and the model 7"),
        (
            lambda s: s.update({"_trunk.bias": torch.ones(5)}),
            r"its '_trunk\.bias' \(5,\) .* place of 'body\.bias' \(4,\)",
        ),
        (lambda s: s.update({"_trunk.bias": s.pop("_trunk.bias")}), r"its '_norm\.weight' \(4,\) .* of 'body\.bias'"),
    ],
    ids=["fewer", "more", "shape", "order"],
)
def test_tensors_that_do_not_fit_in_order_are_refused(path, change, message):
    state, target = renamed(make_model(1)), make_model(2)
    change(state)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_state(target, write(path, state), ignore=("fc.",), match_by="order")
    torch.testing.assert_close(dict(target.state_dict()), before, rtol=0, atol=0)


def test_sorted_files_have_no_order(tmp_path):
    path = write(tmp_path / "weights.safetensors", make_model(1).state_dict())
    with pytest.raises(ValueError, match="keeps no order of its tensors"):
        load_state(make_model(2), path, match_by="order")


def test_missing_file_is_rejected(path):
    with pytest.raises(ValueError, match=r"no weights at .*weights.*: expected a state dict as \.safetensors or \.pth"):
        load_state(make_model(), path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_unreadable_files_are_rejected(suffix, tmp_path):
    path = write(tmp_path / f"weights{suffix}", make_model().state_dict())
    for content in (b"", b"<html>not found</html>" * 40, path.read_bytes()[:-200]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state dict") as caught:
            load_state(make_model(), path)
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match="no weights at"):
        load_state(make_model(), tmp_path)


class Trap:
    """Runs code when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_objects_are_not_unpickled(tmp_path):
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


def test_unreachable_message():
    error = unreachable("text tower", "a/b", "text_tower.init_args.weights", OSError("a long story"))
    assert isinstance(error, ValueError)
    assert "text tower 'a/b'" in str(error)
    assert "(OSError)" in str(error)
    assert "set text_tower.init_args.weights to a local folder" in str(error)
