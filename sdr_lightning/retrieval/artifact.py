"""An exported model as an artifact of the W&B run that trained it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdr_lightning.paths import read_json, read_yaml
from sdr_lightning.retrieval.exported import CONFIGURATION
from sdr_lightning.training.tracking.wandb_run import WandbRun

_LOGGER = "sdr_lightning.training.WandbRun"
_RECORD = "wandb.json"


def tracking(run: Path) -> WandbRun:
    """Return the logger of a run, which continues its W&B run. Nothing is started yet.

    Args:
        run: a run folder of ``sdr fit``.

    Raises:
        ValueError: the run was not logged to W&B, or wandb is not installed.
    """
    found = _settings(read_yaml(run / "config.yaml", "configuration of a run"))
    if found is None or not (run / _RECORD).is_file():
        raise ValueError(
            f"{run} was not logged to W&B, so there is no W&B run to add the model to: train with --config "
            "experiments/_base/wandb.yaml, or leave --wandb out"
        )
    return WandbRun(**{**found, "save_dir": str(run)})


def log_model(tracked: WandbRun, folder: Path) -> str:
    """Log an exported model as an artifact of type ``model``, and end the W&B run.

    Args:
        tracked: the logger, from :func:`tracking`.
        folder: folder of ``sdr export``.

    Returns:
        Name of the artifact, ``model-ID`` with the id of the W&B run. Logging another export adds a version.

    Raises:
        ValueError: W&B cannot start, or does not take the artifact.
    """
    import wandb

    configuration = read_json(folder / CONFIGURATION, "configuration of sdr export")
    run = tracked.experiment
    artifact = wandb.Artifact(
        f"model-{run.id}",
        "model",
        metadata={name: configuration[name] for name in ("format", "version", "fingerprint")},
    )
    try:
        artifact.add_dir(str(folder))
        run.log_artifact(artifact)
    except (wandb.Error, OSError, ValueError) as error:
        raise ValueError(f"W&B did not take the model: {' '.join(str(error).split())}") from error
    finally:
        run.finish()  # waits until the files are uploaded
    return str(artifact.name)


def _settings(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of the W&B logger in the configuration of a run; None without one."""
    loggers = document.get("trainer", {}).get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, Mapping) and logger.get("class_path") == _LOGGER:
            return dict(logger.get("init_args", {}))
    return None
