"""Evaluation of a student: collect embeddings over batches and processes, then compute all metrics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.data.table import Split
from sdr_lightning.functional.search import check_finite, chunks
from sdr_lightning.methods.base import Method
from sdr_lightning.metrics.evaluation import Evaluation, cross_modal, cross_modal_folds, evaluate_queries
from sdr_lightning.metrics.paper_protocol import evaluate_published
from sdr_lightning.metrics.scores import evaluate_scores, score_folds
from sdr_lightning.training.distributed.collectives import EmbeddingTable
from sdr_lightning.training.protocol import ProtocolName
from sdr_lightning.training.reranking import Rescored, dense_scores, reranked_metrics
from sdr_lightning.types import Modality

_CHUNK_ROWS = 256


class RetrievalEvaluation(nn.Module):
    """Collects the embeddings of a split and evaluates them.

    Args:
        protocol: ``paper`` evaluates like the public code, see :mod:`~sdr_lightning.metrics.paper_protocol`.
    """

    def __init__(self, protocol: ProtocolName) -> None:
        super().__init__()
        self.image_table, self.text_table = EmbeddingTable(), EmbeddingTable()
        self.protocol = protocol

    def update(self, modality: Modality, rows: Tensor, embeddings: Tensor) -> None:
        """Add (B, d) embeddings of the items at (B,) rows."""
        (self.image_table if modality == "image" else self.text_table).update(rows, embeddings)

    def reset(self) -> None:
        """Discard the collected embeddings."""
        self.image_table.reset()
        self.text_table.reset()

    def collect(self, data: RetrievalDataModule, split: Split) -> tuple[Tensor, Tensor]:
        """Gather the embeddings of all processes and reset.

        Returns:
            (N, d) image and (C, d) text embeddings of the split, float32 on the CPU.

        Raises:
            ValueError: an item is missing or was added twice.
        """
        table = data.split(split).table
        return self.image_table.table(len(table.image_ids)), self.text_table.table(len(table.captions))

    def validate(self, method: Method, image: Tensor, text: Tensor, caption_image: Tensor) -> dict[str, float]:
        """Return recall and ranks, see :func:`~sdr_lightning.metrics.evaluation.cross_modal`.

        Args:
            method: ranks by its :meth:`~sdr_lightning.methods.Method.similarity`, or by cosine if it does not override it.
            image: (N, d) embeddings.
            text: (C, d) embeddings.
            caption_image: (C,) row of the image of each caption.
        """
        if method.ranks_by_cosine:
            return cross_modal(image, text, caption_image)
        scores = score_matrix(method, image, text)
        return evaluate_scores(scores, scores.T, caption_image).metrics

    def test(
        self,
        method: Method,
        image: Tensor,
        text: Tensor,
        data: RetrievalDataModule,
        rescored: Rescored | None = None,
    ) -> Evaluation:
        """Compute all metrics of the test split, in total and per query.

        Args:
            method: see :meth:`validate`.
            image: (N, d) embeddings.
            text: (C, d) embeddings.
            data: provides the pairs and their graded relevance.
            rescored: candidates scored by the fusion encoder; adds metrics named ``reranked_...``.
        """
        pairs, relevance = data.split("test").caption_image, data.relevance("test")
        if not method.ranks_by_cosine:
            scores = score_matrix(method, image, text)
            metrics, queries = evaluate_scores(scores, scores.T, pairs, relevance)
            if data.test_folds is not None:
                metrics |= score_folds(scores, scores.T, pairs, data.test_folds)
            return Evaluation(metrics, queries)
        if self.protocol == "paper":
            metrics, queries = evaluate_published(image, text, pairs, relevance)
            if rescored is not None:
                i2t, t2i = dense_scores(rescored.i2t, len(text)), dense_scores(rescored.t2i, len(image))
                reranked = evaluate_published(image, text, pairs, relevance, i2t, t2i).metrics
                metrics |= {f"reranked_{name}": value for name, value in reranked.items()}
            return Evaluation(metrics, queries)
        metrics, queries = evaluate_queries(image, text, pairs, relevance)
        if data.test_folds is not None:
            metrics |= cross_modal_folds(image, text, pairs, data.test_folds)
        if rescored is not None:
            metrics |= reranked_metrics(image, text, pairs, rescored)
        return Evaluation(metrics, queries)


@torch.no_grad()
def score_matrix(method: Method, image: Tensor, text: Tensor) -> Tensor:
    """Score all images against all captions by the similarity of a method.

    Args:
        method: a method that overrides ``similarity``.
        image: (N, d) embeddings on the CPU.
        text: (C, d) embeddings on the CPU.

    Returns:
        (N, C) float32 on the CPU.

    Raises:
        ValueError: the scores have another shape or are not finite.
    """
    device = next((tensor.device for tensor in (*method.parameters(), *method.buffers())), image.device)
    gallery, found_scores = text.to(device), torch.empty(len(image), len(text))
    for part in chunks(len(image), _CHUNK_ROWS):
        scores = method.similarity(image[part].to(device), gallery)
        if scores is None or scores.shape != (len(image[part]), len(text)):
            found = "None" if scores is None else tuple(scores.shape)
            raise ValueError(
                f"{type(method).__name__}.similarity must return {(len(image[part]), len(text))} scores, got {found}"
            )
        found_scores[part] = scores.float().cpu()
    check_finite(found_scores)
    return found_scores
