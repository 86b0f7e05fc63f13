"""Two dual encoders side by side: their cosine, what they share, and what is refused."""

import copy

import pytest
import torch

from sdr_lightning.encoders import DualEncoder, TwinEncoder, split_embedding
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.types import CachedFeatures
from tests.encoders.tiny import image_tower, images, randomise, text_tower, tokens


def make(encoder=TwinEncoder, image_frozen=False, text_frozen=False, **options):
    towers = image_tower(frozen=image_frozen), text_tower(frozen=text_frozen)
    torch.manual_seed(3)
    return encoder(*towers, embedding_width=6, **options).eval()


def networks(twin):
    """The two networks as dual encoders, built from the parts of a twin encoder."""
    second = copy.deepcopy(twin)
    for name in ("image_tower", "text_tower", "image_projection", "text_projection"):
        setattr(second, name, getattr(twin, f"second_{name}") or getattr(twin, name))
    found = []
    for parts in (twin, second):
        dual = DualEncoder(parts.image_tower, parts.text_tower, embedding_width=6)
        dual.image_projection, dual.text_projection = parts.image_projection, parts.text_projection
        found.append(dual.eval())
    return found


@pytest.mark.parametrize("frozen", [(False, False), (True, False), (True, True)])
def test_the_cosine_is_the_mean_of_both_cosines(frozen):
    twin = make(image_frozen=frozen[0], text_frozen=frozen[1])
    for tower in (twin.second_image_tower, twin.second_text_tower):
        if tower is not None:
            randomise(tower)
    image, text = twin.image(images()), twin.text(tokens())
    assert image.tokens is None
    assert image.embedding.shape == text.embedding.shape == (3, 12)
    torch.testing.assert_close(image.embedding.norm(dim=1), torch.ones(3))
    of_each = [(dual.encode_image(images()), dual.encode_text(tokens())) for dual in networks(twin)]
    mean = sum(one @ other.T for one, other in of_each) / 2
    torch.testing.assert_close(image.embedding @ text.embedding.T, mean)
    for found, expected in zip(split_embedding(image.embedding), (of_each[0][0], of_each[1][0]), strict=True):
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(found, of_each[0][1], atol=0.1)


def test_the_first_network_starts_as_a_dual_encoder_of_the_same_seed_and_the_second_elsewhere():
    twin, dual = make(), make(DualEncoder)
    first, second = split_embedding(twin.encode_text(tokens()))
    torch.testing.assert_close(first, dual.encode_text(tokens()))
    assert not torch.allclose(first, second, atol=0.1)
    torch.testing.assert_close(twin.second_text_tower(tokens()), twin.text_tower(tokens()))


def test_frozen_towers_are_shared_and_cached_and_trained_ones_are_copied():
    twin = make(image_frozen=True)
    assert twin.second_image_tower is None
    assert twin.cached_towers() == twin.frozen_towers() == {"image_tower": twin.image_tower}
    stored = [name for name in twin.state_dict() if ".model." in name or ".encoder." in name]
    assert {name.split(".")[0] for name in stored} == {"image_tower", "text_tower", "second_text_tower"}
    cached = CachedFeatures(twin.image_tower(images()))
    torch.testing.assert_close(twin.encode_image(cached), twin.encode_image(images()))
    before = split_embedding(twin.encode_text(tokens()))
    randomise(twin.second_text_tower)
    first, second = split_embedding(twin.encode_text(tokens()))
    torch.testing.assert_close(first, before[0])
    assert not torch.allclose(second, before[1], atol=0.1)


def test_every_trained_parameter_is_optimised_once_with_its_rate_and_gets_a_gradient():
    twin = make(text_frozen=True)
    twin.image_tower.pretrained = True
    new = twin.newly_initialized_parameters()
    sides = [f"{second}{side}_projection." for second in ("", "second_") for side in ("image", "text")]
    trained = [name for name in new if not name.startswith("text_tower.")]
    assert {name for name, _ in twin.named_parameters() if name.startswith(tuple(sides))} == set(trained)
    groups = Optimisation(learning_rate=1.0, newly_initialized_multiple=3).groups(twin, new)
    found = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    expected = {id(p): 3 if name in new else 1 for name, p in twin.named_parameters() if p.requires_grad}
    assert found == expected
    assert sum(len(group["params"]) for group in groups) == len(expected)
    (twin.encode_image(images()) @ twin.encode_text(tokens()).T).diag().sum().backward()
    assert all(p.grad is not None for p in twin.parameters() if p.requires_grad)


def recomputes(tower):
    return any(getattr(part, "gradient_checkpointing", False) for part in tower.modules())


def test_activation_checkpointing_and_compilation_reach_both_towers_and_keep_their_weights(monkeypatch):
    compiled = []

    def fake_compile(function, **_):
        compiled.append(function.__self__)
        return lambda *inputs: function(*inputs)

    monkeypatch.setattr(torch, "compile", fake_compile)
    plain, twin = make(), make(compile=True, activation_checkpointing=True)
    assert compiled == [twin.image_tower, twin.text_tower, twin.second_image_tower, twin.second_text_tower]
    for encoder in (plain, twin):
        randomise(encoder.second_text_tower, seed=5)
        encoder.train().zero_grad()
        torch.manual_seed(0)
        encoder.encode_text(tokens())[:, ::2].sum().backward()
    assert [recomputes(encoder.second_text_tower) for encoder in (plain, twin)] == [False, True]
    theirs, ours = dict(plain.named_parameters()), dict(twin.named_parameters())
    for name in ours:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad)


def test_a_frozen_tower_is_compiled_once(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    make(image_frozen=True, text_frozen=True, compile=True)
    assert len(compiled) == 2


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: TwinEncoder(image_tower(), text_tower(), fusion=object()), "set encoder.fusion to null"),
        (lambda: TwinEncoder(image_tower(), text_tower(), embedding_width=None), "set embedding_width"),
        (lambda: split_embedding(make(DualEncoder).encode_text(tokens())), "not those of two networks"),
        (lambda: split_embedding(torch.eye(3)), r"\(3, 3\), are not those of two networks"),
    ],
)
def test_what_two_networks_do_not_go_with_is_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()
