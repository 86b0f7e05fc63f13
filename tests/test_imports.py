"""What Lightning and timm import without need is imported on first use."""

import subprocess
import sys

import pytest

SLOW = ["torchmetrics.functional", "wandb.sdk", "matplotlib", "scipy.stats", "sklearn", "pandas", "datasets"]
USES = [
    "from torchmetrics.functional.classification import binary_auroc",
    "from torchmetrics import MeanMetric; metric = MeanMetric(); metric.update(1.0); metric.plot()",
    "import torchmetrics; torchmetrics.functional.classification.binary_auroc; torchmetrics.MetricCollection",
    "import wandb; wandb.Settings",
]
PROGRAM = f"""
import os, sys
import sdr_lightning.cli.main, sdr_lightning.configure
from torchmetrics import Metric

print(*(name for name in {SLOW} if name in sys.modules), flush=True)
for use in {USES}:
    if not (child := os.fork()):  # each use is the first one
        exec(use)
        print(use, flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.slow
def test_what_a_training_does_not_use_is_left_out_and_works_when_it_is_used():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", *USES], done.stderr
