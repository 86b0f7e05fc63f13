"""Each method from its overlay: the same at one and two processes, and a method of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.sdr import sdr, succeeded

SMALL = (
    *("--model", "experiments/models/tiny_vit_clip.yaml"),  # a batch norm would depend on the images of a process
    *("--data", "experiments/data/scenes.yaml", "--data.init_args.augmentation=none", "--data.init_args.batch_size=60"),
    *("--model.init_args.optimisation.init_args.learning_rate=1e-4", "--trainer.max_epochs=3"),
    *(f"--data.init_args.source.init_args.num_{name}={n}" for name, n in (("train", 60), ("val", 21), ("test", 20))),
    *("--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"),
)
# The gradient of an attention's key bias is zero but for rounding, which Adam normalises to steps of any sign.
ROUNDING = ("k_proj.bias", "qkv.bias")


def fit(root: Path, folder: Path, method: str | Path, *more: str) -> Any:
    succeeded(sdr("fit", *SMALL, "--config", method, *more, "--run_dir", folder, cwd=root))
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["infonce", "siglip", "ncr", "crcl", "gsc", "decl"])
def test_a_method_learns_the_same_at_one_and_two_processes(method: str, experiments: Path, tmp_path: Path) -> None:
    overlay = experiments / f"methods/{method}.yaml"
    one = fit(experiments.parent, tmp_path / "1", overlay, "--trainer.devices=1")
    two = fit(experiments.parent, tmp_path / "2", overlay, "--trainer.devices=2", "--trainer.strategy=ddp")
    assert one["global_step"] == two["global_step"] == 15
    for name, value in one["state_dict"].items():
        if not name.endswith(ROUNDING):
            # A posterior of NCR's mixture amplifies the differences of the costs that it is computed from.
            atol = 1e-4 if name == "method.clean_probability" else 2e-5
            torch.testing.assert_close(
                two["state_dict"][name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
            )


OWN_METHOD = '''
import torch
from sdr_lightning.methods import Method


class Hinge(Method):
    """The mean hinge over all negatives."""

    def __init__(self, margin: float = 0.2):
        super().__init__({"hinge": 1.0})
        self.margin = margin

    def terms(self, pairs, local_rows=slice(None)):
        scores = pairs.image @ pairs.text.T
        return {"hinge": (self.margin + scores - scores.diag()[:, None]).clamp(min=0).mean()}
'''


@pytest.mark.slow
def test_a_method_outside_the_package_is_one_file_and_one_yaml(experiments: Path, tmp_path: Path) -> None:
    (tmp_path / "my_methods.py").write_text(OWN_METHOD)
    overlay = tmp_path / "hinge.yaml"
    overlay.write_text("model: {init_args: {method: {class_path: my_methods.Hinge, init_args: {margin: 0.3}}}}\n")
    done = sdr(
        *("fit", *SMALL, "--config", overlay, "--run_dir", tmp_path / "run"),
        cwd=experiments.parent,
        PYTHONPATH=str(tmp_path),
    )
    succeeded(done)
    assert "train/hinge" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
