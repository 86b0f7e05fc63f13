"""Human judgements in the published form, against pair counting and sums in loops."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from sdr_lightning.metrics.evaluation import undefined
from sdr_lightning.metrics.judgements import agreement, read_judgements

EXPERT = """\
a.jpg\ta.jpg#0\t4\t4\t3
a.jpg\tb.jpg#1\t1\t2\t1
a.jpg\tc.jpg#0\t2\t2\t2
b.jpg\tb.jpg#1\t4\t3\t3
b.jpg\ta.jpg#0\t1\t1\t1
c.jpg\tc.jpg#0\t1\t1\t1
elsewhere.jpg\ta.jpg#0\t1\t1\t1
a.jpg\ta.jpg#9\t1\t1\t1
"""
IDS, INDEX = ["x/a.jpg", "x/b.jpg", "x/c.jpg"], torch.tensor([0, 0, 1, 1, 2])


@pytest.fixture
def embeddings():
    generator = torch.Generator().manual_seed(0)
    return normalize(torch.randn(3, 4, generator=generator)), normalize(torch.randn(5, 4, generator=generator))


def write(tmp_path, text):
    path = tmp_path / "annotations.txt"
    path.write_text(text)
    return path


def test_agreement_equals_its_definition(tmp_path, embeddings):
    judgements = read_judgements(write(tmp_path, EXPERT))
    assert judgements.kind == "expert"
    assert judgements.ratings[0] == pytest.approx(11 / 3)
    images, texts = embeddings
    found = agreement(judgements, images, texts, [name[2:] for name in IDS], INDEX)
    pairs = [(0, 0, 11 / 3), (0, 3, 4 / 3), (0, 4, 2.0), (1, 3, 10 / 3), (1, 0, 1.0), (2, 4, 1.0)]
    score = {(i, c): float(images[i] @ texts[c]) for i, c, _ in pairs}
    concordance = tied = total = 0
    for x, (i, c, rating) in enumerate(pairs):
        for j, d, other in pairs[:x]:
            sign = (score[i, c] > score[j, d]) - (score[i, c] < score[j, d])
            concordance += sign * ((rating > other) - (rating < other))
            tied += rating == other
            total += 1
    assert found["expert_tau_b"] == pytest.approx(concordance / math.sqrt(total * (total - tied)))
    assert found["expert_pairs"] == 6
    values = []
    for image in (0, 1):  # image 2 has one judgement
        mine = [(score[i, c], rating - 1) for i, c, rating in pairs if i == image]
        gain = [g for _, g in sorted(mine, reverse=True)]
        dcg, best = (
            sum(g / math.log2(r + 2) for r, g in enumerate(some)) for some in (gain, sorted(gain, reverse=True))
        )
        values.append(dcg / best)
    assert found["expert_i2t_NDCG"] == pytest.approx(50 * sum(values))


def test_crowd_judgements_are_read(tmp_path, embeddings):
    path = write(tmp_path, "a.jpg\ta.jpg#0\t1\t3\t0\na.jpg\tb.jpg#0\t0.333333\t1\t2\nb.jpg\tb.jpg#0\t0\t0\t3\n")
    judgements = read_judgements(path)
    assert judgements.kind == "crowd"
    found = agreement(judgements, *embeddings, [name[2:] for name in IDS], INDEX)
    assert set(found) == {f"crowd_{name}" for name in ("tau_b", "tau_c", "i2t_NDCG", "t2i_NDCG", "pairs")} - {
        name for name in ("crowd_t2i_NDCG",) if name not in found
    }


def test_malformed_files(tmp_path):
    for text, message in [
        ("", "holds no judgements"),
        ("a.jpg a.jpg#0 1 1 1\n", "line 1 is 'a.jpg a.jpg#0 1 1 1': expected image.jpg"),
        ("a.jpg\ta.jpg#0\t5\t1\t1\n", "line 1"),
        ("a.jpg\ta.jpg\t4\t1\t1\n", "line 1"),
        ("a.jpg\ta.jpg#0\t4\t1\t1\na.jpg\tb.jpg#0\t0.5\t1\t1\n", "line 2 is a judgement of the crowd kind"),
        ("a.jpg\ta.jpg#0\t4\t1\t1\na.jpg\ta.jpg#0\t4\t1\t1\n", "line 2 rates a.jpg and a.jpg#0 again"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_judgements(write(tmp_path, text))


def test_judgements_of_other_images(tmp_path, embeddings):
    judgements = read_judgements(write(tmp_path, EXPERT))
    with pytest.raises(ValueError, match=r"none of the 8 judged pairs is of these .* are they of this split"):
        agreement(judgements, *embeddings, ["x.jpg", "y.jpg", "z.jpg"], INDEX)


def test_no_correlation_with_scores_that_are_all_alike(tmp_path):
    judgements = read_judgements(write(tmp_path, EXPERT))
    found = agreement(judgements, torch.ones(3, 4) / 2, torch.ones(5, 4) / 2, ["a.jpg", "b.jpg", "c.jpg"], INDEX)
    assert [name for name, value in found.items() if math.isnan(value)] == ["expert_tau_b", "expert_tau_c"]
    assert undefined(found) == [
        "expert_tau_b, expert_tau_c undefined (null): the judged pairs are all rated alike, or all scored alike"
    ]
