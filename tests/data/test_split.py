import numpy as np
import pytest
import torch
from torch import Tensor

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.imbalance.pictures import noisy
from sdr_lightning.data.split import PreparedSplit
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.data.transforms import to_input
from sdr_lightning.types import CachedFeatures, Tokens
from tests.data.collection import COUNTS, MemorySource, bank_of, prepared

CLEAN = Imbalance()
MISMATCH = Imbalance("mismatch", 0.6)
WORDS = Imbalance("drop_words", 0.5)
NOISE = Imbalance("gaussian_noise", 0.5)
EVERY_IMAGE, EVERY_CAPTION = np.arange(len(COUNTS)), np.arange(sum(COUNTS))


def split_under(imbalance: Imbalance, image_size: int = 16, source: MemorySource | None = None) -> PreparedSplit:
    return prepared(source or MemorySource(), SceneTokenizer(), image_size, [imbalance])


def invert(image: Tensor) -> Tensor:
    """An augmentation without randomness."""
    return 255 - image


def test_clean_images_and_texts_are_the_source_s() -> None:
    split = split_under(CLEAN)
    rows = np.array([5, 0, 5])
    images = split.images(rows)
    pixels = MemorySource().images("train")
    assert images.dtype == torch.uint8
    for image, row in zip(images, rows, strict=True):
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), pixels[row])
    texts = split.texts(np.array([4, 1]))
    expected = SceneTokenizer()([split.table.captions[4], split.table.captions[1]])
    assert isinstance(texts, Tokens)
    assert torch.equal(texts.input_ids, expected.input_ids)


def test_images_are_resized() -> None:
    source = MemorySource()
    image = split_under(CLEAN, image_size=8).images(np.array([2]))[0]
    assert torch.equal(image, to_input(source.images("train")[2], 8))


def test_texts_are_those_of_the_imbalance() -> None:
    split = split_under(Imbalance("drop_words", 1.0))
    clean = split_under(CLEAN)
    assert split.table.captions != clean.table.captions
    texts, expected = split.texts(EVERY_CAPTION), SceneTokenizer()(split.table.captions)
    assert isinstance(texts, Tokens)
    assert torch.equal(texts.input_ids, expected.input_ids)


def test_noise_is_on_the_chosen_images_only_and_always_the_same() -> None:
    split = split_under(NOISE)
    changed = set(NOISE.choose(split.table).tolist())
    images, pixels = split.images(EVERY_IMAGE), MemorySource().images("train")
    for row, image in enumerate(images):
        expected = noisy(pixels[row], 5, NOISE.generator(f"i{row}")) if row in changed else pixels[row]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
    assert torch.equal(split.images(EVERY_IMAGE[::-1].copy()), images.flip(0))


def test_noise_is_drawn_at_the_size_that_the_model_sees() -> None:
    split = split_under(NOISE, image_size=8)
    row = int(NOISE.choose(split.table)[0])
    small = to_input(MemorySource().images("train")[row], 8).permute(1, 2, 0).numpy()
    image = split.images(np.array([row]))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(image, noisy(small, 5, NOISE.generator(f"i{row}")))


def test_transforms_apply_to_noisy_and_to_clean_images() -> None:
    split = split_under(NOISE)
    assert torch.equal(split.images(EVERY_IMAGE, invert), 255 - split.images(EVERY_IMAGE))


def test_content_changes_exactly_where_the_imbalance_does() -> None:
    clean = split_under(CLEAN)
    for imbalance in (MISMATCH, WORDS, NOISE):
        split = split_under(imbalance)
        changed = {
            modality: set(np.flatnonzero(split.content(modality) != clean.content(modality)).tolist())
            for modality in ("image", "text")
        }
        chosen = set(imbalance.choose(split.table).tolist())
        texts = zip(split.table.captions, clean.table.captions, strict=True)
        assert changed["image"] == (chosen if imbalance is NOISE else set())
        assert changed["text"] == {row for row, (now, before) in enumerate(texts) if now != before}
    assert not np.array_equal(
        split_under(Imbalance("gaussian_noise", 0.5, severity=4)).content("image"), split.content("image")
    )


@pytest.mark.parametrize(
    "imbalance",
    [
        MISMATCH,
        Imbalance("mismatch", 0.5, level="caption"),
        Imbalance("missing", 0.3, modality="text"),
        NOISE,
        Imbalance("missing", 0.3, modality="image"),
        WORDS,
    ],
    ids=lambda imbalance: f"{imbalance.kind}, {imbalance.level}",
)
def test_the_training_pairs_know_which_of_them_are_original(imbalance: Imbalance) -> None:
    split, clean = split_under(imbalance), split_under(CLEAN)
    pairs = split.training_pairs()
    original = []
    for row, image in enumerate(split.table.caption_image.tolist()):
        here = torch.equal(split.images(np.array([image])), clean.images(np.array([image])))
        same = split.table.captions[row] == clean.table.captions[row]
        original.append(here and same and image == clean.table.caption_image[row])
    assert pairs.is_original.tolist() == original
    assert 0 < sum(original) < len(original)
    assert clean.training_pairs().is_original.all()
    assert pairs.image_index.tolist() == split.table.caption_image.tolist()


def test_content_does_not_touch_the_table() -> None:
    split = split_under(NOISE)
    np.testing.assert_array_equal(split.table.image_content, split_under(CLEAN).table.image_content)
    np.testing.assert_array_equal(split.content("image"), split.content("image"))


def test_teacher_rows_follow_ids() -> None:
    for imbalance in [CLEAN, MISMATCH, WORDS, NOISE]:
        split = split_under(imbalance)
        for modality, n in (("image", len(COUNTS)), ("text", sum(COUNTS))):
            assert split.teacher(modality, np.array([0])) is None
            split.attach_teacher(bank_of(split, modality))
            rows = np.random.default_rng(0).permutation(n)
            features = split.teacher(modality, rows)
            assert features is not None
            assert features[:, 0].tolist() == rows.tolist()
            assert isinstance(split.images(np.array([0])), Tensor)
        assert isinstance(split.texts(np.array([0])), Tokens)  # a teacher replaces nothing


def test_a_mismatch_shares_the_clean_banks() -> None:
    clean, split = split_under(CLEAN), split_under(MISMATCH)
    split.attach_teacher(bank_of(clean, "image"))
    split.attach_teacher(bank_of(clean, "text"))


def test_a_bank_of_other_content_is_refused() -> None:
    for modality, of, under in [
        ("text", CLEAN, WORDS),
        ("text", WORDS, CLEAN),
        ("text", WORDS, Imbalance("drop_words", 0.5, seed=1)),
        ("image", CLEAN, NOISE),
        ("image", NOISE, CLEAN),
        ("image", NOISE, Imbalance("gaussian_noise", 0.5, severity=1)),
    ]:
        for role in ["attach_teacher", "cache"]:
            bank = bank_of(split_under(of), "image" if modality == "image" else "text")
            split = split_under(under)
            with pytest.raises(ValueError, match=f"the {modality} bank was extracted from other content for .* of"):
                getattr(split, role)(bank)


def test_a_bank_of_fewer_items_is_refused() -> None:
    bank = bank_of(split_under(CLEAN, source=MemorySource(COUNTS[:6])), "image")
    with pytest.raises(ValueError, match="the image bank lacks 2 of 8 ids, first 'i6'"):
        split_under(CLEAN).attach_teacher(bank)


def test_bank_of_more_items_is_accepted() -> None:
    split = split_under(CLEAN, source=MemorySource(COUNTS[:6]))
    split.attach_teacher(bank_of(split_under(CLEAN), "image"))
    features = split.teacher("image", np.array([4, 1]))
    assert features is not None
    assert features[:, 0].tolist() == [4, 1]


def test_cached_features_replace_pixels_and_tokens() -> None:
    split = split_under(CLEAN)
    split.cache(bank_of(split, "image", width=4))
    assert split.images(np.array([6, 2])).values.tolist() == [[6.0] * 4, [2.0] * 4]
    with pytest.raises(ValueError, match="cannot be augmented"):
        split.images(np.array([6, 2]), lambda image: image)
    assert isinstance(split.texts(np.array([0])), Tokens)
    split.cache(bank_of(split, "text", width=2))
    texts = split.texts(np.array([19, 0, 3]))
    assert isinstance(texts, CachedFeatures)
    assert texts.values.tolist() == [[19.0] * 2, [0.0] * 2, [3.0] * 2]
    assert split.teacher("image", np.array([0])) is None
