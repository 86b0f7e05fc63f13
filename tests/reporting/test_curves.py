from pathlib import Path

import pytest

from sdr_lightning.reporting.figures.curves import mean_curve, read_curves


def test_last_finite_value_of_an_epoch_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert read_curves(path) == {}
    path.write_text("epoch,step,train/loss,val/rsum\n0,10,3.0,\n0,20,2.5,\n0,20,,120.5\n1,40,,nan\n,41,9,9\n")
    curves = read_curves(path)
    assert curves["train/loss"] == {0: 2.5}
    assert curves["val/rsum"] == {0: 120.5}


def test_malformed_log_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for text, message in (
        ("step,loss\n1,2\n", "no column 'epoch'"),
        ("epoch,loss\n0,high\n", "line 2, column 'loss'"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path}: {message}"):
            read_curves(path)


def test_mean_curve_covers_the_shared_epochs() -> None:
    assert mean_curve([{0: 1.0, 1: 3.0, 2: 9.0}, {0: 3.0, 1: 5.0}]) == {0: 2.0, 1: 4.0}
    assert mean_curve([]) == {}
