"""The output folder: pairs.csv, kept.csv, kept.yaml, summary.json and report.html."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sdr_lightning import __version__
from sdr_lightning.cleaning.captions import EMPTY
from sdr_lightning.cleaning.judgement import Cleaned
from sdr_lightning.cleaning.kept import kept_overlay, write_kept
from sdr_lightning.cleaning.page import render
from sdr_lightning.paths import check_folder, write_json

PAIRS, KEPT, OVERLAY, SUMMARY, REPORT = "pairs.csv", "kept.csv", "kept.yaml", "summary.json", "report.html"
FORMAT = "sdr-clean-1"
COLUMNS = ("id", "image", "caption", "mismatch_probability", "suggested_caption", "flags")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def check_folder_output(output: Path) -> None:
    """Check that the output folder is new, or an earlier output; call it before the work starts.

    Raises:
        ValueError: it is something else, or cannot be written.
    """
    check_folder(output.parent)
    if Path.cwd().is_relative_to(output.resolve()) or output.is_mount():
        raise ValueError(
            f"{output} holds the working directory or is a mount point, and the output folder is replaced as a whole: choose a "
            "folder inside it"
        )
    if output.exists() and not _is_own(output):
        raise ValueError(f"{output} exists and was not written by sdr clean: choose another folder, or move it away")


def write_folder(found: Cleaned, output: Path) -> dict[str, Any]:
    """Write the files. The folder appears whole or not at all; an earlier output is replaced.

    Args:
        found: the result of :func:`~sdr_lightning.cleaning.clean`.
        output: the folder.

    Returns:
        The content of ``summary.json``.

    Raises:
        ValueError: ``output`` exists and is no earlier output, or the user's table has changed since it was read.
    """
    check_folder_output(output)
    removed = {found.table.caption_ids[row] for row in np.flatnonzero(found.is_removed).tolist()}
    removed |= {empty.caption_id for empty in found.empty}
    overlay = kept_overlay(found.data, output.resolve() / KEPT)
    summary = summarised(found, None if overlay is None else str(output / OVERLAY))
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        whole = Path(folder) / "new"
        whole.mkdir()
        _write_pairs(found, whole / PAIRS)
        write_kept(found.data, removed, whole / KEPT)
        if overlay is not None:
            (whole / OVERLAY).write_text(overlay, encoding="utf-8")
        (whole / REPORT).write_text(render(found, summary), encoding="utf-8")
        write_json(whole / SUMMARY, summary)
        if output.exists():
            output.rename(Path(folder) / "old")
        whole.rename(output)
    return summary


def summarised(found: Cleaned, overlay: str | None) -> dict[str, Any]:
    """Return what was found, as numbers; `overlay` is the file of :func:`kept_overlay`."""
    wrong = found.mismatch >= found.threshold
    flags = sorted({flag for own in found.flags for flag in own})
    return {
        "format": FORMAT,
        "version": __version__,
        "collection": found.data.source.name,
        "split": found.split,
        "pairs": len(found.table.captions) + len(found.empty),
        "images": len(found.table.image_ids),
        "level": found.level,
        "teachers_agree": found.agrees,
        "estimated_share_of_wrong_pairs": found.share,
        "interval_95": list(found.interval),
        "threshold": found.threshold,
        "mismatched": int(wrong.sum()),
        "expected_precision": float(found.mismatch[wrong].mean()) if wrong.any() else None,
        "flags": {flag: found.count(flag) for flag in flags} | ({EMPTY: len(found.empty)} if found.empty else {}),
        "near_duplicates_from_cosine": found.near,
        "groups_of_duplicates": len(found.groups),
        "captions_in_other_splits": found.shared,
        "images_compared_in": list(found.compared),
        "removed": list(found.removed),
        "kept": int((~found.is_removed).sum()),
        "overlay": overlay,
        "notes": list(found.notes),
    }


def guarded(cell: str) -> str:
    """Prefix a cell that a spreadsheet would run as a formula with an apostrophe.

    >>> guarded("=1+1"), guarded("a dog")
    ("'=1+1", 'a dog')
    """
    return f"'{cell}" if cell.startswith(_FORMULA) else cell


def _write_pairs(found: Cleaned, path: Path) -> None:
    table = found.table
    with path.open("w", encoding="utf-8-sig", newline="") as file:  # without the mark, Excel does not expect UTF-8
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in found.order.tolist():
            suggestion = found.suggestions.get(row)
            writer.writerow(
                _guarded_row(
                    id=table.caption_ids[row],
                    image=found.image(row),
                    caption=table.captions[row],
                    mismatch_probability=f"{found.mismatch[row]:.4f}" if found.agrees else "",
                    suggested_caption="" if suggestion is None else table.captions[suggestion],
                    flags="; ".join(found.flags[row]),
                )
            )
        for empty in found.empty:
            writer.writerow(_guarded_row(id=empty.caption_id, image=empty.image_id, flags=EMPTY))


def _guarded_row(**cells: str) -> Mapping[str, str]:
    return {name: guarded(cell) for name, cell in cells.items()}


def _is_own(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    if not names:
        return True
    try:
        return (
            names <= {PAIRS, KEPT, OVERLAY, SUMMARY, REPORT}
            and json.loads((folder / SUMMARY).read_text())["format"] == FORMAT
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
