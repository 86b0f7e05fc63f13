"""Warnings of libraries that do not concern the user of ``sdr``."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_IGNORED = (
    ".*`srun` command is available.*",
    ".*args parameter is intended to run from within Python.*",
    ".*have no `validation_step`.*",  # teachers are not validated
    ".*tensorboardX.*",
    ".*does not have many workers.*",
    ".*exists and is not empty.*",
    ".*smaller than the logging interval.*",
    ".*dirpath has changed.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*callbacks used to create the checkpoint.*",  # the protocol sets the monitor of BestCheckpoint
    ".*could not find the monitored key.*",  # reported by after_fit
    ".*Detected call of .lr_scheduler.step.*",  # the gradient scaler of fp16 skips the first steps
    ".*torch.distributed.nn.functional.* is deprecated.*",  # used by Lightning
    ".*sync_dist=True.*",  # metrics are computed from gathered tensors, equal in all processes
    ".*in eval mode at the start of training.*",  # frozen towers
)


@contextlib.contextmanager
def without_foreign_warnings() -> Iterator[None]:
    """Suppress warnings of Lightning, jsonargparse and transformers that do not concern the user."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in _IGNORED:
            warnings.filterwarnings("ignore", message=message)
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of dependencies
        yield
