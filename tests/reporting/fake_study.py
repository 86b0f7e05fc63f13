"""Write the folder of a study with synthetic metrics."""

import csv
import json
import math
import random
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from sdr_lightning.results.codec import to_json
from sdr_lightning.results.schema import (
    Data,
    Degree,
    Git,
    Part,
    Realised,
    Run,
    StudyImbalance,
    StudyMethod,
    StudyRecord,
    StudyStage,
    TeacherRecord,
)

PLACEBO = "SDR, placebo teachers"
METHODS = {
    "InfoNCE": ("Matching loss alone", {"itc": 1.0}),
    "InfoNCE + representation": ("With representation-level distillation", {"itc": 1.0, "iic": 1.0, "ttc": 2.0}),
    "InfoNCE + structure": ("With structure-aware distillation", {"itc": 1.0, "kd": 2.0, "kdi": 1.0, "kdt": 1.0}),
    "SDR": ("All terms", {"itc": 1.0, "iic": 1.0, "ttc": 2.0, "kd": 2.0, "kdi": 1.0, "kdt": 1.0}),
    PLACEBO: (
        "All terms, features of the teachers shuffled",
        {"itc": 1.0, "iic": 1.0, "ttc": 2.0, "kd": 2.0},
    ),
}
IMBALANCES = {
    "mismatch": StudyImbalance("mismatch", "mismatch", (), "Captions are exchanged between images."),
    "missing words": StudyImbalance("missing words", "missing_words", (3,), "Half of the words are dropped."),
    "image noise": StudyImbalance("image noise", "gaussian_noise", (5,), "Noise is added to the images."),
}
BASE = {"InfoNCE": 430.0, "InfoNCE + representation": 428.0, "InfoNCE + structure": 431.0, "SDR": 427.0, PLACEBO: 421.0}
SLOPE = {
    "InfoNCE": 300.0,
    "InfoNCE + representation": 240.0,
    "InfoNCE + structure": 230.0,
    "SDR": 190.0,
    PLACEBO: 310.0,
}
STEEPNESS = {"mismatch": 1.0, "missing words": 0.45, "image noise": 0.7, "none": 1.0}
CAPTIONS = (
    "a red cube left of a small green sphere",
    "two blue cylinders behind a yellow cone <script>",
    "a | b",
)


def write_study(
    root: Path,
    methods: tuple[str, ...] = ("InfoNCE", "SDR"),
    imbalances: tuple[str, ...] = ("mismatch",),
    ratios: tuple[float, ...] = (0, 0.6),
    seeds: tuple[int, ...] = (0, 1, 2),
    ndcg: bool = True,
    extras: bool = False,
) -> Path:
    """Write a complete study; ``extras`` adds logs, examples, thumbnails and teachers."""
    record = StudyRecord(
        name="scenes",
        title="Does structure-aware distillation help when one modality is poor?",
        description="Generated scenes; small encoders trained from random weights.",
        data=Data(
            name="Scenes",
            description="Rendered scenes of coloured solids with five captions each.",
            num_train_images=4000,
            num_train_captions=20000,
            num_test_images=1000,
            num_test_captions=5000,
            fingerprint="5ce4e5" * 8,
            relevance="share of objects and relations two scenes have in common.",
        ),
        baseline="InfoNCE",
        candidate="SDR",
        methods={m: StudyMethod(m, (StudyStage(weights=METHODS[m][1]),), description=METHODS[m][0]) for m in methods},
        imbalances={name: IMBALANCES[name] for name in imbalances},
        ratios=ratios,
        seeds=seeds,
        notes=("The imbalance protocols are not those of the paper.", "One data set, made by a program."),
        command="sdr reproduce experiments/scenes/study.yaml",
        wall_time_s=11100.0,
    )
    write_json(root / "study.json", to_json(record))
    for method in methods:
        for imbalance, ratio in conditions(imbalances, ratios):
            for seed in seeds:
                _write_run(root, method, imbalance, ratio, seed, ndcg, extras)
    if extras:
        _write_extras(root)
    return root


def conditions(imbalances: tuple[str, ...], ratios: tuple[float, ...]) -> list[tuple[str, float]]:
    return [("none", 0.0)] * (0 in ratios) + [(name, ratio) for name in imbalances for ratio in ratios if ratio]


def folder(root: Path, method: str, imbalance: str, ratio: float, seed: int) -> Path:
    return root / "cells" / f"{imbalance}-{ratio:g}" / method / f"seed-{seed}"


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def metrics_of(method: str, imbalance: str, ratio: float, seed: int, ndcg: bool = True) -> dict[str, float]:
    """Return deterministic metrics; rsum is the sum of the recalls."""
    draw = random.Random(f"{method} {imbalance} {ratio} {seed}")
    level = BASE[method] - SLOPE[method] * ratio * STEEPNESS[imbalance] + 6 * math.sin(7 * seed) + draw.gauss(0, 3)
    shares = {"R@1": 0.10, "R@5": 0.18, "R@10": 0.22}
    metrics = {f"{way}_{key}": level * share for way in ("i2t", "t2i") for key, share in shares.items()}
    metrics["rsum"] = math.fsum(metrics.values())
    for way in ("i2t", "t2i"):
        metrics |= {f"{way}_MdR": 2.0, f"{way}_MnR": 7.5, f"{way}_MRR": 0.6, f"{way}_tie_rate": 0.0012}
    metrics["modality_gap"] = 0.41 + draw.gauss(0, 0.01)
    for task, offset in {"i2i": 8.0, "t2t": 12.0, "i2it": 4.0, "t2it": 2.0}.items():
        for k in (10, 20, 50):
            metrics[f"{task}_NDCG@{k}"] = offset + level / 8 - k / 10 + draw.gauss(0, 0.6)
    for task in ("i2it", "t2it"):
        metrics[f"centred_{task}_NDCG@10"] = metrics[f"{task}_NDCG@10"] + 1
    return metrics if ndcg else {key: value for key, value in metrics.items() if "NDCG" not in key}


def _write_run(root: Path, method: str, imbalance: str, ratio: float, seed: int, ndcg: bool, extras: bool) -> None:
    at = folder(root, method, imbalance, ratio, seed)
    metrics = metrics_of(method, imbalance, ratio, seed, ndcg)
    run = Run(
        method=method,
        imbalance=imbalance,
        ratio=ratio,
        seed=seed,
        metrics=metrics,
        scalars={"temperature": 0.05 + 0.001 * seed},
        realised=_realised(imbalance, ratio, seed, extras and method != "InfoNCE"),
        fingerprint=sha256(str(at).encode()).hexdigest(),
        wall_time_s=231.4 + seed,
        versions={"torch": "2.14.0", "lightning": "2.6.1"},
        git=Git("0123456789abcdef0123456789abcdef01234567", dirty=seed == 2 and method == "SDR"),
        hardware="1 x GPU, 16 cores",
    )
    write_json(at / "results.json", to_json(run))
    if extras:
        _write_log(at / "metrics.csv", method, metrics["rsum"], seed)
        _write_examples(at / "examples.json", ratio, method, seed)


def realised_of(imbalance: str, ratio: float, seed: int, measured: bool) -> dict[str, Any]:
    """Realised corruption as results.json holds it, with its degree where both teachers are attached."""
    return dict(to_json(_realised(imbalance, ratio, seed, measured)))


def _realised(imbalance: str, ratio: float, seed: int, measured: bool) -> Realised:
    degree = 0.3 + 0.5 * ratio * STEEPNESS[imbalance] + 0.01 * seed
    return Realised(
        parts=(Part(imbalance, int(20000 * ratio), 20000),) if ratio else (),
        sha256=f"{seed}ab4" * 16,
        measured=Degree(degree, degree + 0.1) if measured else None,
    )


def _write_log(path: Path, method: str, rsum: float, seed: int) -> None:
    draw = random.Random(f"{method}{rsum}")
    with path.open("w", newline="") as file:
        columns = ["epoch", "step", "train/loss", "method/temperature", "val/rsum"]
        structure = method not in ("InfoNCE", "InfoNCE + representation")
        own = ["method/lambda", "method/representation_temperature", "method/relation_temperature"]
        columns += own if structure else []
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for epoch in range(12):
            row: dict[str, object] = {"epoch": epoch, "step": 100 * epoch + 50, "train/loss": 5 / (epoch + 1)}
            writer.writerow(row)
            row = {"epoch": epoch, "step": 100 * epoch + 99, "method/temperature": 0.07 - 0.003 * epoch}
            if structure:
                row["method/lambda"] = 0.5 + 0.03 * epoch + 0.005 * seed
                row["method/representation_temperature"] = 0.07 + 0.01 * epoch
                row["method/relation_temperature"] = 0.07 + 0.02 * epoch + 0.004 * seed
            writer.writerow(row)
            value = rsum * (1 - math.exp(-(epoch + 1) / 3)) + draw.gauss(0, 4)
            writer.writerow({"epoch": epoch, "step": 100 * epoch + 99, "val/rsum": value})


def _write_examples(path: Path, ratio: float, method: str, seed: int) -> None:
    draw = random.Random(f"{method}{seed}{ratio}")
    queries: list[dict[str, object]] = []
    for i, caption in enumerate(CAPTIONS):
        found = draw.sample(range(20), 5)
        results = [
            {"image": f"img{j}", "text": None, "score": 0.9 - 0.1 * n, "correct": n == (i + seed) % 3}
            for n, j in enumerate(found)
        ]
        query = {"direction": "t2i", "query_text": caption, "query_image": None, "truth": [f"img{i}"]}
        queries.append(query | {"results": results})
        texts = [{"image": None, "text": draw.choice(CAPTIONS), "score": 0.8, "correct": n < 2} for n in range(5)]
        query = {"direction": "i2t", "query_text": None, "query_image": f"img{i}", "truth": []}
        queries.append(query | {"results": texts})
    write_json(path, {"queries": queries})


def _write_extras(root: Path) -> None:
    for modality, task in {"image": "i2i", "text": "t2t"}.items():
        teacher = TeacherRecord(
            modality=modality,
            description=f"Contrastive, on the clean {modality}s of the training split alone",
            fingerprint=f"{task}" * 10,
            metrics={"NDCG@10": 71.25, "NDCG@20": 69.5, "NDCG@50": 66.0},
            wall_time_s=305.0,
        )
        write_json(root / "teachers" / modality / "teacher.json", to_json(teacher))
    (root / "thumbnails").mkdir()
    draw = random.Random(0)
    for i in range(19):  # one key has no thumbnail
        image = Image.new("RGB", (96, 96), (225, 228, 232))
        canvas = ImageDraw.Draw(image)
        for _ in range(4):
            x, y, size = draw.randrange(64), draw.randrange(64), draw.randrange(16, 34)
            colour = draw.choice(["#c0392b", "#2471a3", "#229954", "#d4ac0d", "#7d3c98"])
            draw_shape = draw.choice([canvas.ellipse, canvas.rectangle])
            draw_shape((x, y, x + size, y + size), fill=colour)
        image.save(root / "thumbnails" / f"img{i}.png")
