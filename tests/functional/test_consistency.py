"""Consistency of a pair's similarities to anchors in both modalities."""

import pytest
import torch
import torch.nn.functional as F

from sdr_lightning.functional.consistency import bidirectional_consistency


def pairs():
    image = F.normalize(torch.arange(96).double().mul(1.7).sin().reshape(24, 4), dim=1)
    text = F.normalize(torch.arange(96).double().mul(2.3).cos().reshape(24, 4), dim=1)
    return image, F.normalize(image + F.normalize(image + text, dim=1), dim=1)


def anchors(*rows):
    return torch.zeros(24, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.int64), True)


def test_consistency_equals_the_public_code():
    """xu5zhao/BiCro at 02316315: the labels n_y of SGRAF.predict with stand-ins for its encoders, clamped to [0, 1].

    Its clean batch is pairs 0 to 19, of which it chooses the anchors 9, 10 and 12.
    """
    expected = [0.7028270577250926, 0.8639123756428908, 0.06625210525567889, 0.0, 0.979241919250779, 0.0]
    expected += [0.3939744003607974, 0.6197649669230386, 0.7801731233223003, 1.0, 1.0, 0.7817250531203861, 1.0]
    expected += [0.4905617546322522, 0.5943053802028114, 0.2997127857523904, 0.6160807352719758, 0.8926738861740694]
    expected += [0.0, 0.3247516913977945, 0.8629427181424407, 0.8167595068480986, 0.879323509812648, 0.9398587059787289]
    found = bidirectional_consistency(*pairs(), anchors(9, 10, 12))
    assert found.clamp(0, 1).tolist() == pytest.approx(expected)
    assert found.max().item() <= 1 + 1e-9
    assert found.min() < 0


def test_consistency_is_the_same_for_exchanged_modalities_and_ignores_other_pairs():
    image, text = pairs()
    found = bidirectional_consistency(image, text, anchors(2, 7))
    torch.testing.assert_close(bidirectional_consistency(text, image, anchors(2, 7)), found)
    changed = text.clone()
    changed[4] = -changed[4]
    others = torch.arange(24) != 4
    torch.testing.assert_close(bidirectional_consistency(image, changed, anchors(2, 7))[others], found[others])


def test_equal_geometry_is_consistent_and_without_anchors_nothing_is():
    image, text = pairs()
    torch.testing.assert_close(bidirectional_consistency(image, image, anchors(3)), torch.ones(24).double())
    assert bidirectional_consistency(image, text, anchors()).tolist() == [0] * 24
    orthogonal = torch.eye(3)
    assert bidirectional_consistency(orthogonal, orthogonal, torch.tensor([True, False, False])).tolist() == [1, 0, 0]
