"""The jobs of a worker process: train a teacher, extract a bank, run a trial or a cell. Results are written last, in one step."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdr_lightning.configure import build, student_data, teacher_tower
from sdr_lightning.configure.lightning_cli import SdrCLI
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import SPLITS, Split
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.metrics.graded import single_modal
from sdr_lightning.metrics.structure import preserved
from sdr_lightning.paths import read_json, write_atomically, write_json
from sdr_lightning.results.codec import from_json, to_json
from sdr_lightning.results.schema import Data, Realised, Run, Selected, TeacherRecord, Trial
from sdr_lightning.studies.plan import BankJob, Cell, TeacherJob, imbalance_options
from sdr_lightning.training.checkpoints.best import best_checkpoint
from sdr_lightning.training.checkpoints.continuation import LAST, PREVIOUS, last_checkpoint
from sdr_lightning.training.extraction import extract_bank, split_bank
from sdr_lightning.training.retrieval_module import LossNotFiniteError, RetrievalModule
from sdr_lightning.training.tracking.record import environment
from sdr_lightning.types import Modality
from sdr_lightning.workers import log_to

_EXAMPLE_QUERIES, _EXAMPLE_RESULTS = 3, 5


def frozen_modalities(student: tuple[str, ...]) -> list[Modality]:
    """Return the modalities of the frozen towers of the student."""
    module = build(list(student)).model
    assert isinstance(module, RetrievalModule)
    return [tower.modality for tower in module.encoder.frozen_towers().values()]


def run_features(student: tuple[str, ...], modality: Modality, split: Split) -> None:
    """Cache the features of a frozen tower on the clean data, once for all cells."""
    cli = build(list(student))
    module, data = cli.model, cli.datamodule
    assert isinstance(module, RetrievalModule)
    assert isinstance(data, RetrievalDataModule)
    with log_to(data.cache / f"{modality}-{split}.log"):
        tower = next(tower for tower in module.encoder.frozen_towers().values() if tower.modality == modality)
        split_bank(tower, data, split, _device())


def describe(student: tuple[str, ...]) -> Data:
    """Return the data of the study, for its record."""
    data = student_data(list(student))
    train, test = data.table("train"), data.table("test")
    return Data(
        name=data.source.name,
        num_train_images=len(train.image_ids),
        num_train_captions=len(train.captions),
        num_test_images=len(test.image_ids),
        num_test_captions=len(test.captions),
        fingerprint=train.fingerprint,
        splits={split: data.table(split).fingerprint for split in SPLITS},
        relevance=data.source.relevance_description,
    )


def run_teacher(job: TeacherJob, student: tuple[str, ...], data_fingerprint: str) -> None:
    """Train a teacher unless it is pretrained, and measure its single-modal retrieval on the test split of the student."""
    started = time.time()
    _begin(job.folder, job.fingerprint, data_fingerprint)
    with log_to(job.folder / "log.txt"):
        if job.checkpoint is not None:
            _fit(job.arguments).end_tracking()
        tower = teacher_tower(job.config, str(job.checkpoint) if job.checkpoint else None)
        data = student_data(list(student))
        bank = extract_bank(tower, data, ["test"], _device())
        bank.save(job.test_bank)
        scores = single_modal(F.normalize(bank.features, dim=1), data.relevance("test"), tower.modality)
        metrics = {name.partition("_")[2]: value for name, value in scores.items()}  # without i2i_ or t2t_
    record = TeacherRecord(
        modality=job.modality,
        description=job.description,
        trained_on=job.trained_on,
        code=job.code,
        fingerprint=job.fingerprint,
        tower=bank.source,
        metrics=metrics,
        wall_time_s=time.time() - started,
    )
    write_json(job.result, to_json(record) | environment())
    _forget_steps(job.folder)


def run_bank(job: BankJob, student: tuple[str, ...]) -> None:
    """Extract the features of a teacher on the training split, and the placebo of random features."""
    checkpoint = str(job.teacher.checkpoint) if job.teacher.checkpoint else None
    with log_to(job.file.parent / f"{job.file.stem}.log"):
        tower = teacher_tower(job.teacher.config, checkpoint)
        data = student_data([*student, *imbalance_options(job.imbalances)])
        bank = extract_bank(tower, data, ["train"], _device())
        if job.placebo is not None:
            bank.placebo().save(job.placebo)
        bank.save(job.file)


def run_cell(cell: Cell, thumbnails: Path, data_fingerprint: str) -> None:
    """Train a student stage by stage, test the selected epoch of the last stage, and write the result."""
    started = time.time()
    _begin(cell.folder, cell.fingerprint, data_fingerprint)
    with log_to(cell.folder / "log.txt"):
        cli = _fit_stages(cell)
        module, data = cli.model, cli.datamodule
        assert isinstance(module, RetrievalModule)
        assert isinstance(data, RetrievalDataModule)
        best = best_checkpoint(cli.trainer)
        assert best is not None
        selected = _selected(cli)
        with cli.tracking():
            cli.trainer.test(module, data, ckpt_path=best.best_model_path, verbose=False)
        cli.end_tracking()
        assert module.test_embeddings is not None
        if cell.with_examples and data.image_size is not None:  # features cannot be shown
            write_json(cell.folder / "examples.json", _examples(*module.test_embeddings, data, thumbnails))
        structure = _structure(cell, data, *module.test_embeddings)
    run = Run(
        method=cell.method,
        imbalance=cell.imbalance,
        ratio=cell.ratio,
        seed=cell.seed,
        protocol=cli.protocol,
        options=cell.options,
        metrics=module.test_metrics | structure | module.detection(),
        scalars={name: value.item() for name, value in module.method.scalars().items()},
        selected=selected,
        realised=_realised(data.split("train").record()),
        evaluated_under={split: _realised(record) for split, record in data.evaluated_under().items()},
        data={split: data.table(split).fingerprint for split in SPLITS},
        code=cell.code,
        fingerprint=cell.fingerprint,
        wall_time_s=time.time() - started,
    )
    write_json(cell.result, to_json(run) | environment())
    _forget_steps(cell.folder)


def run_trial(trial: Cell, data_fingerprint: str, splits: Mapping[str, str]) -> None:
    """Train a student stage by stage and write the validation rsum of its selected epoch. The test split is not read.

    A training whose loss is not finite is a result: its options are not chosen.

    Args:
        trial: the trial.
        data_fingerprint: of the data of the study.
        splits: fingerprints of the training and the validation split, for the record.

    Raises:
        ValueError: the student's epochs are selected by another metric than validation rsum; or the training failed otherwise.
    """
    assert trial.trial is not None
    started = time.time()
    _begin(trial.folder, trial.fingerprint, data_fingerprint)
    selected, failure = None, ""
    with log_to(trial.folder / "log.txt"):
        try:
            selected = _selected(_fit_stages(trial))
        except ValueError as error:
            if not isinstance(error.__cause__, LossNotFiniteError):
                raise
            failure = str(error)
    if selected is not None and selected.on != "val/rsum":
        raise ValueError(
            f"trials are compared by val/rsum, but epochs are selected by {selected.on}: set checkpoint.monitor"
        )
    record = Trial(
        method=trial.method,
        imbalance=trial.imbalance,
        ratio=trial.ratio,
        seed=trial.seed,
        number=trial.trial,
        options=trial.options,
        selected=selected,
        failure=failure,
        data=splits,
        code=trial.code,
        fingerprint=trial.fingerprint,
        wall_time_s=time.time() - started,
    )
    write_json(trial.result, to_json(record) | environment())
    for path in trial.folder.rglob("*.ckpt"):
        path.unlink()


def _fit_stages(cell: Cell) -> SdrCLI:
    """Train stage by stage; return the last stage."""
    for arguments in cell.stages[:-1]:
        _fit(arguments).end_tracking()
    return _fit(cell.arguments)


def _selected(cli: SdrCLI) -> Selected:
    """The selected epoch of a training."""
    best = best_checkpoint(cli.trainer)
    assert best is not None
    epoch = torch.load(best.best_model_path, map_location="cpu", weights_only=True, mmap=True)["epoch"]
    score: Tensor | None = best.best_model_score
    return Selected(best.monitor or "", None if score is None else float(score), epoch, cli.trainer.current_epoch)


def _realised(record: dict[str, Any]) -> Realised:
    return from_json(Realised, record, "realised corruption")


def _structure(cell: Cell, data: RetrievalDataModule, image: Tensor, text: Tensor) -> dict[str, float]:
    """How much of the structure of each teacher's features of the test split the embeddings of the student preserve."""
    split = data.split("test")
    embeddings = {"image": image, "text": text}
    found: dict[str, float] = {}
    for teacher in cell.teachers:
        modality = cast(Modality, teacher.modality)
        bank = FeatureBank.load(teacher.test_bank, modality)
        features = bank.rows(split.ids(modality), split.content(modality))
        found |= {f"{modality}_{key}": value for key, value in preserved(embeddings[modality], features).items()}
    return found


_BEGUN = "begun.json"
_SILENT = ("--trainer.enable_progress_bar", "false")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_folder(folder: Path) -> None:
    """Refuse the folder of a job that holds files of another origin, because its content would be removed.

    Raises:
        ValueError: names the folder and what to do.
    """
    mark = folder / _BEGUN
    if folder.exists() and not mark.is_file():
        unfinished = f".{mark.stem}-"  # a mark whose writing was interrupted
        if not folder.is_dir() or any(not path.name.startswith(unfinished) for path in folder.iterdir()):
            raise ValueError(
                f"{folder} has no {_BEGUN}, so no job of this study wrote it: move it away, or choose another --output"
            )


def has_begun(folder: Path, fingerprint: str, data_fingerprint: str) -> bool:
    """Whether the folder is of the job with these settings, on these data."""
    mark = folder / _BEGUN
    return mark.is_file() and read_json(mark, "a job's mark") == _mark(fingerprint, data_fingerprint)


def _begin(folder: Path, fingerprint: str, data_fingerprint: str) -> None:
    """Mark the folder of a job. Files of the same job stay, those of another job are removed."""
    check_folder(folder)
    if folder.exists() and not has_begun(folder, fingerprint, data_fingerprint):
        shutil.rmtree(folder)
    write_json(folder / _BEGUN, _mark(fingerprint, data_fingerprint))


def _mark(fingerprint: str, data_fingerprint: str) -> dict[str, str]:
    return {"job": f"{fingerprint} {data_fingerprint}"}


def _fit(arguments: Sequence[str]) -> SdrCLI:
    """Train from the last checkpoint of this job if there is one; a finished stage stays as it is."""
    cli = build([*arguments, *_SILENT])
    folder = Path(cli.trainer.default_root_dir)
    (folder / "config.yaml").unlink(missing_ok=True)  # of this job; it is written again
    try:
        last: Path | None = last_checkpoint(folder / "checkpoints")
    except ValueError:  # nothing was saved, or nothing can be read
        last = None
    with cli.tracking():
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=last, weights_only=True)
    return cli


def _forget_steps(folder: Path) -> None:
    """Delete the checkpoints that only an unfinished job needs."""
    for name in (LAST, PREVIOUS):
        for path in folder.rglob(name):
            path.unlink()


def _examples(image: Tensor, text: Tensor, data: RetrievalDataModule, thumbnails: Path) -> dict[str, Any]:
    split = data.split("test")
    table = split.table
    queries: list[dict[str, Any]] = []
    for row in np.linspace(0, len(table.captions) - 1, _EXAMPLE_QUERIES + 2).astype(int)[1:-1]:
        truth = int(table.caption_image[row])
        top = (image @ text[row]).topk(min(_EXAMPLE_RESULTS, len(image)))
        results = [
            {"image": _thumbnail(data, i, thumbnails), "text": None, "score": s, "correct": i == truth}
            for s, i in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]
        queries.append(
            {
                "direction": "t2i",
                "query_text": table.captions[row],
                "query_image": None,
                "truth": [_thumbnail(data, truth, thumbnails)],
                "results": results,
            }
        )
    for row in np.linspace(0, len(table.image_ids) - 1, _EXAMPLE_QUERIES + 2).astype(int)[1:-1]:
        top = (text @ image[row]).topk(min(_EXAMPLE_RESULTS, len(text)))
        results = [
            {
                "image": None,
                "text": table.captions[int(c)],
                "score": float(s),
                "correct": int(table.caption_image[int(c)]) == int(row),
            }
            for s, c in zip(top.values, top.indices, strict=True)
        ]
        queries.append(
            {
                "direction": "i2t",
                "query_text": None,
                "query_image": _thumbnail(data, int(row), thumbnails),
                "truth": [],
                "results": results,
            }
        )
    return {"queries": queries}


def _thumbnail(data: RetrievalDataModule, row: int, folder: Path) -> str:
    split = data.split("test")
    key = f"test-{row}-{int(split.content('image')[row]) & 0xFFFFFFFF:08x}"
    path = folder / f"{key}.png"
    if not path.exists():
        picture = Image.fromarray(split.original(row))
        if min(picture.size) < 96:
            picture = picture.resize((96, 96), Image.Resampling.NEAREST)
        picture.thumbnail((128, 128))
        write_atomically(path, lambda part: picture.save(part))
    return key
