"""Import of checkpoints of the public code of the TIP 2024 paper.

Key names follow X-VLM: ``vision_encoder`` (Swin), ``text_encoder`` (BERT; its later layers are the fusion encoder),
``vision_proj``, ``text_proj`` and ``itm_head``. The paper adds ``sig_vision_proj``, ``sig_text_proj``, ``img_wd_proj``,
``text_wd_proj``, ``temp``, ``temp2`` and ``lamba``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from sdr_lightning.encoders.fusion import bert_name
from sdr_lightning.encoders.image import TimmImageTower
from sdr_lightning.methods.sdr import SDR
from sdr_lightning.training.retrieval_module import RetrievalModule

_HEADS = {
    "vision_proj": "encoder.image_projection.1",
    "text_proj": "encoder.text_projection.1",
    "itm_head": "encoder.fusion.head",
    "sig_vision_proj": "method.project_image_teacher",
    "sig_text_proj": "method.project_text_teacher",
    "img_wd_proj": "method.structure.image_teacher_mlp",
    "text_wd_proj": "method.structure.text_teacher_mlp",
}
_SCALARS = {
    "temp": "method.temperature.value",
    "temp2": "method.structure.temperature.value",
    "lamba": "method.structure.text_share.value",
}
_TEXT = "encoder.text_tower.encoder.model."
_ENCODER_PREFIXES = ("vision_encoder.", "text_encoder.", "vision_proj.", "text_proj.", "itm_head.")
_IGNORED = re.compile(
    r"relative_position_index$|attn_mask$|^vision_encoder\.head\.|position_ids$|^text_encoder\.(bert\.)?pooler\.|^text_encoder\.cls\."
)
_ADVICE = "configure the architecture that the checkpoint was trained with"


class Imported(NamedTuple):
    """Result of an import.

    Attributes:
        used: keys of the public code, by the keys of this package.
        unused: keys of the public code that were not loaded.
        missing: keys of this package that are not in the checkpoint; their values are unchanged.
    """

    used: dict[str, str]
    unused: list[str]
    missing: list[str]


def import_public_sdr(module: RetrievalModule, state: dict[str, Tensor]) -> Imported:
    """Load a checkpoint of the public code into a student.

    Args:
        module: a student with a timm Swin, a BERT divided into text tower and fusion encoder, and linear projections.
            Modified in place.
        state: state dict of the checkpoint.

    Returns:
        The keys that were used, unused and missing.

    Raises:
        ValueError: the student has another architecture, or weights of the encoder are missing or have other shapes. The
            student is then unchanged.
    """
    if module.encoder.fusion is None or not isinstance(module.encoder.image_tower, TimmImageTower):
        raise ValueError("the public code's checkpoints go into a student with a timm image tower and a fusion encoder")
    if not isinstance(module.method, SDR):
        raise ValueError(
            f"the public code's checkpoints hold an SDR method, and the student's is {type(module.method).__name__}"
        )
    if module.method.has_structure and module.method.structure.text_share.kind == "bounded":
        raise ValueError("the public code's lambda has no bounds: configure text_share's kind as free or fixed")
    own = module.state_dict()
    found: dict[str, tuple[str, Tensor]] = {}
    for key, theirs, value in _renamed(module, state):
        if key in own:
            found[key] = theirs, value.reshape(()) if own[key].ndim == 0 and value.numel() == 1 else value
    used = {key: theirs for key, (theirs, _) in found.items()}
    missing = sorted(own.keys() - found.keys())
    unused = sorted(state.keys() - set(used.values()))
    lacking = [key for key in missing if key.startswith("encoder.")]
    unmatched = [theirs for theirs in unused if theirs.startswith(_ENCODER_PREFIXES) and not _IGNORED.search(theirs)]
    for key, (theirs, value) in found.items():
        if value.shape != own[key].shape:
            raise ValueError(
                f"{theirs} is of shape {tuple(value.shape)} and {key} of {tuple(own[key].shape)}: {_ADVICE}"
            )
    if lacking:
        raise ValueError(f"the checkpoint lacks {len(lacking)} weights of the encoder, first {lacking[0]}: {_ADVICE}")
    if unmatched:
        raise ValueError(
            f"{len(unmatched)} weights of the checkpoint have no place in the student, first {unmatched[0]}: {_ADVICE}, its "
            "layers and its projections"
        )
    module.load_state_dict({key: value for key, (_, value) in found.items()}, strict=False)
    return Imported(used, unused, missing)


def _renamed(module: RetrievalModule, state: dict[str, Tensor]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield the key in this package, the key in the public code, and the value."""
    assert module.encoder.fusion is not None
    fusing = {bert_name(name): name for name in module.encoder.fusion.layers[0].state_dict()}
    split = int(module.encoder.text_tower.encoder.model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]
    for theirs, value in state.items():
        part, _, name = theirs.partition(".")
        if theirs in _SCALARS:
            yield _SCALARS[theirs], theirs, value
        elif part in _HEADS:
            yield f"{_HEADS[part]}.{name}", theirs, value
        elif part == "vision_encoder":  # downsampling is the end of a stage there, the start of the next in timm
            renamed = re.sub(r"layers\.(\d+)\.downsample", lambda at: f"layers.{int(at[1]) + 1}.downsample", name)
            yield f"encoder.image_tower.model.{renamed}", theirs, value
        elif part == "text_encoder":
            name = name.removeprefix("bert.")
            layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
            if layer is None or int(layer[1]) < split:
                yield _TEXT + name, theirs, value
            elif layer[2] in fusing:
                yield f"encoder.fusion.layers.{int(layer[1]) - split}.{fusing[layer[2]]}", theirs, value
