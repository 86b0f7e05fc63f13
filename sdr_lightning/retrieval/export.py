"""Export a trained model as a folder that stands alone: weights, configuration, tokenizer and model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from sdr_lightning import __version__
from sdr_lightning.configure.arguments import imported_class
from sdr_lightning.encoders.fusion import FusionEncoder
from sdr_lightning.encoders.image import TimmImageTower, TransformersImageTower
from sdr_lightning.encoders.text import TransformersTextTower
from sdr_lightning.encoders.transformer import model_config
