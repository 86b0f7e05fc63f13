import json
import multiprocessing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from sdr_lightning.data.images import Pixels
from sdr_lightning.data.imbalance import Imbalance, Imbalanced, Level, NoiseTable, imbalanced
from tests.data.collection import COUNTS, make_table
from tests.data.imbalance import image_of_caption, shuffled, worded, words_of_caption

TABLE = worded((3, 1, 2, 5, 2, 4, 1, 2) * 5, words=8)
ROWS = range(len(TABLE.image_ids))
MISMATCH = Imbalance("mismatch", 0.5, seed=1)
WORDS = Imbalance("drop_words", 0.5, severity=3, seed=2)
BLUR = Imbalance("blur", 0.5, severity=4, seed=3)
NOISE = Imbalance("gaussian_noise", 0.5, severity=2)
BLANK = Imbalance("missing", 0.3, "image")
EMPTY = Imbalance("missing", 0.3, "text")
STACK = [MISMATCH, WORDS, BLUR]
EVERY_SORT = [MISMATCH, replace(MISMATCH, level="caption"), WORDS, replace(WORDS, level="image"), BLUR, BLANK, EMPTY]


def picture(image_id: str) -> Pixels:
    """An image of its own for each id."""
    generator = np.random.default_rng(list(image_id.encode()))
    return generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def pictures(state: Imbalanced) -> dict[str, bytes]:
    """What each image shows now, by id."""
    ids = state.table.image_ids
    return {name: state.image(row, picture(name)).tobytes() for row, name in enumerate(ids)}


def changed_images(state: Imbalanced) -> set[int]:
    return {row for row in range(len(state.table.image_ids)) if state.changes_image(row)}


def digest(stack: list[Imbalance]) -> str:
    """All that a stack does to the table, its pictures and their contents."""
    state = imbalanced(TABLE, stack)
    parts = [state.table.fingerprint.encode(), state.image_content.tobytes(), *pictures(state).values()]
    return sha256(b"".join([*parts, json.dumps(state.realised.record()).encode()])).hexdigest()


def test_inactive_corruptions_change_nothing() -> None:
    for stack in [
        [],
        [Imbalance()],
        [Imbalance("mismatch"), Imbalance("blur"), Imbalance("typos")],
    ]:
        state = imbalanced(TABLE, stack)
        assert state.table.fingerprint == TABLE.fingerprint
        np.testing.assert_array_equal(state.image_content, TABLE.image_content)
        assert changed_images(state) == set()
        assert state.realised.wrong_captions_per_image == {0: 40}
        assert state.realised.record()["imbalances"] == []


def test_corruptions_choose_items_independently() -> None:
    together = imbalanced(TABLE, STACK)
    pairs, words, blur = (imbalanced(TABLE, [part]) for part in STACK)
    np.testing.assert_array_equal(together.table.caption_image, pairs.table.caption_image)
    assert together.table.captions == words.table.captions
    np.testing.assert_array_equal(together.image_content, blur.image_content)
    assert pictures(together) == pictures(blur)
    alone = [state.realised.parts[0].sha256 for state in (pairs, words, blur)]
    assert [part.sha256 for part in together.realised.parts] == alone


def test_corruption_changes_its_own_modality_only() -> None:
    for imbalance in EVERY_SORT:
        state = imbalanced(TABLE, [imbalance])
        assert (state.table.captions != TABLE.captions) == (imbalance.modality == "text")
        assert (state.table.caption_image != TABLE.caption_image).any() == (imbalance.modality == "pair")
        assert (state.image_content != TABLE.image_content).any() == (imbalance.modality == "image")
        assert state.table.image_ids == TABLE.image_ids
        assert state.table.caption_ids == TABLE.caption_ids
        assert (state.table.name, state.table.split) == (TABLE.name, TABLE.split)


def test_the_clean_table_is_left_alone() -> None:
    clean = make_table()
    pairing, content = clean.caption_image.copy(), clean.image_content.copy()
    imbalanced(clean, [MISMATCH, replace(WORDS, ratio=1.0), replace(BLUR, ratio=1.0)])
    np.testing.assert_array_equal(clean.caption_image, pairing)
    np.testing.assert_array_equal(clean.image_content, content)
    assert clean.fingerprint == make_table().fingerprint


def test_images_are_chosen_for_words_by_their_clean_captions() -> None:
    """A mismatch before it in the stack moves no caption out of the choice."""
    words = replace(WORDS, level="image")
    assert imbalanced(TABLE, [MISMATCH, words]).table.captions == imbalanced(TABLE, [words]).table.captions


def test_caption_corruptions_are_applied_in_order() -> None:
    mask = Imbalance("mask_words", 1.0, severity=2)
    both = imbalanced(TABLE, [mask, Imbalance("truncate", 1.0)]).table.captions
    masked = imbalanced(TABLE, [mask]).table.captions
    assert list(both) == [" ".join(caption.split()[:2]) for caption in masked]


def test_the_later_of_two_mismatches_counts() -> None:
    first, second = replace(MISMATCH, seed=5), replace(MISMATCH, seed=6)
    one, two, both = (imbalanced(TABLE, s).table.caption_image for s in ([first], [second], [first, second]))
    np.testing.assert_array_equal(both, np.where(two != TABLE.caption_image, two, one))
    assert len({pairing.tobytes() for pairing in (one, two, both)}) == 3


def test_image_corruptions_are_applied_in_order() -> None:
    cover, noise = Imbalance("occlusion", 1.0, severity=1), replace(NOISE, ratio=1.0)
    both, first, second = (imbalanced(TABLE, s) for s in ([cover, noise], [cover], [noise]))
    covered = first.image(3, picture("i3"))
    np.testing.assert_array_equal(both.image(3, picture("i3")), second.image(3, covered))
    assert len(set(both.image_content) | set(first.image_content) | set(second.image_content)) == 3 * len(ROWS)


def test_only_the_chosen_images_are_changed() -> None:
    chosen = set(NOISE.choose(TABLE).tolist())
    state = imbalanced(TABLE, [NOISE])
    assert changed_images(state) == chosen
    for row in ROWS:
        pixels = picture(f"i{row}")
        assert (state.image(row, pixels) != pixels).any() == (row in chosen)
        np.testing.assert_array_equal(pixels, picture(f"i{row}"))


def test_the_content_changes_for_changed_images_alone_and_at_every_ratio_alike() -> None:
    for imbalance in [BLUR, NOISE, BLANK]:
        few, many = (imbalanced(TABLE, [replace(imbalance, ratio=ratio)]) for ratio in (0.2, 0.7))
        for state in (few, many):
            assert set(np.flatnonzero(state.image_content != TABLE.image_content).tolist()) == changed_images(state)
        rows = sorted(changed_images(few))
        assert len(rows) == 8
        np.testing.assert_array_equal(few.image_content[rows], many.image_content[rows])
        for row in rows:
            np.testing.assert_array_equal(few.image(row, picture(f"i{row}")), many.image(row, picture(f"i{row}")))


def test_content_depends_on_kind_severity_and_seed() -> None:
    whole = replace(NOISE, ratio=1.0)
    others = [whole, replace(whole, seed=1), replace(whole, severity=3), replace(whole, kind="low_light")]
    contents = [imbalanced(TABLE, [other]).image_content.tolist() for other in others]
    assert len(set(sum(contents, TABLE.image_content.tolist()))) == 5 * len(ROWS)


def test_content_is_a_function_of_the_image_and_not_of_its_row() -> None:
    here, there = (imbalanced(table, [BLUR]) for table in (TABLE, shuffled(TABLE)))
    by_id = [dict(zip(s.table.image_ids, s.image_content.tolist(), strict=True)) for s in (here, there)]
    assert by_id[0] == by_id[1]


def test_the_order_of_reading_does_not_matter() -> None:
    for imbalance in EVERY_SORT:
        here, there = (imbalanced(table, [*STACK, NOISE, imbalance]) for table in (TABLE, shuffled(TABLE)))
        assert image_of_caption(here.table) == image_of_caption(there.table)
        assert words_of_caption(here.table) == words_of_caption(there.table)
        assert pictures(here) == pictures(there)


@pytest.mark.slow
def test_corruption_is_the_same_in_every_process() -> None:
    """Fresh interpreters, whose built-in hashes differ."""
    stack = [*STACK, NOISE, EMPTY]
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=1) as pool:
        assert pool.map(digest, [stack, stack], chunksize=1) == [digest(stack)] * 2


def test_corruptions_of_other_splits_are_ignored() -> None:
    for split in ["train", "val", "test"]:
        for splits in [("train",), ("val", "test"), ("train", "val", "test")]:
            table = replace(TABLE, split=split)
            state = imbalanced(table, [replace(NOISE, splits=splits), replace(WORDS, splits=splits)])
            assert bool(changed_images(state)) == (split in splits)
            assert (state.table.captions != table.captions) == (split in splits)
            assert len(state.realised.parts) == (2 if split in splits else 0)


def test_impossible_mismatch_of_another_split_is_ignored() -> None:
    single = make_table((2,), split="val")
    assert imbalanced(single, [MISMATCH]).table.fingerprint == single.fingerprint


def test_the_realised_record_is_plain_and_complete() -> None:
    record = imbalanced(TABLE, [*STACK, replace(NOISE, splits=("val",))]).realised.record()
    plain = json.loads(json.dumps(record))
    assert [part["kind"] for part in plain["imbalances"]] == ["mismatch", "drop_words", "blur"]
    assert [part["of"] for part in plain["imbalances"]] == [40, 100, 40]
    assert [part["affected"] for part in plain["imbalances"]] == [20, 50, 20]
    assert sum(plain["wrong_captions_per_image"].values()) == 40
    assert plain["sha256"] == record["sha256"]


def test_the_realised_hash_tells_what_was_done_and_nothing_else() -> None:
    stacks = [
        [],
        *([imbalance] for imbalance in EVERY_SORT),
        STACK,
        [replace(BLUR, seed=9)],
        [replace(BLUR, severity=1)],
    ]
    hashes = [imbalanced(TABLE, stack).realised.sha256 for stack in stacks]
    assert len(set(hashes)) == len(stacks)
    assert imbalanced(TABLE, [replace(MISMATCH, severity=1)]).realised.sha256 == hashes[1]  # which has no degrees
    assert imbalanced(replace(TABLE, name="elsewhere"), []).realised.sha256 not in hashes


@pytest.mark.parametrize(("level", "suffix"), [("image", ".npz"), ("image", ".npy"), ("caption", ".npy")])
def test_file_reproduces_the_pairing_of_its_specification(level: Level, suffix: str, tmp_path: Path) -> None:
    imbalance, path = replace(MISMATCH, level=level), tmp_path / f"noise{suffix}"
    NoiseTable.draw(TABLE, imbalance).save(path)
    drawn, read = imbalanced(TABLE, [imbalance]), imbalanced(TABLE, [Imbalance(file=str(path))])
    assert drawn.realised.sha256 == read.realised.sha256
    assert drawn.realised.wrong_captions_per_image == read.realised.wrong_captions_per_image


def test_npz_file_reproduces_its_specification(tmp_path: Path) -> None:
    for imbalance in [WORDS, replace(WORDS, level="image"), BLUR, NOISE, BLANK, EMPTY]:
        NoiseTable.draw(TABLE, imbalance).save(tmp_path / "noise.npz")
        drawn = imbalanced(TABLE, [imbalance])
        read = imbalanced(TABLE, [Imbalance(file=str(tmp_path / "noise.npz"))])
        assert drawn.realised.sha256 == read.realised.sha256
        assert pictures(drawn) == pictures(read)


def test_files_stack_with_specifications(tmp_path: Path) -> None:
    NoiseTable.draw(TABLE, MISMATCH).save(tmp_path / "noise.npy")
    read = imbalanced(TABLE, [Imbalance(file=str(tmp_path / "noise.npy")), WORDS, BLUR])
    assert read.realised.sha256 == imbalanced(TABLE, STACK).realised.sha256


def test_a_file_may_be_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    NoiseTable.draw(TABLE, MISMATCH).save(tmp_path / "noise.npz")
    monkeypatch.setenv("SDR_TEST_NOISE", str(tmp_path))
    read = imbalanced(TABLE, [Imbalance(file="${SDR_TEST_NOISE}/noise.npz")])
    assert read.realised.sha256 == imbalanced(TABLE, [MISMATCH]).realised.sha256


def test_a_file_s_splits_are_those_of_the_configuration(tmp_path: Path) -> None:
    NoiseTable.draw(TABLE, MISMATCH).save(tmp_path / "noise.npy")
    val = replace(TABLE, split="val")
    file = Imbalance(file=str(tmp_path / "noise.npy"))
    assert imbalanced(val, [file]).table.fingerprint == val.fingerprint
    state = imbalanced(val, [replace(file, splits=("val",))])
    assert state.realised.parts[0].imbalance.splits == ("val",)
    np.testing.assert_array_equal(state.table.caption_image, imbalanced(TABLE, [MISMATCH]).table.caption_image)


def test_a_file_cannot_mismatch_the_test_split(tmp_path: Path) -> None:
    for splits in [("test",), ("val", "test")]:
        NoiseTable.draw(TABLE, MISMATCH).save(tmp_path / "noise.npy")
        file = Imbalance(file=str(tmp_path / "noise.npy"), splits=splits)
        with pytest.raises(ValueError, match="a mismatched test split has no truth to measure against"):
            imbalanced(replace(TABLE, split="test"), [file])


def test_a_file_may_corrupt_the_test_split(tmp_path: Path) -> None:
    table = replace(TABLE, split="test")
    NoiseTable.draw(table, replace(NOISE, splits=("test",))).save(tmp_path / "noise.npz")
    state = imbalanced(table, [Imbalance(file=str(tmp_path / "noise.npz"), splits=("test",))])
    assert changed_images(state) == set(NOISE.choose(table).tolist())


def test_features_can_be_missing() -> None:
    features = np.random.default_rng(0).standard_normal((36, 8)).astype(np.float32)
    state = imbalanced(TABLE, [BLANK])
    changed = changed_images(state)
    assert len(changed) == 12
    for row in ROWS:
        result = state.image(row, features)
        np.testing.assert_array_equal(result, np.zeros((36, 8)) if row in changed else features)
        assert result.dtype == np.float32
    assert features.all()


def test_features_cannot_be_corrupted_otherwise() -> None:
    features = np.ones((36, 8), dtype=np.float32)
    state = imbalanced(TABLE, [BLUR])
    changed = changed_images(state)
    for row in ROWS:
        if row in changed:
            with pytest.raises(
                ValueError, match="blur is done to pixels, and this collection has features: use missing"
            ):
                state.image(row, features)
        else:
            assert state.image(row, features) is features


def test_sets_of_other_sizes_are_counted_where_they_arrive() -> None:
    state = imbalanced(make_table(), [Imbalance("mismatch", 1.0)])
    assert sorted(np.bincount(state.table.caption_image).tolist()) == sorted(COUNTS)
    assert state.realised.wrong_captions_per_image == {1: 2, 2: 3, 3: 1, 4: 1, 5: 1}
