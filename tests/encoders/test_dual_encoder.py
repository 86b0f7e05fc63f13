import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sdr_lightning.encoders import DualEncoder, Projection
from sdr_lightning.types import CachedFeatures
from tests.encoders.tiny import image_tower, images, text_tower, tokens


def make_encoder(image_frozen=False, text_frozen=False, **kwargs):
    encoder = DualEncoder(image_tower(frozen=image_frozen), text_tower(frozen=text_frozen), embedding_width=6, **kwargs)
    torch.manual_seed(7)
    for projection in (encoder.image_projection, encoder.text_projection):
        for layer in projection:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
    return encoder


@pytest.mark.parametrize("kwargs", [{}, {"hidden_width": 9, "dropout": 0.5, "normalise_features": True}])
def test_embeddings_are_normalised(kwargs):
    encoder = make_encoder(**kwargs)
    for embeddings in (encoder.encode_image(images()), encoder.encode_text(tokens())):
        assert embeddings.shape == (3, 6)
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(3))
    layers = [[type(layer) for layer in side] for side in (encoder.image_projection, encoder.text_projection)]
    assert layers[0] == layers[1]
    assert (nn.LayerNorm in layers[0]) == kwargs.get("normalise_features", False)


def test_embedding_is_the_normalised_projection_of_the_features():
    encoder = make_encoder().eval()
    image, text = encoder.image_projection[-1], encoder.text_projection[-1]
    expected = F.normalize(encoder.image_tower(images()) @ image.weight.T + image.bias, dim=1)
    torch.testing.assert_close(encoder.encode_image(images()), expected)
    expected = F.normalize(encoder.text_tower(tokens()) @ text.weight.T + text.bias, dim=1)
    torch.testing.assert_close(encoder.encode_text(tokens()), expected)


def test_cached_features_give_the_same_embeddings():
    encoder = make_encoder(True, True).eval()
    cached_image = CachedFeatures(encoder.image_tower(images()))
    cached_text = CachedFeatures(encoder.text_tower(tokens()))
    assert torch.equal(encoder.encode_image(cached_image), encoder.encode_image(images()))
    assert torch.equal(encoder.encode_text(cached_text), encoder.encode_text(tokens()))
    with pytest.raises(ValueError, match="cached features are 5 wide"):
        encoder.encode_text(CachedFeatures(torch.zeros(2, 5)))


@pytest.mark.parametrize(
    ("arguments", "layers"),
    [
        ({}, [nn.Dropout, nn.Linear]),
        ({"normalise_input": True}, [nn.LayerNorm, nn.Dropout, nn.Linear]),
        ({"hidden_width": 8, "dropout": 0.1}, [nn.Dropout, nn.Linear, nn.GELU, nn.Dropout, nn.Linear]),
    ],
)
def test_projection_layers(arguments, layers):
    projection = Projection(5, 3, **arguments)
    assert [type(layer) for layer in projection] == layers
    assert projection(torch.randn(2, 5)).shape == (2, 3)


@pytest.mark.parametrize("hidden_width", [None, 64])
def test_dropout_is_applied_in_training_only(hidden_width):
    projection = Projection(5, 3, hidden_width, dropout=0.5)
    assert all(layer.p == 0.5 for layer in projection if isinstance(layer, nn.Dropout))
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    assert not torch.equal(projection(rows), projection(rows))
    projection.eval()
    assert torch.equal(projection(rows), projection(rows))
    without = Projection(5, 3, hidden_width)
    assert torch.equal(without(rows), without(rows))


def test_layer_norm_removes_the_scale_of_features():
    torch.manual_seed(0)
    rows = torch.randn(4, 16)
    with_norm, without = Projection(16, 3, normalise_input=True), Projection(16, 3)
    torch.testing.assert_close(with_norm(100 * rows), with_norm(rows), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(without(100 * rows), without(rows), atol=0.1)
