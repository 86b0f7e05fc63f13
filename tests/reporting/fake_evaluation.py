"""Write the files of ``sdr evaluate --output`` with synthetic ranks."""

import json
from pathlib import Path
from typing import Any

import numpy as np

CAPTIONS = 3


def write_evaluation(
    path: Path, skill: float = 0.0, seed: int = 0, images: int = 60, graded: bool = True, **meta: Any
) -> Path:
    """Write ``metrics.json`` and its queries; higher `skill` gives better ranks, `meta` replaces entries."""
    rng = np.random.default_rng(seed)
    hard = np.random.default_rng(99).normal(0, 1, images)  # difficulty of each image, shared by all systems
    text_image = np.arange(images).repeat(CAPTIONS)

    def ranks(image: np.ndarray) -> np.ndarray:
        return np.exp(1.2 + hard[image] - skill + rng.normal(0, 1, len(image))).astype(np.int64)

    arrays = {"text_image": text_image, "i2t_rank": ranks(np.arange(images)), "t2i_rank": ranks(text_image)}
    metrics = {
        f"{way}_R@{k}": 100 * float((arrays[f"{way}_rank"] < k).mean()) for way in ("i2t", "t2i") for k in (1, 5, 10)
    }
    metrics["rsum"] = sum(metrics.values())
    for task, image in {"i2i": np.arange(images), "t2t": text_image}.items() if graded else ():
        for metric in (f"{task}_NDCG@10", f"{task}_NDCG_exp@25"):
            values = 100 / (1 + np.exp(hard[image] - skill + rng.normal(0, 0.5, len(image))))
            values[:CAPTIONS] = np.nan
            arrays[metric], metrics[metric] = values, float(np.nanmean(values))
    metrics |= {"i2t_MdR": 3.0, "t2i_MdR": 4.0, "i2t_tie_rate": 0.0, "modality_gap": 0.8123}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path.with_suffix(".queries.npz"), **arrays)
    described = {
        "protocol": "clean",
        "split": "test",
        "images": images,
        "texts": images * CAPTIONS,
        "ties": "index",
        "siblings": "keep",
        "relevance": {"kind": "rouge-l", "fingerprint": "ab" * 32} if graded else None,
        "data": "cd" * 32,
        "folds": None,
        "code": {"version": "0.1.0", "commit": "0123456789abcdef", "dirty": False},
        "inputs": {"images": f"{seed:02x}" * 32, "texts": "ef" * 32},
    }
    path.write_text(json.dumps(metrics | {"meta": described | meta}))
    return path
