"""Export to ONNX: one graph per modality, and one of the fusion encoder, compared with torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.functional.search import chunks
from sdr_lightning.metrics.evaluation import evaluate_queries
from sdr_lightning.progress import progress
from sdr_lightning.retrieval.collection import data_split, readable
from sdr_lightning.retrieval.retriever import Retriever
from sdr_lightning.types import Encoded, Tokens

IMAGE, TEXT, FUSION = "image.onnx", "text.onnx", "fusion.onnx"
_OPSET = 20
_BATCH = 64


class Parity(NamedTuple):
    """The agreement of a graph in ONNX Runtime with torch.

    Attributes:
        graph: file name.
        difference: largest absolute difference of the outputs.
        cosine: least cosine between the outputs of an item; NaN for scores.
    """

    graph: str
    difference: float
    cosine: float


def export_onnx(model: Retriever, folder: Path) -> list[Parity]:
    """Write ``image.onnx`` and ``text.onnx``, and ``fusion.onnx`` where there is a fusion encoder, and compare them with torch.

    Inputs and outputs, B and L are dynamic:

    - ``image.onnx``: ``pixels`` (B, 3, S, S) uint8 to ``image_embedding`` (B, d), L2-normalised, and with a fusion encoder
      ``image_tokens``.
    - ``text.onnx``: ``input_ids`` and ``attention_mask`` (B, L) int64 to ``text_embedding`` (B, d), and likewise
      ``text_tokens``.
    - ``fusion.onnx``: ``image_tokens`` (B, T, W), ``text_tokens`` (B, L, V) and ``attention_mask`` to (B,) ``logit`` of
      "matched".

    Args:
        model: the model, on the CPU, in float32.
        folder: an existing folder.

    Raises:
        ValueError: the packages of the extra ``onnx`` are not installed, or a model that cannot be exported.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ValueError(f"--format onnx needs {error.name}: pip install 'sdr_lightning[onnx]'") from error
    encoder, fused = model.encoder, model.has_matching_head
    images, tokens = _inputs(model, 3)
    batch, length = torch.export.Dim("B"), torch.export.Dim("L", min=3, max=512)
    names = {modality: [f"{modality}_embedding", f"{modality}_tokens"][: 1 + fused] for modality in ("image", "text")}
    text_shapes = ({0: batch, 1: length}, {0: batch, 1: length})
    _export(_Image(encoder, fused), (images,), folder / IMAGE, ["pixels"], names["image"], ({0: batch},))
    _export(_Text(encoder, fused), tokens, folder / TEXT, ["input_ids", "attention_mask"], names["text"], text_shapes)
    if fused:
        with torch.no_grad():
            parts = (encoder.image(images).tokens, encoder.text(tokens).tokens, tokens.attention_mask)
        inputs = ["image_tokens", "text_tokens", "attention_mask"]
        _export(_Fusion(encoder), parts, folder / FUSION, inputs, ["logit"], ({0: batch}, *text_shapes))
    return _parities(model, folder, onnxruntime)


class _Image(nn.Module):
    def __init__(self, encoder: DualEncoder, with_tokens: bool) -> None:
        super().__init__()
        self.encoder, self.with_tokens = encoder, with_tokens

    def forward(self, pixels: Tensor) -> Any:
        return _outputs(self.encoder.image(pixels), self.with_tokens)


class _Text(nn.Module):
    def __init__(self, encoder: DualEncoder, with_tokens: bool) -> None:
        super().__init__()
        self.encoder, self.with_tokens = encoder, with_tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return _outputs(self.encoder.text(Tokens(input_ids, attention_mask)), self.with_tokens)


class _Fusion(nn.Module):
    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        assert encoder.fusion is not None
        self.fusion = encoder.fusion

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, attention_mask: Tensor) -> Tensor:
        text = Encoded(text_tokens[:, 0], text_tokens, attention_mask)
        rows = torch.arange(image_tokens.shape[0])
        logits: Tensor = self.fusion.head(self.fusion(text, self.fusion.contexts(image_tokens), rows))
        return logits[:, 1]


def _outputs(encoded: Encoded, with_tokens: bool) -> Any:
    return (encoded.embedding, encoded.tokens) if with_tokens else encoded.embedding


def _inputs(model: Retriever, count: int) -> tuple[Tensor, Tokens]:
    """Random images, and texts of different lengths."""
    size = model.preprocessing.image_size
    if size is None:
        raise ValueError(
            "a model of precomputed features has no images to export: its projection is one matrix product"
        )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    texts = [" ".join(["a dog runs on the beach"] * (number + 1)) for number in range(count)]
    return images, model.preprocessing.texts(texts)


def _export(
    module: nn.Module, inputs: Any, file: Path, names: list[str], outputs: list[str], shapes: tuple[dict[int, Any], ...]
) -> None:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter about its own parts
            torch.onnx.export(
                module.eval(),
                tuple(inputs),
                file,
                input_names=names,
                output_names=outputs,
                dynamic_shapes=shapes,
                dynamo=True,
                opset_version=_OPSET,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter raises many types
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file.name} cannot be exported: {type(error).__name__}: {reason}") from error


def quantize(folder: Path) -> None:
    """Write ``..._int8.onnx`` beside each graph of a folder: weights in 8 bits, activations quantized at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for file in sorted(folder.glob("*.onnx")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Convolutions stay in fp32: ONNX Runtime has no 8-bit ones for dynamic quantization on every processor.
            quantize_dynamic(
                file,
                file.with_name(f"{file.stem}_int8.onnx"),
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul", "Gemm"],
            )


def recalls(model: Retriever, folder: Path, data: RetrievalDataModule) -> dict[str, dict[str, float]]:
    """Measure recall on the test split with torch and with each set of graphs in ONNX Runtime.

    Pictures and captions are prepared as the model was trained, as in :meth:`Retriever.encode_images`.

    Args:
        model: the model, on the CPU.
        folder: with the graphs of :func:`export_onnx`, and those of :func:`quantize` if there are any.
        data: the data.

    Returns:
        ``torch``, ``onnx`` and ``onnx int8`` to metrics in percent.
    """
    import onnxruntime

    collection = data_split(data, "test")
    encoders: dict[str, dict[str, Callable[[Any], Tensor]]] = {
        "torch": {"image": model.encoder.encode_image, "text": model.encoder.encode_text}
    }
    for name, suffix in (("onnx", ""), ("onnx int8", "_int8")):
        files = {"image": folder / f"image{suffix}.onnx", "text": folder / f"text{suffix}.onnx"}
        if all(file.is_file() for file in files.values()):
            encoders[name] = {modality: _runner(onnxruntime.InferenceSession(f)) for modality, f in files.items()}
    embedded: dict[str, dict[str, list[Tensor]]] = {name: {"image": [], "text": []} for name in encoders}
    num_images, captions = len(collection.images), [item.caption for item in collection.captions]
    with torch.no_grad(), progress("images and captions", num_images + len(captions)) as advance:
        for _, inputs in collection.inputs(model, chunks(num_images, _BATCH)):
            _encode(encoders, "image", torch.stack(readable(inputs)), embedded)
            advance(len(inputs))
        for rows in chunks(len(captions), _BATCH):
            _encode(encoders, "text", model.preprocessing.texts(captions[rows]), embedded)
            advance(rows.stop - rows.start)
    return {
        name: evaluate_queries(torch.cat(parts["image"]), torch.cat(parts["text"]), collection.text_image).metrics
        for name, parts in embedded.items()
    }


def _encode(
    encoders: Mapping[str, Mapping[str, Callable[[Any], Tensor]]],
    modality: str,
    inputs: Any,
    embedded: Mapping[str, Mapping[str, list[Tensor]]],
) -> None:
    """Embed a batch by each encoder."""
    for name, encoder in encoders.items():
        embedded[name][modality].append(encoder[modality](inputs))


def _runner(session: Any) -> Callable[[Any], Tensor]:
    """Embed a batch of inputs in ONNX Runtime."""
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Any) -> Tensor:
        values = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        feed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _parities(model: Retriever, folder: Path, onnxruntime: Any) -> list[Parity]:
    """Compare all graphs with torch on a batch of another size than the one that they were exported with."""
    images, tokens = _inputs(model, 5)
    with torch.no_grad():
        image, text = model.encoder.image(images), model.encoder.text(tokens)
    ids, mask = (part.numpy() for part in tokens)
    checks: dict[str, tuple[dict[str, NDArray[Any]], Tensor]] = {
        IMAGE: ({"pixels": images.numpy()}, image.embedding),
        TEXT: ({"input_ids": ids, "attention_mask": mask}, text.embedding),
    }
    if model.has_matching_head:
        assert image.tokens is not None
        assert text.tokens is not None
        feed = {"image_tokens": image.tokens.numpy(), "text_tokens": text.tokens.numpy(), "attention_mask": mask}
        with torch.no_grad():
            checks[FUSION] = (feed, _Fusion(model.encoder)(image.tokens, text.tokens, tokens.attention_mask))
    found = []
    for graph, (feed, expected) in checks.items():
        session = onnxruntime.InferenceSession(folder / graph, providers=["CPUExecutionProvider"])
        output = session.run(None, feed)[0]
        difference = float(np.abs(output - expected.numpy()).max())
        cosine = float((output * expected.numpy()).sum(axis=1).min()) if expected.ndim == 2 else float("nan")
        found.append(Parity(graph, difference, cosine))
    return found
