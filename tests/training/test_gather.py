"""Gradients of several gloo processes against those of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sdr_lightning.training import matching
from sdr_lightning.training.matching import Matched, Pool, match
from sdr_lightning.types import Encoded, Pairs, RetrievalBatch, Tokens
from tests.training.ranks import DRAWN_BATCHES, IDS, SETTINGS, Gradients, Results, run_ranks, share
from tests.training.student import (
    LIGHTNINGS_OWN_WARNINGS,
    TEXT_CONTENT,
    FixedBatches,
    hardest,
    student,
    trainer,
)

pytestmark = LIGHTNINGS_OWN_WARNINGS


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run_ranks(tmp_path_factory.mktemp("two"), 2, list(SETTINGS))


def whole_batch(world_size: int) -> RetrievalBatch:
    """Concatenate the pairs of all ranks, with captions padded to the longest."""
    shares = [share(rank) for rank in range(world_size)]
    longest = max(part.texts.input_ids.shape[1] for part in shares)

    def padded(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]), value=value)

    texts = Tokens(
        torch.cat([padded(part.texts.input_ids, 79) for part in shares]),
        torch.cat([padded(part.texts.attention_mask, 0) for part in shares]),
    )
    columns = [torch.cat(column) for column in ([part[i] for part in shares] for i in (0, 2, 3, 4, 5))]
    return RetrievalBatch(columns[0], texts, *columns[1:])


def whole_gradients(setting: str, world_size: int) -> dict[str, dict[str, Tensor]]:
    """Compute the weighted gradient of each term in one process with the whole batch.

    Hard negatives are drawn like in the ranks: within each share, or from the whole batch.
    """
    module = student(**SETTINGS[setting]).double()
    encoder, method, batch = module.encoder, module.method, whole_batch(world_size)
    image, text = encoder.image(batch.images), encoder.text(batch.texts)
    index, size = batch.image_index, len(batch.image_index) // world_size
    if module.positives == "image_or_text":
        index = torch.stack([index, torch.from_numpy(TEXT_CONTENT)[batch.pair_index]], dim=1)
    found: list[Matched] = []
    if "fusion" in method.needs:
        assert encoder.fusion is not None
        for first in range(0, len(index), size):
            if module.negatives == "global":
                pool = Pool(image, text, index, first)
            else:
                rows = slice(first, first + size)
                pool = Pool(select_rows(image, rows), select_rows(text, rows), index[rows])
            tau = method.hard_negative_temperature()
            found.append(match(encoder.fusion, pool, size, tau, "matching" in method.needs))
    logits = torch.cat([part.logits for part in found]) if "matching" in method.needs else None
    labels = torch.cat([part.labels for part in found]) if "matching" in method.needs else None
    fused = torch.cat([part.fused for part in found]) if found else None
    pairs = Pairs(
        image.embedding,
        text.embedding,
        index,
        None,
        batch.image_teacher.double(),
        batch.text_teacher.double(),
        fused,
        logits,
        labels,
    )
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    result = {}
    for term, value in method(pairs).items():
        weighted = method.weights[term] * value
        found_gradients = torch.autograd.grad(
            weighted, list(parameters.values()), retain_graph=True, materialize_grads=True
        )
        result[term] = dict(zip(parameters, found_gradients, strict=True))
    return result


def select_rows(encoded: Encoded, rows: slice) -> Encoded:
    return Encoded(*(None if part is None else part[rows] for part in encoded))


def share_of_gradient(setting: str, term: str, parameter: str, world_size: int) -> float:
    """Return the expected factor on the exact gradient."""
    is_applied_after_gathering = parameter.startswith("method.")
    if "exact" in setting or is_applied_after_gathering or term == "itm":
        return 1.0
    return 1 / world_size


def check(setting: str, results: Results) -> None:
    world_size = len(results)
    with patch.object(matching, "draw_negatives", hardest):
        terms = whole_gradients(setting, world_size)
    names = set(terms["itc"])
    for rank, result in enumerate(results):
        gradients = result[setting]
        assert set(gradients) == names
        for name, found in gradients.items():
            expected = sum(
                share_of_gradient(setting, term, name, world_size) * gradient[name] for term, gradient in terms.items()
            )
            torch.testing.assert_close(
                found, expected, rtol=1e-6, atol=1e-12, msg=lambda m, n=name, r=rank: f"{n} on rank {r}: {m}"
            )
        for name in names:  # nonzero, except for biases of keys, which cancel in the softmax
            assert gradients[name].abs().max() > 1e-7 or name.endswith("key.bias"), name


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_two_processes_have_the_expected_gradient(setting: str, two: Results) -> None:
    check(setting, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "whole"),
    [("averaged exact local rows", "averaged exact"), ("global exact local rows in chunks", "global exact")],
)
def test_local_loss_logs_the_terms_of_all_rows(setting: str, whole: str, two: Results) -> None:
    for result in two:
        assert result[f"{setting} terms"].keys() == result[f"{whole} terms"].keys()
        for name, value in result[f"{whole} terms"].items():
            torch.testing.assert_close(result[f"{setting} terms"][name], value, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_three_processes_have_the_expected_gradient(tmp_path: Path) -> None:
    settings = ["local exact", "local albef", "global exact", "global albef", "global exact local rows in chunks"]
    results = run_ranks(tmp_path, 3, settings)
    for setting in settings:
        check(setting, results)


def test_single_process_has_the_exact_gradient() -> None:
    """``exact`` and ``albef`` are the same in a single process."""
    with patch.object(matching, "draw_negatives", hardest):
        terms = whole_gradients("global exact", 2)
        for setting in ("local exact", "local albef"):
            gradients = Gradients()
            fit = trainer(precision="64-true", max_steps=1, limit_val_batches=0, callbacks=[gradients])
            fit.fit(student(**SETTINGS[setting]), datamodule=FixedBatches([whole_batch(2)]))
            for name, found in gradients.found.items():
                expected = sum(gradient[name] for gradient in terms.values())
                torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.slow
def test_gathered_tensors_are_ordered_by_rank_and_padded(two: Results) -> None:
    for result in two:
        gathered = result["gathered"]
        vector, tokens, mask = gathered["text"]
        assert vector.flatten().tolist() == [0, 0, 1, 1]
        assert tokens.shape == (4, 3, 3)
        assert mask.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]
        assert (tokens[:2, :2] == 1).all()
        assert (tokens[2:] == 2).all()
        vector, tokens, mask = gathered["image"]
        assert tokens[:, 0, 0].tolist() == [1, 1, 2, 2]
        assert mask is None
        assert gathered["rows"].tolist() == [0, 1, 10, 11]
        assert gathered["nothing"] is None


@pytest.mark.slow
def test_global_negatives_include_other_ranks_but_no_positives(two: Results) -> None:
    index = torch.tensor(IDS[0] + IDS[1])
    for rank, result in enumerate(two):
        own = index[4 * rank : 4 * rank + 4]
        assert len(result["draws"]) == 2 * DRAWN_BATCHES
        rows = torch.stack([drawn for drawn, _ in result["draws"]])  # (calls, 4)
        assert all(bool(exist.all()) for _, exist in result["draws"])
        assert not (index[rows] == own).any()
        elsewhere = rows // 4 != rank
        assert 0 < elsewhere.sum() < elsewhere.numel()
