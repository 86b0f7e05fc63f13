"""Text towers: any encoder of transformers."""

from __future__ import annotations

import json
from typing import Any, Literal

from torch import Tensor

from sdr_lightning.encoders.tower import Tower
from sdr_lightning.encoders.weights import unreachable
from sdr_lightning.paths import expand, package_path
from sdr_lightning.types import Tokens


class TransformersTextTower(Tower):
    """A transformers encoder with pooling over its last layer.

    Args:
        weights: a folder, a hub name, or ``package:NAME/FOLDER`` inside an installed package; None for random weights.
            ``$NAME`` and ``${NAME:-default}`` are filled in from the environment.
        config: with random weights, the architecture: ``model_type`` and the arguments of its configuration.
        pooling: ``mean`` over the tokens of the caption, or the first token, ``cls``.
        frozen: see :class:`~sdr_lightning.encoders.tower.Tower`.

    Raises:
        ValueError: neither weights nor config, or weights that cannot be had.
    """

    modality = "text"

    def __init__(
        self,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        pooling: Literal["mean", "cls"] = "mean",
        frozen: bool = False,
    ) -> None:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        logging.set_verbosity_error()  # a pooler that is left out on purpose is no news
        logging.disable_progress_bar()
        super().__init__(frozen)
        if (weights is None) == (config is None):
            raise ValueError("a text tower needs either weights or config (with its model_type), and not both")
        if weights is not None:
            reference = package_path(expand(weights))
            try:
                self.model = AutoModel.from_pretrained(reference, **_no_pooler(AutoConfig.from_pretrained(reference)))
            except (OSError, ValueError) as error:
                raise unreachable("text tower", reference, "text_tower.init_args.weights", error) from error
        else:
            assert config is not None
            try:
                settings = AutoConfig.for_model(**config)
            except (TypeError, ValueError) as error:
                raise ValueError(f"config needs a model_type that transformers knows, got {config}") from error
            self.model = AutoModel.from_config(settings, **_no_pooler(settings))
        if pooling not in ("mean", "cls"):
            raise ValueError(f"pooling must be mean or cls, got {pooling!r}")
        self.pooling = pooling
        self.width = int(self.model.config.hidden_size)
        self.vocabulary_size = int(self.model.config.vocab_size)
        self.freeze_if_asked()

    def settings(self) -> str:
        """The configuration of the model, without where it came from, and the pooling."""
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in _PROVENANCE}
        return f"{self.pooling} {json.dumps(config, sort_keys=True, default=str)}"

    def features(self, inputs: Tokens) -> Tensor:
        """Encode captions.

        Args:
            inputs: tokens of B captions.

        Returns:
            (B, D) pooled features.
        """
        hidden: Tensor = self.model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask
        ).last_hidden_state  # (B, L, D)
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = inputs.attention_mask.unsqueeze(-1).to(hidden.dtype)  # (B, L, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


_PROVENANCE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def _no_pooler(config: Any) -> dict[str, bool]:
    # BERT's pooler is trained for next-sentence prediction; an unused one would be an unused parameter under DDP.
    return {"add_pooling_layer": False} if config.model_type in ("bert", "roberta") else {}
