from pathlib import Path

import pytest
import torch
from tokenizers import BertWordPieceTokenizer

from sdr_lightning.data.scenes import SceneSource, vocabulary
from sdr_lightning.data.tokenizer import PretrainedTokenizer, SceneTokenizer, take, tokenised, trimmed
from sdr_lightning.types import Tokens

PAD, UNKNOWN, START, END = 0, 1, 2, 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "run", "##s"]


def test_every_word_of_a_scene_is_known() -> None:
    captions = SceneSource(num_train=300, num_val=1, num_test=1, size=16).table("train").captions
    tokenizer = SceneTokenizer(max_tokens=100)
    tokens = tokenizer([*captions, *vocabulary()])
    assert not (tokens.input_ids == UNKNOWN).any()
    words = [len(text.split()) + 2 for text in (*captions, *vocabulary())]
    assert tokens.attention_mask.sum(dim=1).tolist() == words
    assert tokenizer.vocabulary_size == len(vocabulary()) + 5  # special ones and [MASK]
    assert int(tokens.input_ids.max()) == tokenizer.vocabulary_size - 2


def test_default_length_holds_every_scene() -> None:
    captions = SceneSource(num_train=300, num_val=1, num_test=1, size=16).table("train").captions
    longest = max(len(text.split()) + 2 for text in captions)
    assert SceneTokenizer()(captions).input_ids.shape == (len(captions), longest)


def test_scene_tokens() -> None:
    tokens = SceneTokenizer()(["a red circle", "red", "a dodecahedron"])
    a, red, circle = (4 + vocabulary().index(word) for word in ("a", "red", "circle"))
    assert tokens.input_ids.tolist() == [
        [START, a, red, circle, END],
        [START, red, END, PAD, PAD],
        [START, a, UNKNOWN, END, PAD],
    ]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]
    assert tokens.input_ids.dtype == tokens.attention_mask.dtype == torch.int64


def test_a_masked_word_is_one_token() -> None:
    tokens = SceneTokenizer()(["a [MASK] circle"])
    assert tokens.input_ids[0].tolist() == [
        START,
        4 + vocabulary().index("a"),
        SceneTokenizer().vocabulary_size - 1,
        4 + vocabulary().index("circle"),
        END,
    ]


def test_tokens_are_kept_and_found_again(tmp_path: Path) -> None:
    captions = ["a red circle", "", "a dodecahedron"]
    first = tokenised(SceneTokenizer(), captions, tmp_path)
    assert not any(tmp_path.iterdir())
    tokenised(SceneTokenizer(), captions, tmp_path, write=True)
    (file,) = tmp_path.rglob("*.safetensors")
    file.rename(file.with_suffix(".moved"))
    for tokenizer, texts in ((SceneTokenizer(max_tokens=3), captions), (SceneTokenizer(), captions[:2])):
        tokenised(tokenizer, texts, tmp_path, write=True)  # another length or other captions: another file
    file.with_suffix(".moved").rename(file)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    again = tokenised(SceneTokenizer(), captions, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_long_captions_are_cut() -> None:
    tokens = SceneTokenizer(max_tokens=4)(["a red circle at the top", "red"])
    assert tokens.input_ids.shape == (2, 4)
    assert tokens.input_ids[:, 0].tolist() == [START, START]
    assert tokens.input_ids[0, -1] == END


def test_a_word_must_fit() -> None:
    with pytest.raises(ValueError, match=r"max_tokens must be at least 3 .* got 2"):
        SceneTokenizer(max_tokens=2)


def test_trimmed_keeps_all_tokens_of_the_longest() -> None:
    tokens = Tokens(
        torch.tensor([[2, 9, 3, 0, 0, 0], [2, 9, 9, 3, 0, 0]]),
        torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]),
    )
    short = trimmed(tokens)
    assert short.input_ids.tolist() == [[2, 9, 3, 0], [2, 9, 9, 3]]
    assert short.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_take_is_tokenising_the_captions_taken() -> None:
    captions = ["a red circle", "red", "a small blue square at the top left", "a thing"]
    tokenizer = SceneTokenizer()
    for rows in ([1], [3, 0], [2, 1, 2]):
        taken, expected = take(tokenizer(captions), torch.tensor(rows)), tokenizer([captions[r] for r in rows])
        assert torch.equal(taken.input_ids, expected.input_ids)
        assert torch.equal(taken.attention_mask, expected.attention_mask)


@pytest.fixture
def vocabulary_file(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def test_word_pieces_from_a_file(vocabulary_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORDS_AT", str(vocabulary_file.parent))
    tokenizer = PretrainedTokenizer("$WORDS_AT/vocab.txt", max_tokens=6)
    assert tokenizer.vocabulary_size == len(WORDS)
    tokens = tokenizer(["A Dog runs", "a cat", "a a a a a a a"])
    expected = [[2, 5, 6, 7, 8, 3], [2, 5, 1, 3, 0, 0], [2, 5, 5, 5, 5, 3]]
    assert tokens.input_ids.tolist() == expected


def test_word_pieces_are_those_of_berts_own_tokenizer(vocabulary_file: Path) -> None:
    captions = ["A DOG  runs, a [MASK]", "Á dög runs", "a一dog\t\x00a", "", "[SEP] dogs runsa", "dog" * 40]
    reference = BertWordPieceTokenizer(str(vocabulary_file), lowercase=True)
    tokens = PretrainedTokenizer(str(vocabulary_file))(captions)
    for ids, mask, encoded in zip(*tokens, reference.encode_batch(captions), strict=True):
        assert ids[mask.bool()].tolist() == encoded.ids


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a\ndog\n[PAD]\n")
    with pytest.raises(
        ValueError, match=r"words\.txt has no \[UNK\], \[SEP\], \[CLS\], \[MASK\]: expected a WordPiece"
    ):
        PretrainedTokenizer(str(tmp_path / "words.txt"))(["a"])


def test_a_saved_tokenizer_from_a_folder(vocabulary_file: Path, tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(str(vocabulary_file))
    tokenizer.tokenizer.save_pretrained(tmp_path / "saved")
    again = PretrainedTokenizer(str(tmp_path / "saved"))
    captions = ["a dog runs", "a"]
    assert torch.equal(again(captions).input_ids, tokenizer(captions).input_ids)


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"tokenizer .*set data\.init_args\.tokenizer\.init_args\.weights to a local"
    ) as e:
        PretrainedTokenizer(str(tmp_path / "absent"))(["a"])
    assert str(tmp_path / "absent") in str(e.value)
    assert "\n" not in str(e.value)


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORDS_AT", raising=False)
    with pytest.raises(ValueError, match="environment variable WORDS_AT"):
        PretrainedTokenizer("$WORDS_AT/vocab.txt")(["a"])
