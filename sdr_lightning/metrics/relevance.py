"""Graded relevance between images and captions, computed by rows: no captions x captions matrix is stored."""

import hashlib
import json
import os
import re
import tempfile
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from torch import Tensor

from sdr_lightning.functional.search import chunks
from sdr_lightning.types import Modality

Tokenizer = Literal["stripped", "tern"]

_UNSPACED = re.compile(
    "CJK|IDEOGRAPHIC|BOPOMOFO|(HALFWIDTH )?(HIRAGANA|KATAKANA)|THAI|LAO|KHMER|MYANMAR|TIBETAN|(NEW )?TAI "
)
"""Prefixes of the Unicode names of characters of scripts that are written without spaces between words."""
_BY_CHARACTER = ", by character where a script has no blanks"
_ROW_CHUNK = 512  # captions compared with all others at once
_CACHED_IMAGES = 8192  # up to this many images, the image-to-image relevance (256 MiB) is kept in memory


class Relevance(ABC):
    """Graded relevance of N images and C captions to one another, finite and not negative.

    A subclass implements :meth:`rows`. It may override :meth:`gains` and :meth:`ideal` if they are cheaper without whole
    rows.

    Attributes:
        num_images: N.
        num_texts: C.
        fingerprint: SHA-256 in hexadecimal of everything that determines the values.
        kind: name of the measure.
    """

    num_images: int
    num_texts: int
    fingerprint: str
    kind: str

    @abstractmethod
    def rows(self, query: Modality, gallery: Modality, index: slice) -> Tensor:
        """Return the relevance of the gallery to some queries.

        Args:
            query: modality of the queries.
            gallery: modality of the gallery.
            index: rows of the queries, a slice with step 1.

        Returns:
            (q, gallery size) float32, including the relevance of an item to itself. May be a view: do not modify it.
        """

    def gains(self, query: Modality, gallery: Modality, index: slice, items: Tensor) -> Tensor:
        """Return the relevance (q, k) float32 of the gallery items `items` (q, k) to the queries in `index`."""
        return self.rows(query, gallery, index).gather(1, items)

    def ideal(self, query: Modality, gallery: Modality, index: slice, k: int, exclude: Tensor | None) -> Tensor:
        """Return the k highest relevances of the queries in `index`.

        Args:
            query: modality of the queries.
            gallery: modality of the gallery.
            index: rows of the queries, a slice with step 1.
            k: number of values; at most the gallery size is returned.
            exclude: (q, E) gallery items excluded for each query: their relevance counts as 0.

        Returns:
            (q, min(k, gallery size)) float32, descending.
        """
        rows = self.rows(query, gallery, index)
        if exclude is not None:
            rows = rows.scatter(1, exclude, 0.0)
        return rows.topk(min(k, rows.shape[1]), dim=1).values

    @cached_property
    def ideals(self) -> dict[tuple[Modality, Modality, int, str], Tensor]:
        """Cached results of :meth:`ideal` for all queries; they do not depend on a model, so evaluations share them."""
        return {}


class FactRelevance(Relevance):
    """Relevance from counts of facts, e.g. the objects of a scene: the weighted Jaccard index (Ruzicka similarity).

    rel(a, b) = sum_f min(a_f, b_f) / sum_f max(a_f, b_f), and 0 if both are empty. It is symmetric, in [0, 1], and 1 only
    for equal non-empty counts.

    Args:
        image_facts: (N, F) integers >= 0, the count of each fact for each image.
        text_facts: (C, F) integers >= 0, the counts for each caption.

    Raises:
        ValueError: a count is negative or not an integer, or the widths differ.

    >>> FactRelevance([[2, 0]], [[1, 0], [0, 3]]).rows("image", "text", slice(None))
    tensor([[0.5000, 0.0000]])
    """

    def __init__(self, image_facts: npt.ArrayLike | Tensor, text_facts: npt.ArrayLike | Tensor) -> None:
        counts = {"image": _counts("image_facts", image_facts), "text": _counts("text_facts", text_facts)}
        images, texts = counts["image"], counts["text"]
        if images.shape[1] != texts.shape[1]:
            raise ValueError(f"image_facts have {images.shape[1]} facts, text_facts {texts.shape[1]}")
        self.kind, self.num_images, self.num_texts = "facts", len(images), len(texts)
        digest = hashlib.sha256(f"ruzicka {images.shape} {texts.shape}".encode())
        digest.update(images.tobytes() + texts.tobytes())
        self.fingerprint = digest.hexdigest()

        # The levels of a fact are the counts that occur. min(a, b) is the sum of the steps between consecutive levels that
        # both a and b reach, so the sum of minima is a matrix product of 0/1 indicators.
        levels = [np.unique(column[column > 0]) for column in np.concatenate((images, texts)).T]
        fact = np.repeat(np.arange(len(levels)), [len(values) for values in levels])
        level = np.concatenate([*levels, np.empty(0, np.int64)])
        steps = [np.diff(values, prepend=0) for values in levels]
        self._step = torch.from_numpy(np.concatenate([*steps, np.empty(0)]))
        # fp64 products are not affected by autocast or the matmul precision.
        self._reaches = {name: torch.from_numpy(facts[:, fact] >= level).double() for name, facts in counts.items()}
        self._total = {name: torch.from_numpy(facts.sum(1)).float() for name, facts in counts.items()}

    def rows(self, query: Modality, gallery: Modality, index: slice) -> Tensor:
        """See `Relevance.rows`."""
        shared = ((self._reaches[query][index] * self._step) @ self._reaches[gallery].T).float()
        union = self._total[query][index, None] + self._total[gallery] - shared
        return shared / union.clamp(min=1)  # the union is an integer, and 0 only if both are empty


class CaptionRelevance(Relevance):
    """Relevance from a matrix R (C, N) of captions and images, such as ROUGE-L.

    text -> image is R, image -> text its transpose. text -> text is R[c, image of c'], as in the public SDR code: siblings
    have the relevance of their image. image -> image is this project's own definition: the mean of R[c, j] over the
    captions c of image i; it is not symmetric.

    Args:
        scores: R, (C, N) float32 or float16, possibly memory-mapped; finite and not negative.
        caption_image_index: (C,) the image of each caption; every image has at least one caption.
        fingerprint: SHA-256 in hexadecimal of what determines the scores.
        kind: name of the measure.

    Raises:
        ValueError: the index has the wrong length or is out of range, an image has no caption, or a score is negative or not
            finite.

    >>> scores = np.array([[1.0, 0.2], [0.4, 1.0]], dtype=np.float32)
    >>> CaptionRelevance(scores, [0, 1], "fingerprint").rows("text", "text", slice(0, 1))
    tensor([[1.0000, 0.2000]])
    """

    def __init__(
        self,
        scores: npt.NDArray[Any],
        caption_image_index: npt.ArrayLike | Tensor,
        fingerprint: str,
        kind: str = "matrix",
    ) -> None:
        if scores.ndim != 2 or scores.dtype not in (np.float32, np.float16):
            raise ValueError(
                f"relevance must be (captions, images) float32 or float16, not {scores.shape} {scores.dtype}"
            )
        image_index = _checked_index(len(scores), caption_image_index, scores.shape[1])
        for rows in chunks(len(scores), _ROW_CHUNK):
            low, high = scores[rows].min(), scores[rows].max()
            if not (low >= 0 and np.isfinite(high)):  # NaN fails both
                raise ValueError(
                    f"relevance must be finite and not negative, found {low} to {high} in captions {rows.start} to "
                    f"{rows.stop - 1}"
                )
        self.num_texts, self.num_images = scores.shape
        self.fingerprint, self.kind = fingerprint, kind
        self._scores = torch.from_numpy(scores)  # (C, N)
        self._image_index = torch.from_numpy(image_index)
        self._by_image = self._image_index.argsort(stable=True)
        self._caption_counts = self._image_index.bincount(minlength=self.num_images)
        self._ends = self._caption_counts.cumsum(0)

    def rows(self, query: Modality, gallery: Modality, index: slice) -> Tensor:
        """See `Relevance.rows`."""
        if query == "text":
            rows = self._scores[index].float()
            return rows if gallery == "image" else rows[:, self._image_index]
        if gallery == "text":
            return self._scores[:, index].T.float()
        return self._between_images[index] if self.num_images <= _CACHED_IMAGES else self._image_rows(index)

    def _image_rows(self, index: slice) -> Tensor:
        start, stop, _ = index.indices(self.num_images)
        counts = self._caption_counts[start:stop]
        first = int(self._ends[start - 1]) if start else 0
        captions = self._by_image[first : first + int(counts.sum())]
        sums = torch.zeros(stop - start, self.num_images)
        sums.index_add_(0, self._image_index[captions] - start, self._scores[captions].float())
        return sums / counts[:, None]

    @cached_property
    def _between_images(self) -> Tensor:
        return torch.cat([self._image_rows(index) for index in chunks(self.num_images, _ROW_CHUNK)])

    def gains(self, query: Modality, gallery: Modality, index: slice, items: Tensor) -> Tensor:
        """See `Relevance.gains`."""
        if query == "text":
            images = items if gallery == "image" else self._image_index[items]
            return self._scores[index].gather(1, images).float()
        if gallery == "image":
            return super().gains(query, gallery, index, items)
        first, _, _ = index.indices(self.num_images)
        return self._scores[items, torch.arange(first, first + len(items))[:, None]].float()

    def ideal(self, query: Modality, gallery: Modality, index: slice, k: int, exclude: Tensor | None) -> Tensor:
        """See `Relevance.ideal`."""
        if (query, gallery) != ("text", "text"):
            return super().ideal(query, gallery, index, k, exclude)
        # All captions of an image have the same relevance, and exclusions concern one image only: the best k + 1 images have
        # at least k captions that are not excluded.
        own = self._image_index[index]
        if exclude is not None and not torch.equal(self._image_index[exclude], own[:, None].expand_as(exclude)):
            return super().ideal(query, gallery, index, k, exclude)
        best = self._scores[index].float().topk(min(k + 1, self.num_images), dim=1)
        copies = self._caption_counts[best.indices]
        if exclude is not None:
            left_out = 1 + (exclude.sort(dim=1).values.diff(dim=1) != 0).sum(1)
            copies = copies - (best.indices == own[:, None]) * left_out[:, None]
        k = min(k, self.num_texts)
        ends = copies.cumsum(1)
        slot = torch.arange(k).expand(len(ends), -1).contiguous()
        place = torch.searchsorted(ends, slot, right=True)
        values = best.values.gather(1, place.clamp(max=best.values.shape[1] - 1))
        return values.masked_fill_(place >= best.values.shape[1], 0.0)


class RougeLRelevance(CaptionRelevance):
    """ROUGE-L of caption c against the captions of image j, in [0, 1]; see :class:`CaptionRelevance`.

    With LCS the length in tokens of the longest common subsequence, P = max over the captions r of image j of LCS / |c| and
    R = max of LCS / |r|, with independent maxima. The score is (1 + b^2) P R / (R + b^2 P) with b = 1.2, or 0 if P or R is 0
    (as in TERN). Siblings, the captions of one image, have relevance 1 to one another.

    Args:
        captions: C captions, in any order.
        caption_image_index: (C,) the image of each; every image has at least one caption.
        num_images: N.
        tokenizer: "tern" or "stripped", see :func:`tokenize`.
        cache: folder in which R is stored, with the fingerprint in the file name; not stored when None. A file that is
            unreadable or of another shape is recomputed.
        workers: threads for the LCS; -1 uses all cores.
        advance: progress callback, called with the number of captions processed.

    Raises:
        ValueError: the index has the wrong length or is out of range, an image has no caption, or the tokenizer is unknown.

    >>> captions = ["a red dog", "the red dog", "a cat"]
    >>> RougeLRelevance(captions, [0, 0, 1], 2).rows("text", "image", slice(0, 1))
    tensor([[1.0000, 0.4150]])
    """

    def __init__(
        self,
        captions: Sequence[str],
        caption_image_index: npt.ArrayLike | Tensor,
        num_images: int,
        tokenizer: Tokenizer = "stripped",
        cache: Path | None = None,
        workers: int = 1,
        advance: Callable[[int], None] | None = None,
    ) -> None:
        image_index = _checked_index(len(captions), caption_image_index, num_images)
        tokens_are = tokenizer + (_BY_CHARACTER if tokenizer == "stripped" and _unspaced(captions) else "")
        determined_by = ["rouge-l", tokens_are, num_images, image_index.tolist(), list(captions)]
        fingerprint = hashlib.sha256(json.dumps(determined_by).encode()).hexdigest()

        path = None if cache is None else Path(cache) / f"rouge_l-{fingerprint}.npy"
        scores = None if path is None else _load(path, (len(captions), num_images))
        if scores is None:
            tokens = tokenize(captions, tokenizer)
            scores = rouge_l(tokens, image_index, num_images, workers=workers, advance=advance)
            if path is not None:
                _save(path, scores)
        self.scores = scores
        super().__init__(scores, image_index, fingerprint, f"rouge-l {tokens_are}")


def tokenize(captions: Sequence[str], tokenizer: Tokenizer = "stripped") -> list[list[str]]:
    """Split captions into tokens.

    Args:
        captions: C captions.
        tokenizer: "tern" is `lower().split(" ")`. "stripped" removes punctuation and empty tokens, and splits scripts that are
            written without spaces (Han, Hiragana, Katakana, Bopomofo, Thai, Lao, Khmer, Myanmar, Tibetan and Tai) into
            characters with their combining marks.

    Returns:
        C lists of tokens.

    Raises:
        ValueError: the tokenizer is unknown.

    >>> tokenize(["一只猫, in a T恤"])
    [['一', '只', '猫', 'in', 'a', 't', '恤']]
    """
    if tokenizer == "tern":
        return [caption.lower().split(" ") for caption in captions]
    if tokenizer != "stripped":
        raise ValueError(f"tokenizer must be 'stripped' or 'tern', not {tokenizer!r}")
    characters = set().union(*captions)
    # Remove Unicode's punctuation and symbols: scraped captions often contain typographic quotes.
    removed = str.maketrans({char: None for char in characters if unicodedata.category(char)[0] in "PS"})
    stripped = [caption.translate(removed).lower() for caption in captions]
    if unspaced := _unspaced(captions):
        marks = "".join(char for char in characters if unicodedata.category(char)[0] == "M")
        cluster = re.compile(f"[{unspaced}][{marks}]*" if marks else f"[{unspaced}]")
        stripped = [cluster.sub(r" \g<0> ", caption).replace("\u200b", " ") for caption in stripped]
    return [caption.split() for caption in stripped]


def _unspaced(captions: Sequence[str]) -> str:
    """Return the letters and digits of the captions that belong to scripts without spaces between words."""
    return "".join(
        char
        for char in sorted(set().union(*captions))
        if unicodedata.category(char)[0] in "LN" and _UNSPACED.match(unicodedata.name(char, ""))
    )


def rouge_l(
    tokens: Sequence[Sequence[str]],
    image_index: npt.NDArray[np.int64],
    num_images: int,
    *,
    beta: float = 1.2,
    workers: int = 1,
    advance: Callable[[int], None] | None = None,
) -> npt.NDArray[np.float32]:
    """Compute ROUGE-L of each caption against the captions of each image; see :class:`RougeLRelevance`.

    Args:
        tokens: C lists of tokens.
        image_index: (C,) the image of each list.
        num_images: N.
        beta: weight of the recall.
        workers: threads for the LCS; -1 uses all cores.
        advance: progress callback, called with the number of captions processed.

    Returns:
        (C, N) float32 in [0, 1].
    """
    # Encode each token as one code point, so that a caption is a string for rapidfuzz. Frequent tokens get the lowest code
    # points, for which rapidfuzz has a direct lookup table.
    vocabulary = Counter(token for caption in tokens for token in caption)
    code = {
        token: chr(rank if rank < 0xD800 else rank + 0x800) for rank, (token, _) in enumerate(vocabulary.most_common())
    }
    strings = np.array(["".join(code[token] for token in caption) for caption in tokens], dtype=object)
    lengths = np.array([len(caption) for caption in tokens], dtype=np.int64)

    # Order the references by slot: the first caption of every image, then the second captions, and so on, with the images
    # with the most captions first. The images of a slot are then a prefix, and maxima over captions are element-wise.
    counts = np.bincount(image_index, minlength=num_images)
    images = np.argsort(-counts, kind="stable")
    by_image = np.argsort(image_index, kind="stable")
    slot = np.empty_like(image_index)
    slot[by_image] = np.arange(len(image_index)) - np.repeat(np.cumsum(counts) - counts, counts)
    layout = np.lexsort((np.argsort(images)[image_index], slot))
    references, reference_lengths = strings[layout], np.maximum(lengths[layout], 1).astype(np.float32)
    ends = np.cumsum([int((counts > s).sum()) for s in range(counts.max(initial=0))])

    b2 = np.float32(beta**2)
    dtype = np.uint8 if lengths.max(initial=0) < 256 else np.int32
    scores = np.zeros((len(tokens), num_images), dtype=np.float32)
    for start in range(0, len(tokens), _ROW_CHUNK):
        rows = slice(start, start + _ROW_CHUNK)
        lcs = cdist(strings[rows], references, scorer=LCSseq.similarity, dtype=dtype, workers=workers)
        longest = np.zeros((len(lcs), num_images), dtype=dtype)
        recall = np.zeros((len(lcs), num_images), dtype=np.float32)
        for begin, end in zip(ends - np.diff(ends, prepend=0), ends, strict=True):
            width, block = end - begin, lcs[:, begin:end]
            np.maximum(longest[:, :width], block, out=longest[:, :width])
            np.maximum(recall[:, :width], block / reference_lengths[begin:end], out=recall[:, :width])
        precision = longest / np.maximum(lengths[rows], 1).astype(np.float32)[:, None]
        harmonic = recall + b2 * precision
        score = np.divide((1 + b2) * precision * recall, harmonic, out=np.zeros_like(recall), where=harmonic > 0)
        scores[rows, images] = score
        if advance is not None:
            advance(len(lcs))
    return scores


def _checked_index(
    captions: int, caption_image_index: npt.ArrayLike | Tensor, num_images: int
) -> npt.NDArray[np.int64]:
    image_index = np.asarray(caption_image_index, dtype=np.int64)
    if image_index.shape != (captions,):
        raise ValueError(f"{captions} captions have an image index of shape {image_index.shape}")
    if captions and (image_index.min() < 0 or image_index.max() >= num_images):
        raise ValueError(
            f"caption_image_index must be in [0, {num_images}), found {image_index.min()} to {image_index.max()}"
        )
    without = np.flatnonzero(np.bincount(image_index, minlength=num_images) == 0)
    if len(without):
        raise ValueError(f"{len(without)} images have no caption, the first is image {without[0]}")
    return image_index


def _counts(name: str, facts: npt.ArrayLike | Tensor) -> npt.NDArray[np.int64]:
    array = facts.cpu().numpy() if isinstance(facts, Tensor) else np.asarray(facts)
    if array.ndim != 2 or array.dtype.kind not in "iub":
        raise ValueError(f"{name} must be (items, facts) integers, not {array.shape} {array.dtype}")
    if array.size and array.min() < 0:
        raise ValueError(f"{name} must not be negative, found {array.min()}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _load(path: Path, shape: tuple[int, int]) -> npt.NDArray[np.float32] | None:
    try:
        scores: npt.NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # missing, truncated, or not an .npy file
        return None
    fits = scores.shape == shape and scores.dtype == np.float32
    # NaN fails both comparisons.
    return scores if fits and scores.min(initial=0) >= 0 and scores.max(initial=0) <= 1 else None


def _save(path: Path, scores: npt.NDArray[np.float32]) -> None:
    """Write under another name first, so that a reader or a crash never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, scores, allow_pickle=False)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
