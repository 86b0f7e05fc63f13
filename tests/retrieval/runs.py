"""Run folders of untrained models."""

from pathlib import Path

import torch

from sdr_lightning.configure import build
from sdr_lightning.data import RetrievalDataModule
from sdr_lightning.training import RetrievalModule
from sdr_lightning.training.checkpoints.student import remove_frozen_weights


def write_run(folder: Path, *options: str | Path) -> tuple[RetrievalModule, RetrievalDataModule]:
    """Write the configuration and the checkpoint of a student as a run of ``sdr fit`` does, without training it.

    Args:
        folder: the run folder.
        options: options of ``sdr fit``.
    """
    made = build([*map(str, options), "--trainer.accelerator=cpu"])
    assert isinstance(made.model, RetrievalModule)
    assert isinstance(made.datamodule, RetrievalDataModule)
    with torch.no_grad():  # weights that no seed gives
        for number, weights in enumerate(made.model.encoder.image_projection.parameters()):
            weights.add_(0.01 * (number + 1))
    checkpoint = {"state_dict": made.model.state_dict()}
    remove_frozen_weights(checkpoint, made.model.encoder)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(made.parser.dump(made.config, skip_unset=False))
    torch.save(checkpoint, folder / "checkpoints/best.ckpt")
    return made.model, made.datamodule


def write_fusion_run(folder: Path, experiments: Path, *options: str) -> tuple[RetrievalModule, RetrievalDataModule]:
    """Write a run with a fusion encoder on 20 scenes."""
    sizes = [f"--data.init_args.source.init_args.num_{split}=20" for split in ("train", "test")]
    model = experiments / "models/tiny_fusion.yaml"
    return write_run(folder, "--config", experiments / "scenes/sdr.yaml", "--model", model, *sizes, *options)
