"""Maximum number of tokens of text towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sdr_lightning.encoders import PrecomputedImageTower, TransformersTextTower
from sdr_lightning.encoders.text import check_tokens
from sdr_lightning.types import Tokens

SMALL: dict[str, Any] = {
    **{"vocab_size": 80, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "max_position_embeddings": 64,
}
GPT2: dict[str, Any] = {"vocab_size": 80, "n_positions": 64, "n_embd": 8, "n_head": 2, "n_layer": 1}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2}
TOWERS: dict[str, tuple[dict[str, Any], int | None]] = {
    "bert": (SMALL, 64),
    "roberta": (SMALL, 62),  # positions start at padding_idx + 1 = 2
    "mpnet": (SMALL, 62),
    "clip_text_model": (SMALL | SPECIAL, 64),
    "gpt2": (GPT2 | SPECIAL, 64),
    "deberta-v2": (SMALL | {"position_biased_input": False}, None),  # relative positions only
}


@pytest.mark.parametrize("kind", TOWERS)
def test_maximum_number_of_tokens(kind: str) -> None:
    config, longest = TOWERS[kind]
    tower = TransformersTextTower(config={"model_type": kind, **config}).eval()
    assert tower.max_positions == longest
    length = longest or 70
    tower(Tokens(torch.full((1, length), 5), torch.ones(1, length, dtype=torch.int64)))
    check_tokens(tower, 80, length)
    if longest is not None:
        message = f"the text tower has {longest} positions and max_tokens is {longest + 1}: .*to at most {longest}"
        with pytest.raises(ValueError, match=message):
            check_tokens(tower, 80, longest + 1)
    with pytest.raises(ValueError, match="the tokenizer has 81 entries and the text tower embeds 80"):
        check_tokens(tower, 81, length)


def test_tower_without_limits_passes() -> None:
    check_tokens(PrecomputedImageTower(4, 4), 10**6, 10**6)
