"""What is done to captions before they become tokens."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.data.split import PreparedSplit
from sdr_lightning.data.table import CaptionTable, Split
from sdr_lightning.data.tokenizer import SceneTokenizer
from sdr_lightning.data.wording import Wording
from sdr_lightning.types import Tokens


def public_code(caption: str, max_words: int) -> str:
    """``pre_caption`` of ALBEF and X-VLM."""
    caption = re.sub(r"([,.'!?\"()*#:;~])", "", caption.lower())
    caption = caption.replace("-", " ").replace("/", " ").replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    return " ".join(caption.split(" ")[:max_words])


@given(st.text(alphabet="abcXYZ09 ,.'!?\"()*#:;~-/<>&", max_size=60), st.integers(1, 8))
def test_captions_are_worded_as_in_the_public_code(caption: str, max_words: int) -> None:
    assert Wording(True, max_words)([caption]) == [public_code(caption, max_words)]


def test_punctuation_by_hand() -> None:
    for caption, worded in [
        ("A well-known man, in Paris.", "a well known man in paris"),
        ("Two dogs/cats -- (one's BLACK)!", "two dogs cats ones black"),
        ("<person> greets <PERSON>; 3:30~ #1 *", "person greets person 330 1"),
        ('  "Hello?"  \n', "hello"),
        ("a & b", "a & b"),
        ("...", ""),
    ]:
        assert Wording(strip_punctuation=True)([caption]) == [worded]


def test_the_number_of_words_is_counted_after_punctuation_is_gone() -> None:
    caption = "A well-known man , in Paris."
    assert Wording(True, 3)([caption]) == ["a well known"]
    assert Wording(False, 3)([caption]) == ["A well-known man"]
    assert Wording(False, 100)([caption]) == [caption]


def test_the_same_object_where_nothing_is_to_be_done() -> None:
    captions = ["A dog.", "B"]
    assert Wording()(captions) is captions
    assert Wording(max_words=1)(captions) is not captions
    assert captions == ["A dog.", "B"]


@pytest.mark.parametrize("words", [0, -2])
def test_at_least_one_word(words: int) -> None:
    with pytest.raises(ValueError, match=f"captions need at least 1 word, got a limit of {words}"):
        Wording(max_words=words)


class Sentences(SceneSource):
    """Scenes with captions as people write them."""

    def table(self, split: Split) -> CaptionTable:
        table = super().table(split)
        captions = [f"{caption[0].upper()}{caption[1:]}." for caption in table.captions]
        return CaptionTable(table.name, table.split, table.image_ids, captions, table.caption_ids, table.caption_image)


SCENES = Sentences(num_train=6, num_val=4, num_test=4, size=16)


def split_of(name: Split, **options: Any) -> PreparedSplit:
    return RetrievalDataModule(SCENES, SceneTokenizer(), 10, 16, **options).split(name)


def tokens(split: PreparedSplit) -> Tokens:
    found = split.texts(np.arange(len(split.table.captions)))
    assert isinstance(found, Tokens)
    return found


def test_tokens_change_and_the_words_of_record_do_not() -> None:
    plain, worded = split_of("train"), split_of("train", strip_punctuation=True)
    unknown = 1
    assert ((tokens(plain).input_ids == unknown).sum(dim=1) >= 2).all()  # "A" and "circle."
    assert not (tokens(worded).input_ids == unknown).any()
    clean = SceneSource(num_train=6, num_val=4, num_test=4, size=16).table("train").captions
    assert torch.equal(tokens(worded).input_ids, SceneTokenizer()(clean).input_ids)
    assert list(worded.table.captions) == list(plain.table.captions) == list(SCENES.table("train").captions)
    assert np.array_equal(worded.content("text"), plain.content("text"))


def test_cached_features_depend_on_the_wording() -> None:
    """What is kept of a frozen text tower is found by this description."""
    options: list[dict[str, Any]] = [{}, {"strip_punctuation": True}, {"train_words": 4}, {"train_words": 5}]
    found = [split_of("train", **each).input_description("text") for each in options]
    assert len(set(found)) == 4
    assert split_of("train", evaluation_words=4).input_description("text") == found[0]
    assert split_of("train", strip_punctuation=True).input_description("image") == split_of("train").input_description(
        "image"
    )


def test_training_and_evaluation_are_cut_at_lengths_of_their_own() -> None:
    for name, words in (("train", 4), ("val", 3), ("test", 3)):
        split = split_of(name, strip_punctuation=True, train_words=4, evaluation_words=3)  # type: ignore[arg-type]
        lengths = tokens(split).attention_mask.sum(dim=1)
        said = torch.tensor([len(caption.split()) for caption in split.table.captions])
        assert said.max() > 4
        assert torch.equal(lengths, said.clamp(max=words) + 2)  # [CLS] and [SEP]
    for name in ("train", "val", "test"):
        assert tokens(split_of(name)).attention_mask.sum(dim=1).max() > 6  # type: ignore[arg-type]


def test_masked_words_stay_masked() -> None:
    """``mask_words`` writes [MASK] into captions, which is no word and no punctuation."""
    imbalance = Imbalance("mask_words", 1.0, severity=3)
    plain, worded = (tokens(split_of("train", strip_punctuation=strip, imbalance=imbalance)) for strip in (False, True))
    mask = SceneTokenizer().tokenizer.mask_token_id
    masked = (plain.input_ids == mask).sum(dim=1)
    assert (masked > 0).any()
    assert torch.equal((worded.input_ids == mask).sum(dim=1), masked)
