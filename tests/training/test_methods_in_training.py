"""What the trainer does for a method: measurement, order, hooks, own similarity, and exact continuation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.scenes import SceneSource
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.methods import AGREE, NCR, SDR, InfoNCE, Measure, Method, Oracle
from sdr_lightning.training.optimisation import Optimisation
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.types import Pairs
from tests.training.resuming import assert_continues_from
from tests.training.student import (
    EMBEDDING,
    LIGHTNINGS_OWN_WARNINGS,
    ImageTower,
    TextTower,
    scenes,
    trainer,
)

pytestmark = [*LIGHTNINGS_OWN_WARNINGS, pytest.mark.filterwarnings("ignore:.*exists and is not empty")]
PAIRS, BATCH, STEPS = 60, 20, 3


def student(method: Method, **options: Any) -> RetrievalModule:
    torch.manual_seed(0)
    encoder = DualEncoder(ImageTower(), TextTower(), EMBEDDING, dropout=0.2)
    return RetrievalModule(encoder, method, Optimisation(learning_rate=1e-2), **options)


def fit(method: Method, **options: Any) -> RetrievalModule:
    module = student(method)
    data = scenes(augmentation="weak")
    run = trainer(**{"max_epochs": 2, "limit_val_batches": 0, **options})
    torch.manual_seed(1)
    run.fit(module, datamodule=data)
    return module


class Recorder(InfoNCE):
    """Records which pairs each step sees, and what is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[int]] = []
        self.measured: list[Tensor] = []
        self.training_seen: set[bool] = set()

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        def per_pair(pairs: Pairs) -> Tensor:
            assert pairs.pair_index is not None
            self.training_seen.add(torch.is_grad_enabled())
            return (pairs.image * pairs.text).sum(dim=1) + 1000 * pairs.pair_index

        self.measured.append(measure(per_pair))
        both = measure(lambda pairs: torch.stack([per_pair(pairs), -per_pair(pairs)], dim=1))
        assert torch.equal(both, torch.stack([self.measured[-1], -self.measured[-1]], dim=1))
        with pytest.raises(ValueError, match=r"measures 20 pairs, got values of shape \(19,\)"):
            measure(lambda pairs: per_pair(pairs)[1:])
        assert self.training

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        assert pairs.pair_index is not None
        self.steps.append(pairs.pair_index.tolist())
        return super().terms(pairs, local_rows)


def test_measure_gives_every_pair_its_value_in_evaluation_mode() -> None:
    method = Recorder()
    fit(method, max_epochs=1)
    (values,) = method.measured
    assert method.training_seen == {False}
    data, before = scenes(augmentation="weak"), student(Recorder()).eval()  # the weights of the first epoch's start
    data.setup("fit")
    batch = data.split("train")
    rows = torch.arange(PAIRS).numpy()
    with torch.no_grad():
        image = before.encoder.encode_image(batch.images(batch.table.caption_image[rows]))
        text = before.encoder.encode_text(batch.texts(rows))
    expected = (image * text).sum(dim=1) + 1000 * torch.arange(PAIRS)
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-3)


class Reversed(Recorder):
    def epoch_order(self, epoch: int, permutation: Tensor, batch_size: int) -> Tensor:
        return torch.arange(PAIRS).flip(0) if epoch else permutation


def test_epoch_order_chooses_the_pairs_of_each_step() -> None:
    plain, method = Recorder(), Reversed()
    fit(plain)
    fit(method)
    assert [len(steps) for steps in (plain.steps, method.steps)] == [2 * STEPS, 2 * STEPS]
    assert method.steps[:STEPS] == plain.steps[:STEPS]
    assert [*chain(*method.steps[STEPS:])] == list(range(PAIRS))[::-1]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (torch.arange(BATCH), "at least 60 int64 rows, got .20,. torch.int64"),
        (torch.arange(PAIRS) + 1, "rows from 0 to 59, got 1 to 60"),
    ],
)
def test_an_order_that_does_not_fit_is_refused(order: Tensor, message: str) -> None:
    method = InfoNCE()
    method.epoch_order = lambda *_: order  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=message):
        fit(method)


class Hooks(InfoNCE):
    """Removes the gradient of the image tower, and counts optimiser steps."""

    def __init__(self) -> None:
        super().__init__()
        self.modified = self.stepped = 0

    def modify_gradients(self, encoder: DualEncoder) -> None:
        self.modified += 1
        for parameter in encoder.image_tower.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    def after_step(self) -> None:
        super().after_step()
        self.stepped += 1


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 6), (3, 2)])
def test_hooks_run_once_per_optimiser_step(accumulate: int, steps: int) -> None:
    before, method = student(InfoNCE()).state_dict(), Hooks()
    after = fit(method, accumulate_grad_batches=accumulate).state_dict()
    assert (method.modified, method.stepped) == (steps, steps)
    name = "encoder.image_tower.patch.bias"  # weights decay, biases do not
    assert torch.equal(before[name], after[name])
    assert not torch.equal(before["encoder.text_tower.mix.bias"], after["encoder.text_tower.mix.bias"])


class Distance(InfoNCE):
    """Ranks by the negative distance, which orders unit vectors as the cosine does, or backwards."""

    sign = -1.0

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        return self.sign * torch.cdist(images, texts, compute_mode="donot_use_mm_for_euclid_dist")


class Farthest(Distance):
    sign = 1.0


def test_a_similarity_of_its_own_ranks_validation_and_test() -> None:
    found = {}
    for kind in (InfoNCE, Distance, Farthest):
        module = student(kind())
        run = trainer(max_epochs=1)
        run.fit(module, datamodule=scenes())
        run.test(module, datamodule=scenes(), verbose=False)
        found[kind] = module.test_metrics, run.callback_metrics
    assert {name: value for name, value in found[InfoNCE][0].items() if name in found[Distance][0]} == pytest.approx(
        found[Distance][0], rel=1e-6
    )
    assert found[Distance][0]["t2i_MnR"] != found[Farthest][0]["t2i_MnR"]
    assert "i2i_NDCG@10" not in found[Distance][0]


class Wandering(InfoNCE):
    """An order that depends on state which changes at every step."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(0))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        assert pairs.pair_index is not None
        self.seen += pairs.pair_index[0]
        return super().terms(pairs, local_rows)

    def after_step(self) -> None:
        self.seen += 3

    def epoch_order(self, epoch: int, permutation: Tensor, batch_size: int) -> Tensor:
        return permutation.roll(int(self.seen))


def test_detection_of_corrupted_pairs_is_logged_where_the_method_estimates_them() -> None:
    names = {f"method/detection_{name}" for name in ("AUC", "estimated_share", "true_share")}
    logged = {}
    for method in (Oracle(), NCR(), InfoNCE()):
        module, data = student(method), scenes(imbalance=Imbalance("mismatch", 0.5))
        run = trainer(max_epochs=1, limit_val_batches=0)
        run.fit(module, datamodule=data)
        logged[type(method).__name__] = {
            key: run.logged_metrics[key].item() for key in names & run.logged_metrics.keys()
        }
    assert logged["Oracle"] == dict.fromkeys(names, 50.0) | {"method/detection_AUC": 100.0}
    assert logged["NCR"] == {
        "method/detection_AUC": 50.0,  # in the warm-up, all pairs count as clean
        "method/detection_estimated_share": 0.0,
        "method/detection_true_share": 50.0,
    }
    assert logged["InfoNCE"] == {}


@pytest.mark.filterwarnings("ignore:.*dirpath has changed")
@pytest.mark.parametrize("make", [lambda: NCR(noisy_from=2), Wandering], ids=["NCR", "order by state"])
def test_training_continues_exactly_from_any_step(make: Callable[[], Method], tmp_path: Path) -> None:
    def start() -> Any:
        return student(make()), scenes(augmentation="weak")

    assert_continues_from([*range(1, 3 * STEPS, 2)], start, tmp_path, max_epochs=3)


class WholeBatch(InfoNCE):
    supports_local_loss = False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: student(WholeBatch(), local_loss=True), "terms of WholeBatch do not decompose over rows"),
        (lambda: student(SDR({"itm": 1})), "the method SDR with these terms needs a fusion encoder"),
        (lambda: student(InfoNCE(), rerank=5), "rerank needs a fusion encoder"),
        (lambda: student(Distance(), protocol="paper"), "Distance ranks by its own similarity"),
    ],
)
def test_what_a_method_does_not_go_with_is_refused(make: Callable[[], RetrievalModule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("method", [AGREE(folds=2), Oracle()], ids=["AGREE", "Oracle"])
def test_mismatched_pairs_of_the_training_split_get_small_weights(method: Method) -> None:
    source = SceneSource(num_train=120, num_val=6, num_test=7, size=16)
    data = scenes(source=source, imbalance=Imbalance("mismatch", 0.4), batch_size=100)
    data.setup("fit")
    train, clean = data.split("train"), torch.from_numpy(data.table("train").caption_image)
    content = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    for modality, features in (("image", content), ("text", (content @ torch.ones(5, 7).triu())[clean])):
        train.attach_teacher(FeatureBank(modality, train.ids(modality), train.content(modality), features, "tower"))
    module = student(method)
    trainer(max_epochs=1, limit_val_batches=0).fit(module, datamodule=data)
    probability, right = module.state_dict()["method.clean_probability"], train.training_pairs().is_original
    assert int((~right).sum()) == 240
    assert probability[right].mean() > probability[~right].mean() + 0.5
