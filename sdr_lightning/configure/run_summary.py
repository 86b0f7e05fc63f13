"""What ``sdr fit`` prints at its end: the best score, the checkpoint, and what to do next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.paths import read_json
from sdr_lightning.training.checkpoints.best import best_checkpoint
from sdr_lightning.training.checkpoints.continuation import LAST
from sdr_lightning.training.retrieval_module import RetrievalModule
from sdr_lightning.training.teacher_module import TeacherModule


def run_summary(
    trainer: pl.Trainer, model: pl.LightningModule, data: Any, run_dir: Path, checkpoint: str | None, seconds: float
) -> str:
    """Summarise a finished training.

    Args:
        trainer: after training, when ``results.json`` is written.
        model: the student or teacher.
        data: its data module.
        run_dir: the run folder.
        checkpoint: of the selected epoch; None if none was kept.
        seconds: duration of the run.

    Returns:
        Lines of text: duration and best score, run folder, checkpoint, and the commands that use it.
    """
    lines = [f"finished in {seconds:.0f} s{_score(trainer, data, run_dir)}", f"run folder  {run_dir}"]
    if checkpoint is None:
        return "\n".join([*lines, f"no best checkpoint was kept: {_why_none(trainer)}"])
    file = Path(checkpoint)
    if file.is_relative_to(Path.cwd()):
        file = file.relative_to(Path.cwd())
    config, weights = (shlex.quote(str(path)) for path in (run_dir / "config.yaml", file))
    commands = []
    if isinstance(model, RetrievalModule):
        commands.append(f"sdr test --config {config} --ckpt_path {weights}")
        has_pictures = isinstance(data, RetrievalDataModule) and data.image_size is not None
        if has_pictures:  # those of a collection of features cannot be indexed
            commands.append(f"sdr index {shlex.quote(str(run_dir))} --images FOLDER --output my.index")
    elif isinstance(model, TeacherModule):
        teacher = f"{model.tower.modality}_teacher"
        commands.append(f"sdr fit --config STUDENT.yaml --{teacher}.config {config} --{teacher}.ckpt_path {weights}")
    following = [f"{'' if number else 'next':12}{command}" for number, command in enumerate(commands)]
    return "\n".join([*lines, f"checkpoint  {file}", *following])


def _score(trainer: pl.Trainer, data: Any, run_dir: Path) -> str:
    """The best value of the monitored metric, among how many items, and when; the number of epochs where none is monitored."""
    keeper = best_checkpoint(trainer)
    kept = read_json(run_dir / "results.json", "results of a run")["training"]["kept"]
    if keeper is None or keeper.monitor not in kept:
        return f", {trainer.current_epoch} epochs"
    after = f" after {int(kept['epoch']) + 1} of {trainer.current_epoch} epochs" if "epoch" in kept else ""
    of = ""
    if str(keeper.monitor).endswith("/rsum") and isinstance(data, RetrievalDataModule):
        table = data.table(data.select_on)
        of = f" of 600 among {len(table.image_ids):,} images and {len(table.captions):,} captions,"
    return f": best {keeper.monitor} {kept[keeper.monitor]:.4g}{of}{after}"


def _why_none(trainer: pl.Trainer) -> str:
    keeper = best_checkpoint(trainer)
    if keeper is None:
        return "trainer.enable_checkpointing is false"
    if trainer.global_step == 0:
        return "no step was trained"
    last = Path(str(keeper.dirpath)) / LAST
    return f"{keeper.monitor} was never measured" + (f"; {last} is of the last step" if last.is_file() else "")
