"""Assignment of GPUs to parallel jobs."""

import pytest

from sdr_lightning.training.distributed.devices import shares


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,6,7", 2, ["4", "6"]),
        ("0,1", 1, [None]),
        ("0", 2, [None, None]),
        ("", 2, [None, None]),
    ],
)
def test_gpus_are_divided_evenly(
    visible: str, jobs: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares(jobs)] == expected
