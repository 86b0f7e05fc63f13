import hashlib
import json
import random

import numpy as np
import pytest
import torch

from sdr_lightning.metrics import relevance as module
from sdr_lightning.metrics.relevance import FactRelevance, RougeLRelevance, rouge_l, tokenize
from tests.reference.rouge_l import rouge_l as reference

EVERYTHING = slice(None)


def drawn_captions(images=9, most=6, vocabulary=12, longest=14, seed=0):
    """Shuffled captions, one to `most` per image, of few words so that subsequences are long."""
    draw = random.Random(seed)
    index = [image for image in range(images) for _ in range(draw.randint(1, most))]
    draw.shuffle(index)
    words = [f"w{n}" for n in range(vocabulary)]
    return [" ".join(draw.choices(words, k=draw.randint(1, longest))) for _ in index], index


def literal(captions, index, images):
    tokens = [caption.split() for caption in captions]
    groups = [[tokens[c] for c in range(len(index)) if index[c] == image] for image in range(images)]
    return torch.tensor([[reference(candidate, group) for group in groups] for candidate in tokens])


class TestFacts:
    images = np.array([[2, 0, 1], [0, 3, 0], [0, 0, 0]])
    texts = np.array([[1, 0, 1], [2, 0, 1]])

    def test_by_hand(self):
        relevance = FactRelevance(self.images, self.texts)
        assert (relevance.num_images, relevance.num_texts) == (3, 2)
        # min / max of (2,0,1) and (1,0,1): (1+0+1) / (2+0+1).
        expected = torch.tensor([[2 / 3, 1.0], [0.0, 0.0], [0.0, 0.0]])
        assert torch.equal(relevance.rows("image", "text", EVERYTHING), expected)
        assert torch.equal(relevance.rows("text", "image", EVERYTHING), expected.T)
        itself = relevance.rows("image", "image", EVERYTHING)
        assert torch.equal(itself, torch.diag(torch.tensor([1.0, 1.0, 0.0])))  # empty is like nothing, not itself

    def test_equals_the_definition(self):
        for as_torch in [False, True]:
            draw = np.random.default_rng(0)
            images, texts = (
                draw.integers(0, 5, (11, 7)),
                draw.integers(0, 4, (23, 7)) * draw.integers(0, 2, (23, 1)),
            )
            texts[0, 0] = 100_000  # costs one more level, not as many as it counts
            facts = {"image": images, "text": texts}
            relevance = FactRelevance(*(map(torch.from_numpy, (images, texts)) if as_torch else (images, texts)))
            for query in facts:
                for gallery in facts:
                    smaller = np.minimum(facts[query][:, None], facts[gallery]).sum(2)
                    greater = np.maximum(facts[query][:, None], facts[gallery]).sum(2)
                    expected = np.where(greater > 0, smaller / np.maximum(greater, 1), 0)
                    found = relevance.rows(query, gallery, EVERYTHING)
                    assert found.dtype == torch.float32
                    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
                    assert torch.equal(relevance.rows(query, gallery, slice(3, 8)), found[3:8])

    def test_fingerprint_is_of_the_content(self):
        base = FactRelevance(self.images, self.texts).fingerprint
        assert len(base) == 64
        assert FactRelevance(self.images.astype(np.int32), torch.from_numpy(self.texts)).fingerprint == base
        changed = self.texts.copy()
        changed[0, 0] += 1
        assert FactRelevance(self.images, changed).fingerprint != base
        assert FactRelevance(np.concatenate((self.images, self.texts[:1])), self.texts[1:]).fingerprint != base

    def test_without_any_fact(self):
        relevance = FactRelevance(np.zeros((2, 0), int), np.zeros((3, 4), int)[:, :0])
        assert torch.equal(relevance.rows("text", "image", slice(0, 2)), torch.zeros(2, 2))

    def test_errors(self):
        for images, message in [
            (np.array([[-1, 0, 0]]), "image_facts must not be negative, found -1"),
            (np.array([[0.5, 0, 0]]), "integers"),
            (np.array([1, 0, 0]), "integers"),
            (np.array([[1, 0]]), "image_facts have 2 facts, text_facts 3"),
        ]:
            with pytest.raises(ValueError, match=message):
                FactRelevance(images, self.texts)


class TestRougeL:
    def test_by_hand_the_two_maxima_are_independent(self):
        captions = ["a b c d", "a b c d e f g h", "x d"]
        # Candidate 0 against {1, 2}: LCS 4 and 1; P = 4/4 (reference 1), R = max(4/8, 1/2) = 1/2.
        relevance = RougeLRelevance(captions, [0, 1, 1], 2)
        expected = (1 + 1.44) * 1 * 0.5 / (0.5 + 1.44 * 1)
        found = relevance.rows("text", "image", EVERYTHING)
        assert found[0].tolist() == pytest.approx([1.0, expected])
        # Candidate 2 against {0}: LCS 1; P = 1/2, R = 1/4. With P and R swapped it would be 0.355.
        assert found[2].tolist() == pytest.approx([2.44 * 0.125 / (0.25 + 1.44 * 0.5), 1.0])

    def test_maxima_from_different_references(self):
        # P comes from the long reference (3/4), R from the short one (1/1).
        found = rouge_l([list("abcd"), list("abcxyzuvw"), ["d"]], np.array([0, 1, 1]), 2)
        assert found[0, 1] == pytest.approx(2.44 * 0.75 / (1 + 1.44 * 0.75))

    @pytest.mark.parametrize(("seed", "longest"), [(0, 14), (1, 14), (2, 90)])  # one word of 64 bits is too short
    def test_equals_the_literal_definition(self, seed, longest, monkeypatch):
        monkeypatch.setattr(module, "_ROW_CHUNK", 7)
        captions, index = drawn_captions(seed=seed, longest=longest, images=9 if longest < 64 else 4)
        images = max(index) + 1
        relevance = RougeLRelevance(captions, index, images)
        found = relevance.rows("text", "image", EVERYTHING)
        assert found.dtype == torch.float32
        assert longest < 64 or max(len(caption.split()) for caption in captions) > 64
        torch.testing.assert_close(found, literal(captions, index, images), rtol=1e-6, atol=1e-6)

    def test_more_than_255_tokens_and_many_words(self):
        captions = [" ".join(f"w{n}" for n in range(300)), " ".join(f"w{n}" for n in range(0, 300, 3))]
        found = RougeLRelevance(captions, [0, 1], 2).rows("text", "image", EVERYTHING)
        torch.testing.assert_close(found, literal(captions, [0, 1], 2), rtol=1e-6, atol=1e-6)

    def test_a_vocabulary_beyond_the_surrogates(self):
        words = [f"{n}" for n in range(60_000)]  # code points from 0xD800 on have to jump the surrogates
        found = rouge_l([words, words[::2]], np.array([0, 1]), 2)
        assert found[1, 0] == pytest.approx(2.44 * 0.5 / (0.5 + 1.44))

    def test_the_four_pairs_of_modalities(self):
        captions, index = drawn_captions(seed=4)
        index = torch.tensor(index)
        images = int(index.max()) + 1
        relevance = RougeLRelevance(captions, index, images)
        scores = relevance.rows("text", "image", EVERYTHING)
        torch.testing.assert_close(relevance.rows("image", "text", EVERYTHING), scores.T)
        text_text = relevance.rows("text", "text", EVERYTHING)
        image_image = relevance.rows("image", "image", EVERYTHING)
        for c in range(len(captions)):
            for other in range(len(captions)):
                assert text_text[c, other] == scores[c, index[other]]
        assert (text_text[index[:, None] == index] == 1).all()  # siblings
        for i in range(images):
            torch.testing.assert_close(image_image[i], scores[index == i].mean(0))
        for query, whole in (("text", text_text), ("image", image_image), ("image", scores.T)):
            gallery = "text" if len(captions) == whole.shape[1] else "image"
            for cut in (slice(0, 2), slice(2, 5), slice(5, None)):
                torch.testing.assert_close(relevance.rows(query, gallery, cut), whole[cut])

    def test_tokenizers(self):
        caption = "A man's hat -  “red”, isn't it?"
        assert tokenize([caption]) == [["a", "mans", "hat", "red", "isnt", "it"]]
        assert tokenize([caption], "tern") == [["a", "man's", "hat", "-", "", "“red”,", "isn't", "it?"]]
        pair = ["A dog.", "a dog"]
        assert RougeLRelevance(pair, [0, 1], 2).rows("text", "image", EVERYTHING)[0, 1] == 1
        assert RougeLRelevance(pair, [0, 1], 2, tokenizer="tern").rows("text", "image", EVERYTHING)[0, 1] < 1

    def test_scripts_without_blanks_are_taken_by_character(self):
        for caption, tokens in [
            ("一只猫，in a T恤。", ["一", "只", "猫", "in", "a", "t", "恤"]),
            ("カメラを持つ ﾈｺ、々", ["カ", "メ", "ラ", "を", "持", "つ", "ﾈ", "ｺ", "々"]),
            ("กำลังขี่ม้า", ["ก", "ำ", "ลั", "ง", "ขี่", "ม้", "า"]),  # marks stay with their letter
            ("ភាសា\u200bខ្មែរ", ["ភា", "សា", "ខ្", "មែ", "រ"]),  # Khmer puts a blank without width between words
            ("မြန်မာ", ["မြ", "န်", "မာ"]),
            ("ລາວ", ["ລ", "າ", "ວ"]),
            ("강아지 두 마리, ein Hündchen", ["강아지", "두", "마리", "ein", "hündchen"]),
        ]:
            assert tokenize([caption]) == [tokens]

    def test_kind_and_fingerprint_depend_on_the_tokenisation(self):
        """Of captions in English nothing changed, down to the fingerprint, which is the name of the cached file."""
        english = RougeLRelevance(["a dog", "a cat"], [0, 1], 2)
        assert english.kind == "rouge-l stripped"
        as_ever = ["rouge-l", "stripped", 2, [0, 1], ["a dog", "a cat"]]
        assert english.fingerprint == hashlib.sha256(json.dumps(as_ever).encode()).hexdigest()
        chinese = RougeLRelevance(["一只狗", "一只猫"], [0, 1], 2)
        assert chinese.rows("text", "image", EVERYTHING)[0, 1] == pytest.approx(2 / 3)
        assert chinese.kind == "rouge-l stripped, by character where a script has no blanks"
        as_before = ["rouge-l", "stripped", 2, [0, 1], ["一只狗", "一只猫"]]
        assert chinese.fingerprint != hashlib.sha256(json.dumps(as_before).encode()).hexdigest()
        assert RougeLRelevance(["一只狗", "一只猫"], [0, 1], 2, tokenizer="tern").kind == "rouge-l tern"

    def test_an_empty_caption_is_relevant_to_nothing(self):
        found = RougeLRelevance(["...", "a dog", "a cat"], [0, 1, 1], 2).rows("text", "image", EVERYTHING)
        assert found.tolist() == [[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]

    def test_fingerprint_is_of_the_content(self):
        variants = [
            RougeLRelevance(["a", "b"], [0, 1], 2),
            RougeLRelevance(["a", "c"], [0, 1], 2),
            RougeLRelevance(["a", "b"], [1, 0], 2),
            RougeLRelevance(["a", "b"], [0, 1], 2, tokenizer="tern"),
            RougeLRelevance(["a", "b"], [0, 0], 1),
        ]
        assert len({variant.fingerprint for variant in variants}) == len(variants)
        assert RougeLRelevance(["a", "b"], torch.tensor([0, 1]), 2).fingerprint == variants[0].fingerprint

    def test_errors(self):
        with pytest.raises(ValueError, match="2 images have no caption, the first is image 1"):
            RougeLRelevance(["a", "b"], [0, 2], 4)
        with pytest.raises(ValueError, match=r"in \[0, 2\), found 0 to 2"):
            RougeLRelevance(["a", "b"], [0, 2], 2)
        with pytest.raises(ValueError, match="2 captions have an image index of shape"):
            RougeLRelevance(["a", "b"], [0], 1)
        with pytest.raises(ValueError, match="not 'bert'"):
            RougeLRelevance(["a"], [0], 1, tokenizer="bert")


class TestCache:
    captions, index = drawn_captions(seed=7)
    images = max(index) + 1

    def build(self, cache):
        return RougeLRelevance(self.captions, self.index, self.images, cache=cache)

    def test_is_written_once_and_read_afterwards(self, tmp_path, monkeypatch):
        first = self.build(tmp_path / "new")
        (file,) = (tmp_path / "new").iterdir()  # and nothing temporary besides
        assert file.name == f"rouge_l-{first.fingerprint}.npy"

        def never(*args, **kwargs):
            raise AssertionError("computed again")

        monkeypatch.setattr(module, "rouge_l", never)
        second = self.build(tmp_path / "new")
        assert torch.equal(first.rows("text", "image", EVERYTHING), second.rows("text", "image", EVERYTHING))

    @pytest.mark.parametrize("damage", ["cut", "empty", "text", "shape", "type", "nan", "pickle"])
    def test_damaged_file_is_recomputed(self, tmp_path, damage):
        expected = self.build(tmp_path).rows("text", "image", EVERYTHING)
        (file,) = tmp_path.iterdir()
        content = file.read_bytes()
        match damage:
            case "cut":
                file.write_bytes(content[:-40])
            case "empty":
                file.write_bytes(b"")
            case "text":
                file.write_text("not an array")
            case "shape":
                np.save(file, expected.T.numpy())
            case "type":
                np.save(file, expected.double().numpy())
            case "nan":
                np.save(file, expected.numpy() * np.float32("nan"))
            case "pickle":
                np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        assert torch.equal(self.build(tmp_path).rows("text", "image", EVERYTHING), expected)
        assert file.read_bytes() == content  # and mended
