"""The tables of metrics in a terminal."""

import pytest
import torch

from sdr_lightning.configure.metric_tables import print_metrics
from sdr_lightning.metrics import FactRelevance, evaluate


def test_every_metric_is_printed_once(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    relevance = FactRelevance([[1, 0], [0, 1]], [[1, 0], [0, 1]])
    found = evaluate(torch.eye(2), torch.eye(2), torch.arange(2), relevance)
    everything = found | {f"5fold_{name}": value for name, value in found.items() if "NDCG" not in name} | {"gap": 0.5}
    # A number of its own for each metric, and one that is undefined.
    metrics = dict(zip(everything, (10.01 + number for number in range(len(everything))), strict=True))
    metrics["t2t_NDCG@10"] = float("nan")
    print_metrics(metrics)
    text = capsys.readouterr().out
    for name, value in metrics.items():
        if name.endswith("tie_rate"):
            assert text.count(f"{100 * value:.2f} %") == 1, name
        elif name != "t2t_NDCG@10":
            assert text.count(f"{value:.2f}") == 1, name
    assert text.count("–") == 1
    assert text.count("Cross-modal retrieval") == 2
    assert "gap" in text.splitlines()[-1]


def test_without_relevance_there_is_no_table_of_ndcg(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(evaluate(torch.eye(2), torch.eye(2), torch.arange(2)))
    text = capsys.readouterr().out
    assert "rsum 600.00" in text
    assert "NDCG" not in text
