"""Detection of wrong pairs under injected mismatch: AGREE at both levels, LEMoN, and the cosine of a model trained on them.

    sdr bench detection --data experiments/data/flickr8k.yaml \\
        --image experiments/teachers/mobilenetv2.yaml --text experiments/teachers/minilm.yaml
    sdr bench detection ... --imbalances '[{kind: mismatch, level: caption}]' --ratios 0.4 --seeds 0

--image and --text are banks of the training split, or configurations of teachers, whose features are computed once and cached.
Prints a markdown table: mean over noise seeds (range). AUC: area under the ROC curve of the score against the truth. Share:
estimated share of wrong pairs. Precision: share of truly wrong pairs among the most suspicious ones, as many as the estimated
share says; for the last two, which estimate none, as many as are truly wrong. ECE: expected calibration error of the
probabilities, ten bins. LEMoN's joint space is the text space, into which held-out regressions map the images; its parameters
are the fixed ones of the paper. The trained model is linear projections of both teachers' features, which has seen the pairs
that it judges.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import yaml
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from sdr_lightning.configure import build_data
from sdr_lightning.configure.teacher import TeacherFiles
from sdr_lightning.data import RetrievalDataModule
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.features.bank import FeatureBank, is_bank
from sdr_lightning.functional.agreement import pair_agreement, predicted_text_features
from sdr_lightning.functional.contrastive import image_text_contrast
from sdr_lightning.functional.lemon import lemon_distance
from sdr_lightning.training.extraction import split_bank
from sdr_lightning.types import Modality, TrainingPairs

NOTHING = float("nan")


class Detected(NamedTuple):
    auc: float
    share: float
    precision: float
    ece: float
    seconds: float


def calibration_error(probability: Tensor, right: Tensor) -> float:
    """Return the mean distance between probability and frequency over ten bins, weighted by their sizes."""
    bins = (probability * 10).long().clamp(max=9)
    gaps = torch.zeros(10).index_add(0, bins, probability - right.float())
    return float(gaps.abs().sum() / len(probability))


def precision(score: Tensor, right: Tensor, share: float) -> float:
    """Return the share of wrong pairs among those of lowest score; NaN if there are none."""
    most = torch.argsort(score, stable=True)[: round(share * len(score))]
    return float((~right[most]).float().mean()) if len(most) else NOTHING


def agree(pairs: TrainingPairs, level: str) -> tuple[Tensor, float, Tensor]:
    found = pair_agreement(pairs.image_teacher, pairs.text_teacher, pairs.image_index, level)
    return found.score, found.share, found.probability


def lemon(pairs: TrainingPairs) -> tuple[Tensor, float, None]:
    image, text = predicted_text_features(pairs.image_teacher, pairs.text_teacher, pairs.image_index)
    return -lemon_distance(image, text, pairs.image_index), NOTHING, None


def trained_cosine(pairs: TrainingPairs) -> tuple[Tensor, float, None]:
    """Train linear projections to 256 dimensions by InfoNCE: 10 epochs, batches of 256, AdamW at 1e-3, temperature 0.07."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        towers = [nn.Linear(features.shape[1], 256) for features in (pairs.image_teacher, pairs.text_teacher)]
    optimiser = torch.optim.AdamW([weight for tower in towers for weight in tower.parameters()], lr=1e-3)

    def embedded(rows: Tensor) -> tuple[Tensor, Tensor]:
        image = towers[0](F.normalize(pairs.image_teacher[pairs.image_index[rows]], dim=1))
        return F.normalize(image, dim=1), F.normalize(towers[1](F.normalize(pairs.text_teacher[rows], dim=1)), dim=1)

    for _ in range(10):
        for rows in torch.randperm(len(pairs.image_index), generator=generator).split(256):
            optimiser.zero_grad()
            image_text_contrast(*embedded(rows), pairs.image_index[rows], 0.07).backward()
            optimiser.step()
    with torch.no_grad():
        image, text = embedded(torch.arange(len(pairs.image_index)))
    return (image * text).sum(1), NOTHING, None


DETECTORS: dict[str, Callable[[TrainingPairs], tuple[Tensor, float, Tensor | None]]] = {
    "AGREE, caption": lambda pairs: agree(pairs, "caption"),
    "AGREE, image": lambda pairs: agree(pairs, "image"),
    "LEMoN": lemon,
    "trained cosine": trained_cosine,
}


def detect(name: str, pairs: TrainingPairs) -> Detected:
    start = time.perf_counter()
    score, share, probability = DETECTORS[name](pairs)
    seconds = time.perf_counter() - start
    right = pairs.is_original
    both = bool(right.any()) and not bool(right.all())
    auc = roc_auc_score(right, score) if both else NOTHING
    ece = NOTHING if probability is None else calibration_error(probability, right)
    known = float((~right).float().mean()) if share != share else share
    return Detected(auc, share, precision(score, right, known) if both else NOTHING, ece, seconds)


def attach(data: RetrievalDataModule, modality: Modality, path: Path) -> None:
    if is_bank(path):
        bank = FeatureBank.load(path, modality)
    else:
        bank = split_bank(TeacherFiles(config=str(path)).tower(modality), data, "train", torch.device("cpu"))
    data.split("train").attach_teacher(bank)


def conditions(options: argparse.Namespace) -> Iterator[tuple[str, float, list[list[Imbalance]]]]:
    """Yield the description and ratio of each condition, and its corruption for each noise seed."""
    kinds = [Imbalance(**fields) for fields in yaml.safe_load(options.imbalances)]
    if 0 in options.ratios:
        yield "clean", 0.0, [[]]
    for kind in kinds:
        for ratio in options.ratios:
            if ratio:
                seeds = [[replace(kind, ratio=ratio, seed=seed)] for seed in options.seeds]
                yield described(kind), ratio, seeds


def described(imbalance: Imbalance) -> str:
    """Name the kind and the options that differ from the defaults."""
    default = Imbalance(imbalance.kind, modality=imbalance.modality)
    given = {"level": imbalance.level} | {k: v for k, v in vars(imbalance).items() if v != getattr(default, k)}
    return ", ".join([imbalance.kind, *(f"{name} {value}" for name, value in given.items())])


def summary(values: list[float], digits: int) -> str:
    known = [value for value in values if value == value]
    if not known:
        return ""
    mean = sum(known) / len(known)
    spread = f" ({min(known):.{digits}f} to {max(known):.{digits}f})" if len(known) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, help="configuration of data; other options of sdr fit's data may follow"
    )
    parser.add_argument("--image", type=Path, required=True, help="bank or configuration of the image teacher")
    parser.add_argument("--text", type=Path, required=True, help="bank or configuration of the text teacher")
    parser.add_argument(
        "--imbalances",
        default="[{kind: mismatch, level: image}, {kind: mismatch, level: caption}]",
        help="YAML list of options of Imbalance, without ratio and seed",
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.2, 0.4, 0.6])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the noise")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=list(DETECTORS))
    options, more = parser.parse_known_args()
    print("| imbalance | ratio | detector | AUC | share | precision | ECE | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for description, ratio, seeds in conditions(options):
        trainings = []
        for imbalances in seeds:
            data = build_data(["--data", options.data, *more])
            data.imbalances = imbalances
            for modality in ("image", "text"):
                attach(data, modality, getattr(options, modality))
            trainings.append(data.split("train").training_pairs())
        for name in options.detectors:
            found = [detect(name, pairs) for pairs in trainings]
            cells = [
                summary(list(values), digits)
                for values, digits in zip(zip(*found, strict=True), (3, 3, 3, 3, 1), strict=True)
            ]
            print(f"| {description} | {ratio:g} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
