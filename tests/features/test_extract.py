import numpy as np
import pytest
import torch
from torch import nn

from sdr_lightning.encoders import Tower
from sdr_lightning.features import encode, extract
from sdr_lightning.types import Encoded, Tokens, UnimodalBatch

CPU = torch.device("cpu")
INPUTS = torch.randn(7, 3, 2, 2, generator=torch.Generator().manual_seed(0))
IDS = [f"item-{i}" for i in range(7)]
CONTENT = np.arange(7)
EVERY = np.arange(7)


class TinyTower(Tower):
    """Features that depend on the mode: dropout, and a norm that learns from batches."""

    modality = "image"
    width = 4

    def __init__(self, frozen=False):
        super().__init__(frozen)
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.apply_frozen()

    def settings(self):
        return "tiny"

    def encode_inputs(self, inputs):
        return Encoded(self.layers(inputs))


def batches(*rows):
    for row in rows:
        index = torch.tensor(row)
        yield UnimodalBatch(INPUTS[index], index, torch.zeros_like(index))


def flat(inputs):
    return inputs.flatten(1)


def test_every_item_is_put_into_its_own_row():
    for rows in [[range(7)], [[0, 1, 2], [3, 4, 5], [6]], [[6, 2], [0], [5, 1, 4, 3]], [[1, 0], [1, 2], [3, 4, 5, 6]]]:
        features = encode(flat, batches(*map(list, rows)), EVERY, CPU)
        assert torch.equal(features, INPUTS.flatten(1))


def test_items_that_no_batch_held_are_counted():
    for rows, count in [([[0, 1, 2, 3], [5, 6]], 1), ([[0, 0, 0]], 6), ([], 7)]:
        with pytest.raises(ValueError, match=f"{count} of 7 items were not encoded"):
            encode(flat, batches(*rows), EVERY, CPU)


def test_features_are_float32_and_carry_no_gradient():
    weight = torch.ones(12, 12, dtype=torch.bfloat16, requires_grad=True)
    features = encode(lambda inputs: flat(inputs).bfloat16() @ weight, batches(list(range(7))), EVERY, CPU)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_tokens_stay_tokens():
    tokens = Tokens(torch.arange(8).view(2, 4), torch.ones(2, 4, dtype=torch.int64))

    def encoder(inputs):
        assert isinstance(inputs, Tokens)
        return inputs.input_ids

    features = encode(encoder, [UnimodalBatch(tokens, torch.tensor([1, 0]), torch.tensor([0, 0]))], np.arange(2), CPU)
    assert features.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_progress_is_shown_where_it_is_described(capfd, monkeypatch):
    monkeypatch.setattr("sdr_lightning.progress.EVERY_S", 0)
    encode(flat, batches([4, 5, 6], [0, 1, 2, 3]), EVERY, CPU)
    assert "".join(capfd.readouterr()) == ""
    encode(flat, batches([4, 5, 6], [0, 1, 2, 3]), EVERY, CPU, "image features")
    assert "image features: 3 of 7; about" in capfd.readouterr().err


@pytest.mark.parametrize(("training", "frozen"), [(True, False), (False, False), (True, True)])
def test_bank_holds_features_of_evaluation_mode(training, frozen):
    tower = TinyTower(frozen).train(training)
    before = tower.fingerprint()
    bank = extract(tower, batches([4, 5, 6], [0, 1, 2, 3]), EVERY, IDS, CONTENT, CPU)
    assert tower.training == (training and not frozen)
    assert tower.fingerprint() == before == bank.source
    tower.eval()
    torch.testing.assert_close(bank.features, tower(INPUTS).detach())
    torch.testing.assert_close(bank.rows(["item-3"], np.array([3]))[0], tower(INPUTS)[3].detach())
    assert (bank.modality, list(bank.ids), bank.content.tolist()) == ("image", IDS, list(range(7)))


def test_some_rows_make_a_bank_of_those_items():
    tower = TinyTower().eval()
    bank = extract(tower, batches([5], [2, 6]), np.array([2, 5, 6]), IDS, CONTENT, CPU)
    assert (list(bank.ids), bank.content.tolist()) == (["item-2", "item-5", "item-6"], [2, 5, 6])
    torch.testing.assert_close(bank.features, tower(INPUTS).detach()[[2, 5, 6]])


def test_the_tower_is_left_in_its_mode_when_a_batch_fails():
    tower = TinyTower().train()
    with pytest.raises(ValueError, match="3 of 7 items were not encoded"):
        extract(tower, batches([0, 1, 2, 3]), EVERY, IDS, CONTENT, CPU)
    assert tower.training


def test_a_tower_that_gives_nan_makes_no_bank():
    tower = TinyTower()
    nn.init.constant_(tower.layers[1].weight, float("nan"))
    with pytest.raises(ValueError, match="the image tower gave NaN"):
        extract(tower, batches(list(range(7))), EVERY, IDS, CONTENT, CPU)
