"""ECCV Caption and CxC on the real ground truth, with synthetic embeddings, against the definitions in loops."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics.extended import _package, extended_positives

pytest.importorskip("eccv_caption")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def split():
    """COCO's test split as the package lists it, with embeddings that match to a degree."""
    metrics = _package()
    captions = [int(caption) for caption in metrics.coco_ids]
    images = list(dict.fromkeys(metrics.coco_gts["t2i"][caption][0] for caption in captions))
    place = {image: row for row, image in enumerate(images)}
    index = torch.tensor([place[metrics.coco_gts["t2i"][caption][0]] for caption in captions])
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(len(images), 16, generator=generator))
    text = normalize(image[index] + 0.25 * torch.randn(len(captions), 16, generator=generator))
    return metrics, images, captions, index, image, text


def test_equals_the_definitions(split, capsys):
    metrics, images, captions, index, image, text = split
    names = [f"val2014/COCO_val2014_{number:012d}.jpg" for number in images]
    found = extended_positives(image, text, names, [str(caption) for caption in captions], index)
    assert capsys.readouterr().err == ""
    scores = (image.double() @ text.double().T).float().numpy()
    for way, queries, gallery, matrix in (("i2t", images, captions, scores), ("t2i", captions, images, scores.T)):
        row = {query: number for number, query in enumerate(queries)}
        precision, average, first = [], [], []
        for query, positives in metrics.eccv_gts[way].items():
            wanted = set(positives)
            order = np.argsort(-matrix[row[query]], kind="stable")[: len(wanted)]
            hits = [gallery[item] in wanted for item in order]
            precision.append(np.mean(hits))
            average.append(np.mean([hit * np.mean(hits[: r + 1]) for r, hit in enumerate(hits)]))
            first.append(hits[0])
        assert found[f"eccv_{way}_mAP@R"] == pytest.approx(100 * np.mean(average))
        assert found[f"eccv_{way}_R-Precision"] == pytest.approx(100 * np.mean(precision))
        assert found[f"eccv_{way}_R@1"] == pytest.approx(100 * np.mean(first))
        assert found[f"cxc_{way}_R@1"] <= found[f"cxc_{way}_R@5"] <= found[f"cxc_{way}_R@10"] <= 100


def test_items_of_another_split_are_refused(split):
    _, images, captions, index, image, text = split
    ids = [str(caption) for caption in captions]
    with pytest.raises(ValueError, match=r"1 images are not of it and 1 are missing, e.g. 7 is not of it"):
        extended_positives(image, text, ["7.jpg", *map(str, images[1:])], ids, index)
    with pytest.raises(ValueError, match=r"0 captions are not of it and 5 are missing"):
        extended_positives(image, text[5:], list(map(str, images)), ids[5:], index[5:])
    with pytest.raises(ValueError, match=r"'cat\.jpg' names no COCO image"):
        extended_positives(image, text, ["cat.jpg", *map(str, images[1:])], ids, index)


@pytest.mark.data
@pytest.mark.skipif("SDR_SHARED" not in os.environ, reason="SDR_SHARED names no folder with COCO's captions")
def test_captions_without_ids_are_matched_by_position(split):
    """The public list has the images in the package's order; ten images have a sixth caption, which the package lacks."""
    _, images, captions, index, image, text = split
    entries = json.loads((Path(os.environ["SDR_SHARED"]) / "data/official_json/coco_test.json").read_text())
    listed = torch.tensor([row for row, entry in enumerate(entries) for _ in entry["caption"]])
    own = [[*range(5 * place, 5 * place + 5), 0][: len(entry["caption"])] for place, entry in enumerate(entries)]
    rows = torch.tensor([row for some in own for row in some])
    names = [f"{entry['image']}#{k}" for entry in entries for k, _ in enumerate(entry["caption"])]
    found = extended_positives(image, text[rows], [entry["image"] for entry in entries], names, listed)
    assert found == extended_positives(
        image, text, list(map(str, images)), [str(caption) for caption in captions], index
    )
