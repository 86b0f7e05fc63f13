import numpy as np
import pytest

from sdr_lightning.data.samplers import EvaluationSampler, TrainingSampler


def batches(sampler: TrainingSampler | EvaluationSampler) -> list[list[int]]:
    found = [draw.rows.tolist() for draw in sampler]
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_together_see_the_batches_of_one_process(world_size: int, epoch: int) -> None:
    single = TrainingSampler(30, 8, seed=5)
    single.set_epoch(epoch)
    ranks = []
    for rank in range(world_size):
        sampler = TrainingSampler(30, 8, 5, rank, world_size)
        sampler.set_epoch(epoch)
        ranks.append(batches(sampler))
    for step, whole in enumerate(batches(single)):
        shares = [rank[step] for rank in ranks]
        assert all(len(share) == 8 // world_size for share in shares)
        assert sorted(row for share in shares for row in share) == sorted(whole)


def test_an_epoch_sees_no_row_twice_and_leaves_out_the_incomplete_batch() -> None:
    found = batches(TrainingSampler(30, 8, seed=0))
    assert [len(batch) for batch in found] == [8, 8, 8]
    rows = [row for batch in found for row in batch]
    assert len(set(rows)) == 24
    assert set(rows) <= set(range(30))
    assert rows != sorted(rows)
    whole = batches(TrainingSampler(32, 8, seed=0))
    assert sorted(row for batch in whole for row in batch) == list(range(32))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TrainingSampler(100, 10, seed)
        sampler.set_epoch(epoch)
        np.random.default_rng().random()
        return batches(sampler)

    assert order(0, 2) == order(0, 2)
    orders = [order(seed, epoch) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_a_second_pass_without_a_new_epoch_is_the_same() -> None:
    sampler = TrainingSampler(20, 4, 0)
    assert batches(sampler) == batches(sampler)


def test_draws_carry_the_epoch() -> None:
    sampler = TrainingSampler(20, 4, 0)
    sampler.set_epoch(7)
    assert {draw.epoch for draw in sampler} == {7}
    assert {draw.epoch for draw in EvaluationSampler(np.arange(20), 4)} == {0}


def test_a_batch_as_large_as_the_data_is_one_step() -> None:
    assert [sorted(batch) for batch in batches(TrainingSampler(6, 6, 0))] == [list(range(6))]


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(ValueError, match=r"batch size 7 is larger than the 6 .*lower data\.init_args\.batch_size"):
        TrainingSampler(6, 7, 0)


def test_a_batch_that_ranks_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"batch size 10 cannot be divided over 4 processes: use a multiple of 4"):
        TrainingSampler(100, 10, 0, 0, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [3, 9, 10, 11, 12])
def test_evaluation_covers_every_row_once(size: int, world_size: int) -> None:
    ranks = [batches(EvaluationSampler(np.arange(size), 2, rank, world_size)) for rank in range(world_size)]
    rows = [row for rank in ranks for batch in rank for row in batch]
    assert sorted(rows) == list(range(size))
    lengths = [sum(map(len, rank)) for rank in ranks]
    assert max(lengths) - min(lengths) <= 1
    assert all(0 < len(batch) <= 2 for rank in ranks for batch in rank)


def test_fewer_items_than_ranks() -> None:
    with pytest.raises(ValueError, match="2 items to evaluate cannot be shared by 3 processes: use at most 2"):
        EvaluationSampler(np.arange(2), 2, 0, 3)


def test_evaluation_keeps_the_order() -> None:
    assert batches(EvaluationSampler(np.arange(5), 2)) == [[0, 1], [2, 3], [4]]
