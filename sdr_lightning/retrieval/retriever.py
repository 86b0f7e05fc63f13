"""A trained model for use: embeddings, scores and search."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.functional.search import chunks, similarity, top_k
from sdr_lightning.methods.base import Method
from sdr_lightning.progress import progress
from sdr_lightning.retrieval.preprocessing import ImageLike, Preprocessing
from sdr_lightning.types import Tokens

Precision = Literal["32", "bf16", "fp16"]
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_PROGRESS_FROM = 512  # items from which encoding shows its progress

Embeddings = NDArray[np.float32]


class Hits(NamedTuple):
    """The first k items for each of Q queries.

    Attributes:
        scores: (Q, k) float32, descending.
        rows: (Q, k) int64 rows of the gallery; ascending among equal scores.
    """

    scores: NDArray[np.float32]
    rows: NDArray[np.int64]


class Retriever:
    """Embed, score and search images and texts with a trained model; made by :func:`~sdr_lightning.load`.

    Args:
        encoder: the dual encoder; moved to the device and set to evaluation mode.
        preprocessing: from pictures and words to its inputs.
        method: the method that it was trained with, if that scores pairs by a similarity of its own; None for cosine.
        device: device to compute on; a GPU if there is one.
        precision: ``32``, or the data type of autocast. Embeddings are float32 in any case.
        parts: configuration that encoder, method and preprocessing were built from, which :mod:`export
            <sdr_lightning.retrieval.export>` needs.

    Example::

        model = load("runs/mine")
        model.score(["beach.jpg"], ["a dog runs on the beach", "a red car"])  # (1, 2)
    """

    def __init__(
        self,
        encoder: DualEncoder,
        preprocessing: Preprocessing,
        method: Method | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "32",
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        if precision != "32" and precision not in _AUTOCAST:
            raise ValueError(f"precision must be 32, {' or '.join(_AUTOCAST)}, got {precision!r}")
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
        self.device, self.precision = torch.device(chosen), precision
        self.encoder, self.preprocessing = encoder.to(self.device).eval(), preprocessing
        self.parts = dict(parts or {})
        self.method = None if method is None or method.ranks_by_cosine else method.to(self.device).eval()

    @property
    def has_matching_head(self) -> bool:
        """Whether there is a fusion encoder, whose head scores pairs."""
        return self.encoder.fusion is not None

    def encode_images(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 64) -> Embeddings:
        """Embed images.

        Args:
            images: one image or a sequence, see :data:`~sdr_lightning.retrieval.preprocessing.ImageLike`.
            batch_size: images encoded at a time.

        Returns:
            (n, d) float32, L2-normalised, in the order given. One image gives (1, d).

        Raises:
            ValueError: a picture that cannot be read; with its path.
        """
        return self._encode(_listed(images), batch_size, self.preprocessing.images, self._image, "images")

    def encode_inputs(self, images: Sequence[Tensor]) -> Embeddings:
        """Embed images that :attr:`preprocessing` has prepared, as one batch.

        Args:
            images: inputs of the image tower, each as ``preprocessing.images`` returns it for one image, without the batch axis.

        Returns:
            (n, d) float32, L2-normalised.
        """
        return self._encode(images, len(images), lambda some: torch.stack(list(some)), self._image, "images")

    def encode_texts(self, texts: str | Sequence[str], batch_size: int = 256) -> Embeddings:
        """Embed texts.

        Args:
            texts: one text or a sequence.
            batch_size: texts encoded at a time.

        Returns:
            (n, d) float32, L2-normalised, in the order given. One text gives (1, d).
        """
        return self._encode(_listed(texts), batch_size, self.preprocessing.texts, self._text, "texts")

    def similarity(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        """Score embeddings as in evaluation: by cosine, or by the similarity of the training method.

        Args:
            images: (n, d) image embeddings.
            texts: (m, d) text embeddings.

        Returns:
            (n, m) float32; greater is more similar.
        """
        return self._similarity(torch.from_numpy(images), torch.from_numpy(texts)).numpy()

    def score(
        self,
        images: ImageLike | Sequence[ImageLike],
        texts: str | Sequence[str],
        by: Literal["similarity", "matching"] = "similarity",
    ) -> NDArray[np.float32]:
        """Score each image with each text.

        Args:
            images: n images.
            texts: m texts.
            by: ``similarity`` of the embeddings, or ``matching``: the logit of the matching head, which is slower and more
                accurate.

        Returns:
            (n, m) float32; greater is more similar.

        Raises:
            ValueError: a model without matching head.
        """
        if by == "similarity":
            return self.similarity(self.encode_images(images), self.encode_texts(texts))
        return np.stack(self._matched(_listed(images), _listed(texts)))

    def match(self, image: ImageLike, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """Score one image with texts by the matching head.

        Returns:
            (m,) float32 logits of "matched".

        Raises:
            ValueError: a model without matching head.
        """
        return self._matched([image], texts, batch_size)[0]

    def search(self, queries: str | Sequence[str] | Embeddings, gallery: Embeddings, k: int = 10) -> Hits:
        """Search embeddings, exactly.

        Args:
            queries: texts, or (Q, d) embeddings of images or texts.
            gallery: (G, d) embeddings.
            k: items for each query; all G if k is greater.

        Raises:
            ValueError: k below 1, or embeddings of another width.
        """
        found = queries if isinstance(queries, np.ndarray) else self.encode_texts(queries)
        return search(found, gallery, k)

    def fingerprint(self) -> str:
        """Return a SHA-256 of weights and settings. Models with equal fingerprints compute equal embeddings."""
        towers = (self.encoder.image_tower.fingerprint(), self.encoder.text_tower.fingerprint())
        digest = hashlib.sha256(" ".join(towers).encode())
        digest.update(f"{self.preprocessing.image_size} {self.preprocessing.cached_size} ".encode())
        digest.update(f"{self.preprocessing.wording} {self.preprocessing.tokenizer.fingerprint}".encode())
        for name, tensor in sorted(self.encoder.state_dict().items()):
            if not name.startswith(("image_tower.", "text_tower.")):
                digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def width(self) -> int:
        """d, the width of the embeddings."""
        return int(self.encode_texts("").shape[1])

    def _image(self, inputs: Tensor) -> Tensor:
        return self.encoder.encode_image(inputs.to(self.device))

    def _text(self, inputs: Tokens) -> Tensor:
        return self.encoder.encode_text(Tokens(*(part.to(self.device) for part in inputs)))

    def _tokens(self, texts: Sequence[str]) -> Tokens:
        return Tokens(*(part.to(self.device) for part in self.preprocessing.texts(texts)))

    @torch.inference_mode()
    def _matched(
        self, images: Sequence[ImageLike], texts: Sequence[str], batch_size: int = 64
    ) -> list[NDArray[np.float32]]:
        """For each image, (m,) logits of the matching head with all texts; each text is encoded once."""
        fusion = self.encoder.fusion
        if fusion is None:
            raise ValueError("this model has no fusion encoder, so no matching head: score by similarity")
        found = []
        with self._autocast():
            captions = [self.encoder.text(self._tokens(texts[part])) for part in chunks(len(texts), batch_size)]
            for image in images:
                tokens = self.encoder.image(self.preprocessing.images([image]).to(self.device)).tokens
                assert tokens is not None
                contexts = fusion.contexts(tokens)
                logits = [fusion.head(fusion(some, contexts))[:, 1].float().cpu() for some in captions]
                found.append(torch.cat(logits).numpy())
        return found

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, _AUTOCAST.get(self.precision), enabled=self.precision != "32")

    @torch.inference_mode()
    def _encode(
        self,
        items: Sequence[Any],
        batch_size: int,
        prepare: Callable[[Sequence[Any]], Any],
        encode: Callable[[Any], Tensor],
        what: str,
    ) -> Embeddings:
        if not len(items):
            raise ValueError(f"there are no {what} to encode")
        parts = []
        console = Console(stderr=True, quiet=len(items) < _PROGRESS_FROM)
        with self._autocast(), progress(f"encoding {what}", len(items), console=console) as advance:
            for step in chunks(len(items), batch_size):
                parts.append(encode(prepare(items[step])).float().cpu())
                advance(step.stop - step.start)
        return torch.cat(parts).numpy()

    def _similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        if self.method is not None:
            with torch.inference_mode():
                own = self.method.similarity(images.to(self.device), texts.to(self.device))
            if own is not None:
                return own.float().cpu()
        return similarity(images, texts)


def search(queries: Embeddings, gallery: Embeddings, k: int = 10) -> Hits:
    """Find the first k items of each query by inner product, exactly and in bounded memory.

    Args:
        queries: (Q, d) embeddings.
        gallery: (G, d) embeddings.
        k: items for each query; all G if k is greater.

    Raises:
        ValueError: k below 1, or embeddings of different widths.

    >>> search(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1].copy(), 1).rows.tolist()
    [[1], [0]]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries {queries.shape} and gallery {gallery.shape} must be (Q, d) and (G, d) of one width d"
        )
    found = top_k(torch.from_numpy(queries), torch.from_numpy(gallery), min(k, len(gallery)))
    return Hits(found.scores.numpy(), found.items.numpy())


def _listed(items: Any) -> Sequence[Any]:
    """A sequence of items; one item becomes a sequence of one."""
    return items if isinstance(items, Sequence) and not isinstance(items, str) else [items]
