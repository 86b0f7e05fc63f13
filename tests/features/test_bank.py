import json
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sdr_lightning.features import FeatureBank

IDS = ["b", "a", "ünï#0", "d"]
CONTENT = np.array([11, 22, 33, 44], dtype=np.int64)
FEATURES = torch.tensor([[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [3.0, 30.0, 300.0], [4.0, 40.0, 400.0]])


def make_bank(ids=IDS, content=CONTENT, features=FEATURES, modality="image", source="tower"):
    return FeatureBank(modality, ids, content, features, source)


# --- Looking up.


def test_features_come_in_the_order_of_the_ids():
    rows = make_bank().rows(["d", "b", "ünï#0"], np.array([44, 11, 33]))
    assert torch.equal(rows, FEATURES[[3, 0, 2]])


def test_ids_may_be_repeated_or_empty():
    assert torch.equal(make_bank().rows(["a", "a"], np.array([22, 22])), FEATURES[[1, 1]])
    assert make_bank().rows([], np.array([], dtype=np.int64)).shape == (0, 3)


def test_the_order_of_the_bank_does_not_matter():
    order = [2, 0, 3, 1]
    shuffled = make_bank([IDS[i] for i in order], CONTENT[order], FEATURES[order])
    assert torch.equal(shuffled.rows(IDS, CONTENT), make_bank().rows(IDS, CONTENT))


def test_missing_ids_are_counted_and_the_first_is_named():
    with pytest.raises(ValueError, match=r"the text bank lacks 2 of 3 ids, first 'y'.*run sdr extract"):
        make_bank(modality="text").rows(["y", "a", "x"], np.array([0, 22, 0]))


def test_changed_content_is_counted_and_the_first_is_named():
    with pytest.raises(ValueError, match=r"the image bank was .* other content for 2 of 3 ids, first 'a'.*imbalance"):
        make_bank().rows(["b", "a", "d"], np.array([11, 44, 22]))


# --- What is no bank.


def test_ids_that_do_not_fit():
    for change, message in [
        ({"ids": IDS[:3]}, "got 3 ids, 4 hashes, 4 features"),
        ({"content": CONTENT[:2]}, "got 4 ids, 2 hashes, 4 features"),
        ({"features": FEATURES[:1]}, "got 4 ids, 4 hashes, 1 features"),
        ({"ids": ["a", "b", "a", "a"]}, "needs unique ids, got 2 repeated"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_bank(**change)


def test_features_that_are_not_finite():
    for bad in [float("nan"), float("inf"), float("-inf")]:
        features = FEATURES.clone()
        features[2, 1] = bad
        with pytest.raises(ValueError, match="needs finite features; the text tower gave NaN or infinity"):
            make_bank(features=features, modality="text")


# --- Identity.


def test_width():
    assert make_bank().width == 3


def test_fingerprint_changes_with_tower_ids_order_and_content():
    changed = [
        make_bank(),
        make_bank(source="other"),
        make_bank(ids=["b", "a", "ünï#0", "e"]),
        make_bank(ids=["a", "b", "ünï#0", "d"]),
        make_bank(content=CONTENT + 1),
    ]
    assert len({bank.fingerprint for bank in changed}) == len(changed)
    assert make_bank().fingerprint == make_bank(ids=tuple(IDS)).fingerprint


# --- Parts and unions.


def ids_of(bank: FeatureBank) -> list[str]:
    return list(bank.ids)


def test_unchanged_selects_items_with_equal_id_and_content() -> None:
    for ids, content, kept in [
        (IDS, CONTENT, [0, 1, 2, 3]),
        (["d", "b"], [44, 11], [0, 3]),
        (["a", "b"], [22, 99], [1]),
        (["new", "d"], [44, 44], [3]),
        (["a", "d"], [44, 22], []),
        ([], [], []),
    ]:
        part = make_bank(modality="text", source="abc").unchanged(ids, np.array(content, dtype=np.int64))
        assert ids_of(part) == [IDS[row] for row in kept]
        assert part.content.tolist() == CONTENT[kept].tolist()
        assert part.content.dtype == np.int64
        assert torch.equal(part.features, FEATURES[kept])
        assert (part.modality, part.source) == ("text", "abc")


def test_union_concatenates_banks() -> None:
    banks = [make_bank(IDS[:1], CONTENT[:1], FEATURES[:1]), make_bank(IDS[1:], CONTENT[1:], FEATURES[1:])]
    for parts in (banks, banks[::-1]):
        union = FeatureBank.union(parts)
        assert torch.equal(union.rows(IDS, CONTENT), FEATURES)
        assert sorted(union.ids) == sorted(IDS)
        assert (union.modality, union.source) == ("image", "tower")
    assert FeatureBank.union(banks).fingerprint == make_bank().fingerprint
    assert ids_of(FeatureBank.union([make_bank()])) == IDS


def test_unchanged_part_and_new_part_form_the_full_bank() -> None:
    bank, changed = make_bank(), CONTENT + np.array([0, 1, 0, 0])
    kept = bank.unchanged(IDS, changed)
    anew = make_bank(["a"], changed[[1]], FEATURES[[1]] + 5)
    found = FeatureBank.union([kept, anew]).rows(IDS, changed)
    assert torch.equal(found, FEATURES + 5 * torch.tensor([0, 1, 0, 0])[:, None])


def test_items_that_are_in_two_banks_are_refused() -> None:
    with pytest.raises(ValueError, match="needs unique ids, got 1 repeated"):
        FeatureBank.union([make_bank(), make_bank(["d"], CONTENT[[3]], FEATURES[[3]])])


# --- Placebo.


def test_a_placebo_is_a_function_of_seed_and_id():
    placebo = make_bank().placebo(3)
    assert torch.equal(placebo.features, make_bank().placebo(3).features)
    assert not torch.equal(placebo.features, make_bank().placebo(4).features)
    order = [2, 0, 3, 1]
    shuffled = make_bank([IDS[i] for i in order], CONTENT[order], FEATURES[order]).placebo(3)
    assert torch.equal(shuffled.rows(IDS, CONTENT), placebo.features)
    alone = make_bank(["d", "new"], np.array([44, 5]), torch.zeros(2, 3)).placebo(3)
    assert torch.equal(alone.features[0], placebo.features[3])


def test_placebo_is_independent_of_the_features():
    assert torch.equal(make_bank(features=-5 * FEATURES).placebo(3).features, make_bank().placebo(3).features)
    wide = make_bank(features=torch.zeros(4, 50)).placebo(0)
    assert wide.features.shape == (4, 50)
    assert wide.features.dtype == torch.float32


def test_placebo_features_are_independent_standard_normals():
    ids = [str(i) for i in range(200)]
    bank = make_bank(ids, np.zeros(200, dtype=np.int64), torch.zeros(200, 64))
    features = bank.placebo(0).features
    assert features.mean().abs() < 0.05
    assert (features.std() - 1).abs() < 0.05
    for other in (features.roll(1, 0), bank.placebo(1).features):
        assert torch.nn.functional.cosine_similarity(features, other).abs().max() < 0.6


def test_placebo_has_the_same_items_and_another_fingerprint():
    bank = make_bank(modality="text")
    placebo = bank.placebo(3)
    assert (placebo.modality, list(placebo.ids)) == ("text", IDS)
    placebo.rows(IDS, CONTENT)
    assert len({bank.fingerprint, placebo.fingerprint, bank.placebo(4).fingerprint}) == 3


# --- Disk.


def test_round_trip(tmp_path):
    bank, path = make_bank(source="abc"), tmp_path / "deep" / "bank.safetensors"
    bank.save(path)
    for loaded in (FeatureBank.load(path), FeatureBank.load(path, "image")):
        assert (loaded.modality, list(loaded.ids), loaded.source) == ("image", IDS, "abc")
        assert loaded.content.dtype == np.int64
        assert loaded.content.tolist() == CONTENT.tolist()
        assert torch.equal(loaded.features, FEATURES)
        assert loaded.fingerprint == bank.fingerprint
    assert os.listdir(path.parent) == ["bank.safetensors"]  # noqa: PTH208 - hidden files count


def test_a_loaded_bank_can_be_saved_over_itself(tmp_path):
    path = tmp_path / "bank.safetensors"
    make_bank().save(path)
    loaded = FeatureBank.load(path)
    loaded.placebo(0).save(path)
    assert torch.equal(loaded.features, FEATURES)  # still the old file's
    assert torch.equal(FeatureBank.load(path).features, make_bank().placebo(0).features)


def test_features_are_kept_in_float32(tmp_path):
    path = tmp_path / "bank.safetensors"
    make_bank(features=FEATURES.double().T.contiguous().T).save(path)  # neither float32 nor contiguous
    loaded = FeatureBank.load(path)
    assert loaded.features.dtype == torch.float32
    assert torch.equal(loaded.features, FEATURES)


def test_a_save_that_fails_leaves_the_old_bank_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "bank.safetensors"
    make_bank().save(path)

    def fail(_, part, __):
        part.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("sdr_lightning.features.bank.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make_bank(source="new").save(path)
    assert FeatureBank.load(path).source == "tower"
    assert [entry.name for entry in tmp_path.iterdir()] == ["bank.safetensors"]


def test_bank_of_the_other_modality_is_refused(tmp_path):
    path = tmp_path / "bank.safetensors"
    make_bank(modality="text").save(path)
    with pytest.raises(ValueError, match=r"bank\.safetensors is a bank of the text modality, expected image"):
        FeatureBank.load(path, "image")


def test_no_file(tmp_path):
    for path in (tmp_path / "nothing.safetensors", tmp_path):
        with pytest.raises(ValueError, match=r"no feature bank at .*: write one with sdr extract"):
            FeatureBank.load(path)


@pytest.mark.parametrize("kind", ["weights", "another format", "text", "empty", "truncated"])
def test_a_file_that_is_not_a_bank(tmp_path, kind):
    path = tmp_path / "bank.safetensors"
    if kind == "weights":
        save_file({"features": FEATURES}, path)
    elif kind == "another format":
        save_file({"features": FEATURES}, path, {"format": "sdr-feature-bank-0", "ids": json.dumps(IDS)})
    elif kind == "text":
        path.write_text("id,feature\n" * 50)
    elif kind == "empty":
        path.touch()
    else:
        make_bank().save(path)
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"bank\.safetensors is not a feature bank"):
        FeatureBank.load(path)


def test_ids_are_readable_in_the_file_and_not_in_its_header_which_is_limited(tmp_path):
    make_bank().save(tmp_path / "bank.safetensors")
    with safe_open(tmp_path / "bank.safetensors", framework="pt") as file:
        assert "ids" not in file.metadata()
        text, offsets = file.get_tensor("ids").numpy().tobytes(), file.get_tensor("id_offsets").tolist()
    assert [text[a:b].decode() for a, b in pairwise(offsets)] == IDS


def test_a_bank_of_the_earlier_format_is_read(tmp_path):
    path, bank = tmp_path / "bank.safetensors", make_bank()
    metadata = {"modality": bank.modality, "source": bank.source, "placebo": "False", "ids": json.dumps(IDS)}
    tensors = {"features": bank.features, "content": torch.from_numpy(bank.content)}
    save_file(tensors, path, {"format": "sdr-feature-bank-1", **metadata})
    found = FeatureBank.load(path)
    assert (list(found.ids), found.fingerprint) == (IDS, bank.fingerprint)
    assert torch.equal(found.features, bank.features)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_features_stay_in_the_file_that_all_processes_map(tmp_path):
    path = tmp_path / "bank.safetensors"
    ids = [f"{row}" for row in range(5000)]
    content = np.arange(5000)
    FeatureBank("image", ids, content, torch.rand(5000, 16), "tower").save(path)
    bank = FeatureBank.load(path)
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ranges = [[int(end, 16) for end in entry[0].split("-")] for entry in maps]
    assert any(first <= bank.features.data_ptr() < last for first, last in ranges)
    found = bank.positions(ids[::-1], content[::-1])
    assert torch.equal(bank.features[found], bank.rows(ids[::-1], content[::-1]))
