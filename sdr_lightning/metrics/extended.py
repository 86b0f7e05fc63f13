"""Extended positives of COCO's test split from the package ``eccv_caption``: ECCV Caption and CxC.

References: Chun et al., "ECCV Caption: Correcting False Negatives by Collecting Machine-and-Human-verified Image-Caption
Associations for MS-COCO", ECCV 2022; Parekh et al., "Crisscrossed Captions", EACL 2021.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sdr_lightning.functional.search import top_k

_DEPTH = 60  # more than the positives of any query: at most 48 captions of an image, 19 images of a caption


def extended_positives(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    image_ids: Sequence[str],
    caption_ids: Sequence[str],
    text_image_index: Tensor,
) -> dict[str, float]:
    """Evaluate retrieval against human-verified positives beyond the original pairs.

    An image is identified by the number in its name (``COCO_val2014_000000391895.jpg``). A caption is identified by its id if
    that is COCO's annotation id, as in Karpathy's file. Otherwise the k-th caption of an image is the k-th in the package's
    list, which has Karpathy's order; captions beyond that list (a sixth caption) are removed from the gallery.

    Args:
        image_embeddings: (N, d), L2-normalised.
        text_embeddings: (C, d), L2-normalised.
        image_ids: N names.
        caption_ids: C ids.
        text_image_index: (C,) the image of each caption.

    Returns:
        In percent: ``eccv_i2t_mAP@R``, ``eccv_i2t_R-Precision``, ``eccv_i2t_R@1``, ``cxc_i2t_R@1``, ``cxc_i2t_R@5``,
        ``cxc_i2t_R@10``, and the same for ``t2i``.

    Raises:
        ValueError: the package is not installed, or the items are not the whole test split of COCO.
    """
    metrics = _package()
    images = [_number(name) for name in image_ids]
    known = list(dict.fromkeys(image for (image,) in (metrics.coco_gts["t2i"][int(c)] for c in metrics.coco_ids)))
    _check_whole("images", images, known)
    captions, rows = _captions(metrics, images, caption_ids, text_image_index.tolist())
    texts = text_embeddings[torch.tensor(rows, device=text_embeddings.device)]
    i2t = top_k(image_embeddings, texts, _DEPTH).items.tolist()
    t2i = top_k(texts, image_embeddings, _DEPTH).items.tolist()
    retrieved = {
        "i2t": {image: [captions[c] for c in found] for image, found in zip(images, i2t, strict=True)},
        "t2i": {caption: [images[i] for i in found] for caption, found in zip(captions, t2i, strict=True)},
    }
    results: dict[str, float] = {}
    with contextlib.redirect_stderr(io.StringIO()):  # hide the package's progress bars
        eccv = metrics.eccv_metrics(retrieved, "all")
        for key, name in (("eccv_map_at_r", "mAP@R"), ("eccv_rprecision", "R-Precision"), ("eccv_r1", "R@1")):
            results |= {f"eccv_{way}_{name}": 100 * float(eccv[key][way]) for way in ("i2t", "t2i")}
        for k in (1, 5, 10):
            recalls = metrics.cxc_recalls(retrieved, "all", K=k)
            results |= {f"cxc_{way}_R@{k}": 100 * float(recalls[way]) for way in ("i2t", "t2i")}
    return results


def _package() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="failed to import", category=UserWarning)
            from eccv_caption import Metrics
    except ImportError as error:
        raise ValueError(
            "extended positives need the package eccv_caption: pip install 'sdr_lightning[eccv]'"
        ) from error
    return Metrics()


def _number(name: str) -> int:
    digits = re.findall(r"\d+", name.rpartition("/")[2])
    if not digits:
        raise ValueError(f"{name!r} names no COCO image: expected a name that ends with its number")
    return int(digits[-1])


def _check_whole(what: str, found: Sequence[int], wanted: Sequence[int]) -> None:
    unknown, missing = set(found) - set(wanted), set(wanted) - set(found)
    if unknown or missing:
        first = f"{min(unknown)} is not of it" if unknown else f"{min(missing)} is missing"
        raise ValueError(
            f"extended positives are of COCO's whole test split; {len(unknown)} {what} are not of it and {len(missing)} are "
            f"missing, e.g. {first}"
        )


def _captions(
    metrics: Any, images: Sequence[int], caption_ids: Sequence[str], text_image: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the COCO ids of the captions that have one, and their rows."""
    wanted = [int(caption) for caption in metrics.coco_ids]
    known = set(wanted)
    by_id = [(int(name), row) for row, name in enumerate(caption_ids) if name.isdigit() and int(name) in known]
    if not by_id:
        listed: dict[int, list[int]] = {}
        for caption in wanted:
            listed.setdefault(metrics.coco_gts["t2i"][caption][0], []).append(caption)
        seen = dict.fromkeys(images, 0)
        for row, place in enumerate(text_image):
            image = images[place]
            if seen[image] < len(listed[image]):
                by_id.append((listed[image][seen[image]], row))
            seen[image] += 1
    _check_whole("captions", [caption for caption, _ in by_id], wanted)
    return [caption for caption, _ in by_id], [row for _, row in by_id]
