"""The two protocols: ``clean`` as configured, ``paper`` like the public code of the TIP 2024 paper."""

from __future__ import annotations

from typing import Any, Literal

ProtocolName = Literal["clean", "paper"]

_MODEL = "model.init_args"
PAPER: dict[str, Any] = {
    "data.init_args.select_on": "test",
    "data.init_args.train_words": 60,
    "data.init_args.evaluation_words": 30,
    f"{_MODEL}.protocol": "paper",
    f"{_MODEL}.gather": "albef",
    f"{_MODEL}.negatives": "local",
    f"{_MODEL}.optimisation.init_args.decayed": "published",
    f"{_MODEL}.optimisation.init_args.schedule": "linear",
    f"{_MODEL}.optimisation.init_args.newly_initialized_multiple": 1.0,
    "checkpoint.monitor": "test/rsum",
    "checkpoint.protocol": "paper",
}
"""Settings of the public code as options of ``sdr fit``:

- select the best checkpoint on the test split;
- cut captions after 60 words in training and after 30 in evaluation;
- scale the gradient of gathered losses by 1 / world size, and draw hard negatives within one process;
- apply weight decay to temperatures, to lambda and to the norm of the matching head;
- decay the learning rate linearly; use one learning rate for all layers.
"""
PAPER_SDR: dict[str, Any] = {f"{_MODEL}.method.init_args.clamp_temperatures": False}
"""Further settings of the method SDR: do not clamp temperatures."""
TRAIN_AND_VAL = ("flickr30k",)
"""Name prefixes of the collections that the public code trains on train and val."""


def paper_options(source_name: str, is_sdr: bool) -> dict[str, Any]:
    """Return the options of the paper protocol for a collection, and for a method that is or is not SDR."""
    both = source_name.startswith(TRAIN_AND_VAL)
    return PAPER | (PAPER_SDR if is_sdr else {}) | {"data.init_args.train_on": ["train", "val"] if both else ["train"]}
