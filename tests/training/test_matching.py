"""Fusion of matched pairs and hard negatives with a real fusion encoder."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.functional.matching import draw_negatives, matching_loss
from sdr_lightning.training import matching
from sdr_lightning.training.matching import Matched, Pool, match
from sdr_lightning.types import Encoded
from tests.training.student import BERT, WIDTH, hardest

TAU = 0.5


@pytest.fixture(scope="module")
def fusion() -> FusionEncoder:
    torch.manual_seed(0)
    return FusionEncoder(WIDTH, config=dict(BERT), first_layer=0).double()


def pool_of(index: list[int], first: int = 0, seed: int = 0) -> Pool:
    """Return random items with captions of different lengths."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    size = len(index)
    mask = (torch.arange(5) < 1 + torch.arange(size)[:, None] % 5).long()
    vectors = [F.normalize(random(size, 4), dim=1) for _ in range(2)]
    image = Encoded(vectors[0], random(size, 3, WIDTH).requires_grad_())
    text = Encoded(vectors[1], random(size, 5, WIDTH).requires_grad_(), mask)
    return Pool(image, text, torch.tensor(index), first)


def one_pair(fusion: FusionEncoder, pool: Pool, image: int, text: int) -> Tensor:
    """Return the fused token of a single pair, without padding."""
    assert pool.image.tokens is not None
    assert pool.text.tokens is not None
    assert pool.text.mask is not None
    words = pool.text.tokens[text : text + 1, : int(pool.text.mask[text].sum())]
    caption = Encoded(pool.text.embedding[text : text + 1], words)
    result: Tensor = fusion(caption, fusion.contexts(pool.image.tokens[image : image + 1]))[0]
    return result


class Spy:
    """Draws negatives and stores the rows."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def __call__(self, weights: Tensor, generator: torch.Generator | None = None) -> object:
        drawn = draw_negatives(weights, generator)
        self.rows.append(drawn.rows)
        return drawn


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    index=st.lists(st.integers(0, 3), min_size=2, max_size=9),
    first=st.integers(0, 4),
    seed=st.integers(0, 1000),
)
def test_negatives_never_show_the_same_image(fusion: FusionEncoder, index: list[int], first: int, seed: int) -> None:
    pool = pool_of(index, min(first, len(index) - 1), seed)
    size, spy = len(index) - pool.first, Spy()
    torch.manual_seed(seed)
    with patch.object(matching, "draw_negatives", spy):
        found = match(fusion, pool, size, TAU, with_negatives=True)
    assert found.labels is not None
    assert found.logits is not None
    assert len(spy.rows) == 2
    own = pool.image_index[pool.first :]
    for rows, labels in zip(spy.rows, found.labels[size:].split(size), strict=True):
        alone = torch.tensor([all(other == mine for other in index) for mine in own.tolist()])
        assert labels.tolist() == torch.where(alone, -100, 0).tolist()
        assert (pool.image_index[rows] != own)[~alone].all()
    assert found.labels[:size].tolist() == [1] * size
    assert found.logits.shape == (3 * size, 2)


@pytest.mark.parametrize("first", [0, 2])
def test_fused_tokens_equal_those_of_single_pairs(fusion: FusionEncoder, first: int) -> None:
    """In the order: matched pairs, captions with negative images, images with negative captions."""
    index = [0, 1, 0, 2, 3, 1]
    pool = pool_of(index, first)
    pairs = 4
    with patch.object(matching, "draw_negatives", hardest):
        found = match(fusion, pool, pairs, TAU, with_negatives=True)
    own = list(range(first, first + pairs))

    def other(queries: Tensor, gallery: Tensor, row: int) -> int:
        cosines = (queries[row] @ gallery.T).tolist()
        return max((cosine, j) for j, cosine in enumerate(cosines) if index[j] != index[row])[1]

    with_images = [(other(pool.text.embedding, pool.image.embedding, row), row) for row in own]
    with_captions = [(row, other(pool.image.embedding, pool.text.embedding, row)) for row in own]
    expected = [one_pair(fusion, pool, *rows) for rows in [(row, row) for row in own] + with_images + with_captions]
    assert found.fused is not None
    torch.testing.assert_close(found.fused, torch.stack(expected[:pairs]))
    torch.testing.assert_close(found.logits, torch.stack([fusion.head(token) for token in expected]))
    assert found.labels is not None
    assert found.labels.tolist() == [1] * pairs + [0] * 2 * pairs


def test_no_negatives_on_request(fusion: FusionEncoder) -> None:
    pool = pool_of([0, 1, 2, 3], first=1)
    with patch.object(matching, "draw_negatives", None):  # must not be called
        found = match(fusion, pool, 2, TAU, with_negatives=False)
    assert found[1:] == (None, None)
    assert found.fused is not None
    torch.testing.assert_close(found.fused, torch.stack([one_pair(fusion, pool, row, row) for row in (1, 2)]))


def test_missing_mask_means_no_padding(fusion: FusionEncoder) -> None:
    pool = pool_of([0, 1, 2])
    masked = pool._replace(text=pool.text._replace(mask=torch.ones(3, 5, dtype=torch.int64)))
    bare = pool._replace(text=pool.text._replace(mask=None))
    with patch.object(matching, "draw_negatives", hardest):
        one, other = (match(fusion, each, 3, TAU, True) for each in (masked, bare))
    assert one.logits is not None
    torch.testing.assert_close(one.logits, other.logits)


def loss_of(found: Matched) -> Tensor:
    assert found.logits is not None
    assert found.labels is not None
    return matching_loss(found.logits, found.labels)


def test_single_image_has_no_negatives(fusion: FusionEncoder) -> None:
    pool = pool_of([7, 7, 7])
    found = match(fusion, pool, 3, TAU, with_negatives=True)
    assert found.labels is not None
    assert found.labels.tolist() == [1, 1, 1] + [-100] * 6
    logits = [fusion.head(one_pair(fusion, pool, row, row)).tolist() for row in range(3)]
    expected = sum(math.log(1 + math.exp(no - yes)) for no, yes in logits) / 3
    assert loss_of(found).item() == pytest.approx(expected, abs=1e-9)


def test_gradient_flows_to_tokens_of_pairs_and_negatives(fusion: FusionEncoder) -> None:
    """The pair of this rank is the first; the second shows the same image; the third is a negative of another rank."""
    pool = pool_of([0, 0, 5], first=0)
    loss_of(match(fusion, pool, 1, TAU, with_negatives=True)).backward()
    for tokens in (pool.image.tokens, pool.text.tokens):
        assert tokens is not None
        assert tokens.grad is not None
        moved = tokens.grad.flatten(1).abs().sum(dim=1)
        assert moved[0] > 0
        assert moved[1] == 0
        assert moved[2] > 0
    assert pool.text.tokens is not None
    assert pool.text.tokens.grad is not None
    assert not pool.text.tokens.grad[0, 1:].any()  # padding


def test_lower_temperature_draws_harder_negatives(fusion: FusionEncoder) -> None:
    index = list(range(8))
    hard = []
    for tau in (0.02, 100.0):
        spy = Spy()
        with patch.object(matching, "draw_negatives", spy):
            for seed in range(30):
                torch.manual_seed(seed)
                match(fusion, pool_of(index), 8, tau, with_negatives=True)
        with patch.object(matching, "draw_negatives", Spy()):
            pool = pool_of(index)
            cosines = (pool.text.embedding @ pool.image.embedding.T).fill_diagonal_(-2)
        rows = torch.stack(spy.rows[::2])  # images for captions
        hard.append((rows == cosines.argmax(dim=1)).double().mean().item())
    assert hard[0] > 0.8
    assert hard[1] < 0.35  # one in seven by chance


@pytest.mark.parametrize("side", ["image", "text"])
def test_cached_features_are_rejected(fusion: FusionEncoder, side: str) -> None:
    pool = pool_of([0, 1])
    cached = pool._replace(**{side: Encoded(getattr(pool, side).embedding)})
    with pytest.raises(ValueError, match="reads tokens, and this batch holds cached features alone"):
        match(fusion, cached, 2, TAU, with_negatives=True)
