"""Two ways to train: as is right, and as the public code of the TIP 2024 paper does."""

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
    f"{_MODEL}.method.init_args.clamp_temperatures": False,
    f"{_MODEL}.optimisation.init_args.decayed": "published",
    f"{_MODEL}.optimisation.init_args.schedule": "linear",
    f"{_MODEL}.optimisation.init_args.newly_initialized_multiple": 1.0,
    "checkpoint.monitor": "test/rsum",
    "checkpoint.protocol": "paper",
}
"""What the public code does, as options of ``sdr fit``. Under the clean protocol each is what the configuration says.

- the best checkpoint is chosen on the test split;
- captions are cut at 60 words in training and at 30 in evaluation;
- gathered losses have 1 / world size of their gradient, and hard negatives are those of one process;
- temperatures are not kept in a range, and weight decay touches them, lambda and the matching head's norm;
- the learning rate falls linearly, and new layers do not have twice the learning rate, although it is asked for.
"""
TRAIN_AND_VAL = ("flickr30k",)
"""Collections that the public code trains on both, by the start of their name."""


def paper_options(source_name: str) -> dict[str, Any]:
    """The paper protocol's options for a collection."""
    both = source_name.startswith(TRAIN_AND_VAL)
    return PAPER | {"data.init_args.train_on": ["train", "val"] if both else ["train"]}
