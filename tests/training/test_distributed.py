"""The table of embeddings, and actions of the first process."""

import pytest
import torch

from sdr_lightning.training.distributed.collectives import EmbeddingTable, in_first_process
from tests.training.student import trainer


def test_missing_last_row_is_rejected() -> None:
    table = EmbeddingTable()
    table.update(torch.tensor([0, 1]), torch.zeros(2, 3))  # of 3
    with pytest.raises(ValueError, match="needs 3 rows, got 2"):
        table.table(3)


def test_table_sorts_rows_and_resets() -> None:
    table = EmbeddingTable()
    for _ in range(2):
        table.update(torch.tensor([2, 0]), torch.tensor([[2.0], [0.0]]))
        table.update(torch.tensor([1]), torch.tensor([[1.0]]))
        assert table.table(3).tolist() == [[0.0], [1.0], [2.0]]


def test_duplicate_rows_are_rejected() -> None:
    table = EmbeddingTable()
    table.update(torch.tensor([0, 1, 1]), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="every row once"):
        table.table(3)


def test_errors_of_the_first_process_are_raised() -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match="No space left on device"):
        in_first_process(trainer(), fail)
