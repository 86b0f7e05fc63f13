"""The model card of an exported model, from the record of its run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdr_lightning.paths import read_json, read_yaml
from sdr_lightning.reporting.comparison import compare_systems, corruptions
from sdr_lightning.reporting.evaluation_files import load_systems

_SHOWN = ("i2t_R@1", "i2t_R@5", "i2t_R@10", "t2i_R@1", "t2i_R@5", "t2i_R@10", "rsum", "i2i_NDCG@10", "t2t_NDCG@10")
_HEADER = """---
library_name: sdr_lightning
pipeline_tag: feature-extraction
tags: [image-text-retrieval, image-to-text-retrieval, text-to-image-retrieval]
---
"""


def model_card(run: Path, name: str, metrics: Sequence[Path] = ()) -> str:
    """Write the card of a model.

    Args:
        run: the folder of the run of ``sdr fit``.
        name: title of the card.
        metrics: ``metrics.json`` of ``sdr test`` or ``sdr evaluate``, one per training seed; none: the card says so.

    Returns:
        Markdown with the front matter of the hub.

    Raises:
        ValueError: a file is missing or malformed.
    """
    document = read_yaml(run / "config.yaml", "configuration of a run")
    record = read_json(run / "run.json", "record of a run") if (run / "run.json").is_file() else {}
    sections = [
        f"# {name}\n\nA dual encoder for image-text retrieval, trained with sdr_lightning: images and texts are embedded in one "
        "space and compared by their embeddings.",
        _use(name),
        f"## Training\n\n{_table(_training(document, record, run))}",
        f"## Evaluation\n\n{_evaluation(metrics)}",
        f"## Limits\n\n{_limits(document)}",
        f"## Licences\n\n{_licences(document)}",
    ]
    return _HEADER + "\n" + "\n\n".join(sections) + "\n"


def _use(name: str) -> str:
    return (
        "## Use\n\n```python\nfrom sdr_lightning import load\n\n"
        f'model = load("{name}")  # this folder, or its name on the hub\n'
        'images = model.encode_images(["beach.jpg", "street.jpg"])  # (2, d), L2-normalised\n'
        'texts = model.encode_texts(["a dog runs on the beach"])  # (1, d)\n'
        "scores = model.similarity(images, texts)\n```"
    )


def _training(document: Mapping[str, Any], record: Mapping[str, Any], run: Path) -> Iterable[tuple[str, str]]:
    model, data = document["model"]["init_args"], document["data"]["init_args"]
    encoder = model["encoder"]["init_args"]
    source = data["source"]
    yield "method", _class(model["method"])
    yield "image tower", _tower(encoder["image_tower"])
    yield "text tower", _tower(encoder["text_tower"])
    yield "data", f"{source.get('init_args', {}).get('name') or _class(source)}, splits {', '.join(data['train_on'])}"
    yield "corruption of the training data", _corruption(record) or "none"
    yield "seed", str(document.get("seed_everything"))
    yield "epochs", str(document["trainer"]["max_epochs"])
    yield "batch size", str(data["batch_size"])
    yield "protocol", document["protocol"]
    kept = _kept(run)
    if "val/rsum" in kept:
        yield "rsum on the validation split, at the selected epoch", f"{kept['val/rsum']:.1f}"
    if record.get("git", {}).get("commit"):
        changed = " with uncommitted changes" if record["git"].get("dirty") else ""
        yield (
            "code",
            f"sdr_lightning {record['versions']['sdr_lightning']}, commit {record['git']['commit'][:10]}{changed}",
        )


def _kept(run: Path) -> dict[str, float]:
    file = run / "results.json"
    found: dict[str, float] = (
        read_json(file, "results of a run").get("training", {}).get("kept", {}) if file.is_file() else {}
    )
    return found


def _corruption(record: Mapping[str, Any]) -> str:
    parts = record.get("data", {}).get("train", {}).get("imbalances", [])
    return "; ".join(
        f"{part['kind']} of {part['modality']}, ratio {part['ratio']:g}" if "ratio" in part else str(part)
        for part in parts
    )


def _evaluation(metrics: Sequence[Path]) -> str:
    if not metrics:
        return (
            "No evaluation was given to `sdr export`. `sdr test` measures the model, `--metrics` adds it to this card."
        )
    compared = compare_systems(load_systems([f"model={','.join(map(str, metrics))}"]))
    means, settings = compared.means["model"], compared.settings
    rows = [
        (key, f"{means[key].value:.1f} [{means[key].low:.1f}, {means[key].high:.1f}]") for key in _SHOWN if key in means
    ]
    seeds = f"{compared.seeds} seed{'s' if compared.seeds > 1 else ''}"
    corrupted = "".join(f" Test data: {each}." for each in corruptions(compared))
    about = (
        f"On the {settings.split or 'given'} split: {settings.images} images and {settings.texts} captions, protocol "
        f"{settings.protocol}, {seeds}, 95 % bootstrap intervals over images{' and seeds' if compared.seeds > 1 else ''}. "
        f"Recall and NDCG in percent.{corrupted}"
    )
    return f"{about}\n\n{_table(rows)}"


def _limits(document: Mapping[str, Any]) -> str:
    words = document["data"]["init_args"]["tokenizer"].get("init_args", {}).get("max_tokens")
    longest = f" Texts are cut after {words} tokens." if words else ""
    return (
        "The model ranks; its similarities are no probabilities, and they are not comparable between models. It has learned "
        f"from the captions above and shares their language, topics and biases.{longest}"
    )


def _licences(document: Mapping[str, Any]) -> str:
    encoder = document["model"]["init_args"]["encoder"]["init_args"]
    towers = {name: encoder[f"{name}_tower"].get("init_args", {}).get("weights") for name in ("image", "text")}
    lines = [
        f"- The {name} tower starts from the weights `{_short(weights)}`: their licence holds."
        for name, weights in towers.items()
        if weights
    ]
    return "\n".join(lines or ["The towers were trained from random weights."]) + (
        "\n- Which licence the training data has is not recorded."
    )


def _short(weights: str) -> str:
    """Weights without the folders of the machine."""
    return weights if weights.startswith("package:") or not Path(weights).is_absolute() else Path(weights).name


def _class(part: Mapping[str, Any]) -> str:
    return str(part["class_path"]).rpartition(".")[2]


def _tower(part: Mapping[str, Any]) -> str:
    arguments = part.get("init_args", {})
    name = arguments.get("name") or (arguments.get("config") or {}).get("model_type") or ""
    weights = arguments.get("weights")
    start = f"weights {_short(weights)}" if weights else "random weights"
    return ", ".join(filter(None, (_class(part), name, start, "frozen" if arguments.get("frozen") else "trained")))


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])
