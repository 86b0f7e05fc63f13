"""What Lightning and timm import without need is imported on first use."""

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_configuring_a_training_leaves_out_what_it_does_not_use():
    slow = ["torchmetrics.functional", "wandb.sdk", "matplotlib", "scipy.stats", "sklearn", "pandas", "datasets"]
    found = f"print(*(name for name in {slow} if name in sys.modules))"
    assert run(f"import sys, sdr_lightning.cli.main, sdr_lightning.configure; {found}") == []


@pytest.mark.parametrize(
    "use",
    [
        "from torchmetrics.functional.classification import binary_auroc",
        "from torchmetrics import MeanMetric; import torch; metric = MeanMetric(); metric.update(1.0); metric.plot()",
        "import torchmetrics; torchmetrics.functional.classification.binary_auroc; torchmetrics.MetricCollection",
        "import wandb; wandb.Settings",
    ],
)
def test_what_was_left_out_works_when_it_is_used(use):
    assert run(f"import sdr_lightning.cli.main; from torchmetrics import Metric; {use}; print(Metric.__name__)") == [
        "Metric"
    ]
