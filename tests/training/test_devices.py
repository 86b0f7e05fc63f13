"""GPUs are shared out among trainings side by side."""

import pytest

from sdr_lightning.training.distributed.devices import shares


@pytest.mark.parametrize(
    ("visible", "jobs", "expected"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("4,6,7", 2, ["4", "6"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("0,1", 1, [None]),
        ("0", 2, [None, None]),
        ("", 2, [None, None]),
    ],
)
def test_equal_shares(visible: str, jobs: int, expected: list[str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in shares(jobs)] == expected
