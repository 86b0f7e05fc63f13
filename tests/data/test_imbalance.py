import json
from dataclasses import replace

import numpy as np
import pytest

from sdr_lightning.data.imbalance import (
    KINDS,
    Imbalance,
    Kind,
    chosen,
    imbalanced,
    noisy_images,
    noisy_pixels,
)
from sdr_lightning.data.table import CaptionTable
from tests.data.collection import COUNTS, make_table

IDS = [f"image {i}.jpg" for i in range(1000)]
CHANGING: tuple[Kind, ...] = ("mismatch", "missing_words", "gaussian_noise")
TABLE = make_table((5,) * 30)
GREY = np.full((64, 64, 3), 128, dtype=np.uint8)


def captions_of(table: CaptionTable) -> dict[str, list[str]]:
    """Caption ids by image id."""
    found: dict[str, list[str]] = {name: [] for name in table.image_ids}
    for name, image in zip(table.caption_ids, table.caption_image, strict=True):
        found[table.image_ids[image]].append(name)
    return {image: sorted(names) for image, names in found.items()}


def shuffled(table: CaptionTable, seed: int) -> CaptionTable:
    """The same collection read in another order."""
    generator = np.random.default_rng(seed)
    images, captions = generator.permutation(len(table.image_ids)), generator.permutation(len(table.captions))
    return replace(
        table,
        image_ids=[table.image_ids[i] for i in images],
        captions=[table.captions[c] for c in captions],
        caption_ids=[table.caption_ids[c] for c in captions],
        caption_image=np.argsort(images)[table.caption_image[captions]],
    )


@pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.001, 1), (0.3, 300), (0.4567, 457), (1, 1000)])
def test_chosen_counts_exactly(ratio: float, count: int) -> None:
    rows = chosen(IDS, Imbalance("mismatch", ratio))
    assert len(rows) == len(set(rows.tolist())) == count
    assert rows.dtype == np.int64


@pytest.mark.parametrize("kind", CHANGING)
def test_chosen_is_nested_in_the_ratio(kind: Kind) -> None:
    previous: set[int] = set()
    for ratio in (0.1, 0.2, 0.5, 0.9, 1.0):
        rows = set(chosen(IDS, Imbalance(kind, ratio, seed=3)).tolist())
        assert previous < rows
        previous = rows


def test_chosen_does_not_depend_on_the_order_of_ids() -> None:
    imbalance = Imbalance("mismatch", 0.3, seed=1)
    backwards = IDS[::-1]
    assert [IDS[r] for r in chosen(IDS, imbalance)] == [backwards[r] for r in chosen(backwards, imbalance)]


def test_chosen_depends_on_seed_and_kind_but_not_on_severity() -> None:
    def share(a: Imbalance, b: Imbalance) -> float:
        return len(set(chosen(IDS, a).tolist()) & set(chosen(IDS, b).tolist())) / 500

    base = Imbalance("gaussian_noise", 0.5, severity=5)
    assert share(base, replace(base, severity=1)) == 1
    # Independent halves overlap by half.
    assert 0.4 < share(base, replace(base, seed=1)) < 0.6
    assert 0.4 < share(base, replace(base, kind="mismatch")) < 0.6


def test_chosen_is_the_same_on_every_machine() -> None:
    rows = chosen([f"{i}.jpg" for i in range(20)], Imbalance("mismatch", 0.25, seed=7))
    assert rows.tolist() == [2, 17, 6, 5, 1]  # another answer would change every published number


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_mismatch(ratio: float, seed: int) -> None:
    imbalance = Imbalance("mismatch", ratio, seed=seed)
    changed, realised = imbalanced(TABLE, imbalance)
    rows = set(chosen(list(TABLE.image_ids), imbalance).tolist())
    before, after = captions_of(TABLE), captions_of(changed)
    for row, name in enumerate(TABLE.image_ids):
        if row in rows:
            assert not set(before[name]) & set(after[name])
            assert after[name] in before.values()  # a whole set, of a single other image
        else:
            assert after[name] == before[name]
    assert sorted(after.values()) == sorted(before.values())  # nobody's captions are lost or doubled
    assert (changed.image_ids, changed.captions, changed.caption_ids) == (
        TABLE.image_ids,
        TABLE.captions,
        TABLE.caption_ids,
    )
    n = round(30 * ratio)
    assert (realised.affected, realised.of, realised.ratio) == (n, 30, n / 30)
    assert realised.wrong_captions_per_image == {k: v for k, v in ((0, 30 - n), (5, n)) if v}


def test_mismatch_moves_sets_of_any_size() -> None:
    changed, realised = imbalanced(make_table(), Imbalance("mismatch", 1.0))
    assert sorted(np.bincount(changed.caption_image).tolist()) == sorted(COUNTS)
    # Image i gets as many wrong captions as its donor has.
    assert realised.wrong_captions_per_image == {1: 2, 2: 3, 3: 1, 4: 1, 5: 1}


def test_mismatch_of_a_single_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory train: a mismatch needs at least two chosen images"):
        imbalanced(TABLE, Imbalance("mismatch", 1 / 30))


@pytest.mark.parametrize("kind", CHANGING)
@pytest.mark.parametrize("seed", [0, 1])
def test_nothing_depends_on_the_order_of_reading(kind: Kind, seed: int) -> None:
    imbalance = Imbalance(kind, 0.5, severity=3, seed=seed)
    there, here = imbalanced(shuffled(TABLE, 9), imbalance)[0], imbalanced(TABLE, imbalance)[0]
    assert captions_of(there) == captions_of(here)
    assert dict(zip(there.caption_ids, there.captions, strict=True)) == dict(
        zip(here.caption_ids, here.captions, strict=True)
    )
    mixed = shuffled(TABLE, 9)
    noisy = {mixed.image_ids[i] for i in np.flatnonzero(noisy_images(mixed, imbalance))}
    assert noisy == {TABLE.image_ids[i] for i in np.flatnonzero(noisy_images(TABLE, imbalance))}


@pytest.mark.parametrize("severity", [1, 5])
def test_missing_words(severity: int) -> None:
    long = replace(TABLE, captions=[" ".join(f"{c}w{k}" for k in range(12)) for c in range(len(TABLE.captions))])
    imbalance = Imbalance("missing_words", 0.4, severity, seed=2)
    changed, realised = imbalanced(long, imbalance)
    rows = set(chosen(list(long.caption_ids), imbalance).tolist())
    kept = 0
    for row, (before, after) in enumerate(zip(long.captions, changed.captions, strict=True)):
        if row not in rows:
            assert after == before
            continue
        words = iter(before.split())
        assert after
        assert all(word in words for word in after.split())  # a subsequence: nothing new, nothing moved
        kept += len(after.split())
    # 60 captions of 12 words, each dropped with probability 0.15 x severity; 5 standard deviations.
    probability = 0.15 * severity
    assert abs(kept / 720 - (1 - probability)) < 5 * np.sqrt(probability * (1 - probability) / 720)
    assert (realised.affected, realised.of) == (60, 150)
    np.testing.assert_array_equal(changed.caption_image, long.caption_image)
    assert realised.wrong_captions_per_image == {0: 30}


def test_missing_words_always_leave_one_and_not_always_the_same() -> None:
    short = replace(TABLE, captions=["one two"] * 150)
    changed, _ = imbalanced(short, Imbalance("missing_words", 1.0))
    assert set(changed.captions) == {"one", "two", "one two"}
    # Each alone with probability 0.75 x 0.25 + 0.75 x 0.75 / 2 = 0.47; were it always the first that stays, 0.75 and 0.19.
    assert all(55 < changed.captions.count(word) < 85 for word in ("one", "two"))
    single, _ = imbalanced(replace(TABLE, captions=["word"] * 150), Imbalance("missing_words", 1.0))
    assert set(single.captions) == {"word"}


def test_missing_words_drop_the_same_words_at_every_ratio() -> None:
    few, many = (imbalanced(TABLE, Imbalance("missing_words", ratio, 3))[0] for ratio in (0.2, 0.8))
    changed = [c for c, caption in enumerate(few.captions) if caption != TABLE.captions[c]]
    assert changed
    assert all(few.captions[c] == many.captions[c] for c in changed)


def test_noise_is_a_function_of_id_and_specification() -> None:
    noise = Imbalance("gaussian_noise", 0.5, 3, 1)
    first = noisy_pixels(GREY, "a", noise)
    np.random.default_rng(0).standard_normal(10)
    np.testing.assert_array_equal(noisy_pixels(GREY, "a", noise), first)
    np.testing.assert_array_equal(noisy_pixels(GREY, "a", replace(noise, ratio=0.9)), first)
    others = [
        noisy_pixels(GREY, "b", noise),
        noisy_pixels(GREY, "a", replace(noise, seed=2)),
        noisy_pixels(GREY, "a", replace(noise, severity=4)),
    ]
    assert all((other != first).mean() > 0.9 for other in others)
    assert (GREY == 128).all()  # the caller's pixels are left alone


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_noise_has_the_stated_strength(severity: int, sigma: float) -> None:
    noisy = noisy_pixels(GREY, "a", Imbalance("gaussian_noise", 1, severity))
    assert noisy.dtype == np.uint8
    assert noisy.std() == pytest.approx(255 * sigma, rel=0.05)
    assert noisy.mean() == pytest.approx(128, abs=2)


def test_noise_saturates_instead_of_wrapping() -> None:
    noise = Imbalance("gaussian_noise", 1, 1)  # sigma is 20 of 255
    assert noisy_pixels(np.full_like(GREY, 255), "a", noise).min() > 100
    assert noisy_pixels(np.zeros_like(GREY), "a", noise).max() < 155


def test_noise_leaves_the_table_alone_and_marks_images() -> None:
    noise = Imbalance("gaussian_noise", 0.3)
    changed, realised = imbalanced(TABLE, noise)
    assert changed.fingerprint == TABLE.fingerprint
    assert (realised.affected, realised.of) == (9, 30)
    assert sorted(np.flatnonzero(noisy_images(TABLE, noise))) == sorted(chosen(list(TABLE.image_ids), noise))
    assert not noisy_images(TABLE, Imbalance("mismatch", 0.5)).any()


@pytest.mark.parametrize("imbalance", [Imbalance(), *(Imbalance(kind) for kind in CHANGING), Imbalance("none", 0.5)])
def test_identity(imbalance: Imbalance) -> None:
    changed, realised = imbalanced(TABLE, imbalance)
    assert not imbalance.active
    assert changed.fingerprint == TABLE.fingerprint
    assert (realised.affected, realised.ratio) == (0, 0)
    assert realised.wrong_captions_per_image == {0: 30}
    assert not noisy_images(TABLE, imbalance).any()


def test_realised_tells_specifications_apart_and_is_stable() -> None:
    specifications = [
        Imbalance(),
        *(Imbalance(kind, 0.5, severity, seed) for kind in CHANGING for severity in (4, 5) for seed in (0, 1)),
        Imbalance("gaussian_noise", 0.6),
    ]
    prints = [imbalanced(TABLE, imbalance)[1].sha256 for imbalance in specifications]
    assert prints == [imbalanced(make_table((5,) * 30), imbalance)[1].sha256 for imbalance in specifications]
    # A mismatch has no degrees: 2 of its 4 specifications come to the same.
    assert len(set(prints)) == len(prints) - 2
    other = imbalanced(make_table((5,) * 30, name="elsewhere"), specifications[1])[1]
    assert other.sha256 not in prints


def test_record_is_plain_and_complete() -> None:
    record = imbalanced(TABLE, Imbalance("mismatch", 0.25, seed=4))[1].record()
    assert json.loads(json.dumps(record)) == record
    assert record["kind"] == "mismatch"
    assert (record["asked_ratio"], record["affected"], record["of"], record["ratio"]) == (0.25, 8, 30, 8 / 30)
    assert record["wrong_captions_per_image"] == {"0": 22, "5": 8}
    assert (record["severity"], record["seed"]) == (5, 4)


@pytest.mark.parametrize("ratio", [-0.1, 1.0001, float("nan")])
def test_ratio_must_be_a_share(ratio: float) -> None:
    with pytest.raises(ValueError, match=rf"ratio must lie in \[0, 1\], got {ratio}"):
        Imbalance("mismatch", ratio)


@pytest.mark.parametrize("severity", [0, 6, 2.5])
def test_severity_must_be_a_degree(severity: int) -> None:
    with pytest.raises(ValueError, match=f"severity must be 1, 2, 3, 4 or 5, got {severity}"):
        Imbalance("gaussian_noise", 0.5, severity)


def test_kind_must_be_known() -> None:
    with pytest.raises(ValueError, match="unknown imbalance 'mismach', expected one of none, mismatch"):
        Imbalance("mismach", 0.5)  # type: ignore[arg-type]
    assert set(KINDS) == {"none", *CHANGING}
