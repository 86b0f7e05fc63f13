from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sdr_lightning.data.degree import Degree, measure_degree
from sdr_lightning.data.imbalance import Imbalance, imbalanced
from sdr_lightning.data.scenes import SceneSource, fact_counts, vocabulary
from sdr_lightning.functional.information import information_imbalance

SCENES = SceneSource(num_train=300, num_val=1, num_test=1)
CLEAN = SCENES.table("train")
SHOWN = torch.from_numpy(fact_counts([scene.objects for scene in SCENES.scenes("train")])).float()
COLUMN = {word: column for column, word in enumerate(vocabulary())}


def bag_of_words(captions: Sequence[str]) -> Tensor:
    bags = torch.zeros(len(captions), len(COLUMN))
    for row, caption in enumerate(captions):
        for word in caption.split():
            bags[row, COLUMN[word]] += 1
    return bags


def degree(imbalance: Imbalance) -> Degree:
    table = imbalanced(CLEAN, [imbalance]).table
    return measure_degree(SHOWN, bag_of_words(table.captions), torch.from_numpy(table.caption_image))


KINDS = {
    "mismatched images": Imbalance("mismatch", 1.0, level="image"),
    "mismatched captions": Imbalance("mismatch", 1.0, level="caption"),
    "dropped words": Imbalance("drop_words", 1.0),
    "missing texts": Imbalance("missing", 1.0, modality="text"),
}


def at(name: str, ratio: float) -> Imbalance:
    full = KINDS[name]
    return Imbalance(full.kind, ratio, full.modality, full.level)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_the_degree_grows_with_the_ratio_in_both_directions(name: str) -> None:
    found = [degree(at(name, ratio)) for ratio in (0, 0.3, 0.6, 1)]
    for direction in zip(*found, strict=True):
        assert all(later > earlier + 0.05 for earlier, later in pairwise(direction)), direction
    assert found[0].mean < 0.4


def test_fully_corrupted_pairs_have_degree_one() -> None:
    for name in ["mismatched images", "mismatched captions", "missing texts"]:
        assert degree(KINDS[name]) == pytest.approx((1, 1), abs=0.05)


def test_degree_is_asymmetric_for_dropped_words() -> None:
    """Images no longer tell the texts, while what is left of the texts still tells something of the images."""
    found = degree(KINDS["dropped words"])
    assert found.image_to_text > found.text_to_image + 0.05


def test_a_ratio_of_zero_gives_the_clean_value() -> None:
    clean = measure_degree(SHOWN, bag_of_words(CLEAN.captions), torch.from_numpy(CLEAN.caption_image))
    assert {degree(at(name, 0.0)) for name in KINDS} == {clean}
    assert clean.mean == (clean.image_to_text + clean.text_to_image) / 2


def test_the_text_of_an_image_is_the_mean_direction_of_its_captions() -> None:
    image = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    text = torch.randn(120, 6, generator=torch.Generator().manual_seed(1))
    owner = torch.arange(120) % 40
    lengths = torch.linspace(0.1, 50, 120)[:, None]
    mean = torch.stack([torch.nn.functional.normalize(text[owner == row], dim=1).mean(0) for row in range(40)])
    found = measure_degree(image, text * lengths, owner, neighbours=3)
    assert found.image_to_text == pytest.approx(information_imbalance(image, mean, 3), abs=1e-9)
    assert found.text_to_image == pytest.approx(information_imbalance(mean, image, 3), abs=1e-9)


def test_images_without_captions_are_passed_over() -> None:
    text = bag_of_words(CLEAN.captions)
    owner = torch.from_numpy(CLEAN.caption_image)
    alone = torch.tensor([0, 17, 299])
    captioned = torch.isin(owner, alone, invert=True)
    shown = SHOWN.clone()
    shown[alone] = torch.nan
    row = torch.full((300,), -1)
    others = torch.tensor([image for image in range(300) if image not in alone.tolist()])
    row[others] = torch.arange(297)
    expected = measure_degree(SHOWN[others], text[captioned], row[owner[captioned]])
    assert measure_degree(shown, text[captioned], owner[captioned]) == expected
    assert expected.mean < 0.4


def test_sampling_depends_on_the_seed_and_approximates_the_full_value() -> None:
    text, owner = bag_of_words(CLEAN.captions), torch.from_numpy(CLEAN.caption_image)
    some = [measure_degree(SHOWN, text, owner, points=200, seed=seed) for seed in (0, 0, 1)]
    assert some[0] == some[1] != some[2]
    # Of fewer points the nearest are farther, so that the measure is a little larger.
    assert some[0] == pytest.approx(measure_degree(SHOWN, text, owner), abs=0.06)
