"""Re-ranking of candidates with the fusion encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sdr_lightning.data.loaders import Loader
from sdr_lightning.data.module import RetrievalDataModule
from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.functional.ranking import rank_embeddings
from sdr_lightning.functional.reranking import rerank
from sdr_lightning.functional.search import TopK, top_k
from sdr_lightning.metrics.cross_modal import summarise_both
from sdr_lightning.metrics.evaluation import checked_embeddings
from sdr_lightning.progress import Advance, progress
from sdr_lightning.training.distributed.collectives import EmbeddingTable
from sdr_lightning.types import Encoded, RetrievalBatch, Tokens, UnimodalBatch


class Rescored(NamedTuple):
    """Candidates of every query in order of cosine, with their fusion encoder scores.

    Attributes:
        i2t: candidate captions of the N images.
        t2i: candidate images of the C captions.
    """

    i2t: TopK
    t2i: TopK


class Captions(NamedTuple):
    """Concatenated tokens of C captions without padding.

    Attributes:
        tokens: (total, W).
        starts: (C + 1,) int64, offset of each caption.
    """

    tokens: Tensor
    starts: Tensor

    def take(self, rows: Tensor, device: torch.device) -> Encoded:
        """Return the padded (n, L, W) tokens and the mask of n captions."""
        parts = [self.tokens[self.starts[row] : self.starts[row + 1]] for row in rows.tolist()]
        lengths = torch.tensor([len(part) for part in parts])
        tokens = pad_sequence(parts, batch_first=True)
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        return Encoded(tokens[:, 0].to(device), tokens.to(device), mask.to(device))


def reranked_metrics(image: Tensor, text: Tensor, caption_image: Tensor, rescored: Rescored) -> dict[str, float]:
    """Compute recall and ranks after re-ranking, named ``reranked_...``.

    Args:
        image: (N, d) embeddings; L2-normalised here.
        text: (C, d) embeddings; L2-normalised here.
        caption_image: (C,) int64, image row of each caption.
        rescored: candidates and their scores.
    """
    image, text, caption_image = checked_embeddings(image, text, caption_image)
    images = torch.arange(len(image))
    by_cosine = rank_embeddings(image, text, images, caption_image), rank_embeddings(text, image, caption_image, images)
    i2t = rerank(by_cosine[0], rescored.i2t.items, rescored.i2t.scores, images, caption_image)
    t2i = rerank(by_cosine[1], rescored.t2i.items, rescored.t2i.scores, caption_image, images)
    return {f"reranked_{name}": value for name, value in summarise_both(i2t, t2i).items()}


def dense_scores(candidates: TopK, gallery_size: int) -> Tensor:
    """Expand candidates to (Q, gallery_size) scores; items that are no candidates get -100, as in the public code."""
    scores = torch.full((len(candidates.items), gallery_size), -100.0)
    return scores.scatter(1, candidates.items, candidates.scores)


def rescore(
    encoder: DualEncoder, data: RetrievalDataModule, trainer: pl.Trainer, image: Tensor, text: Tensor, k: int
) -> Rescored:
    """Score the top k candidates by cosine of each test query with the fusion encoder, in both directions.

    Args:
        encoder: dual encoder with a fusion encoder.
        data: provides the test split.
        trainer: provides device, precision and processes; images are divided over the processes.
        image: (N, d) L2-normalised image embeddings.
        text: (C, d) L2-normalised text embeddings.
        k: candidates per query, at most the size of the gallery.
    """
    columns = torch.arange(len(text))[:, None]
    to_text, to_image = top_k(image, text, k).items, top_k(text, image, k).items  # (N, k), (C, k)
    i2t, t2i = torch.arange(len(image))[:, None] * len(text) + to_text, to_image * len(text) + columns
    pairs = torch.unique(torch.cat([i2t.flatten(), t2i.flatten()]))  # score a pair of both directions once
    device, rank, world = trainer.strategy.root_device, trainer.global_rank, trainer.world_size
    with trainer.strategy.precision_plugin.forward_context():
        captions = encode_captions(encoder, data.items("test", "text"), device)
        positions, scores = score_pairs(
            encoder,
            data.items("test", "image", rank, world),
            captions,
            pairs // len(text),
            pairs % len(text),
            device,
            data.evaluation_batch_size,
            with_progress=rank == 0,
        )
    table = EmbeddingTable().to(device)
    table.update(positions.to(device), scores[:, None].to(device))
    found = table.table(len(pairs)).squeeze(1)
    return Rescored(
        TopK(found[torch.searchsorted(pairs, i2t)], to_text), TopK(found[torch.searchsorted(pairs, t2i)], to_image)
    )


@torch.no_grad()
def encode_captions(encoder: DualEncoder, batches: Loader, device: torch.device) -> Captions:
    """Encode captions in row order and keep their tokens on the CPU."""
    parts: list[Tensor] = []
    for batch in batches:
        assert isinstance(batch, UnimodalBatch)
        assert isinstance(batch.inputs, Tokens)
        encoded = encoder.text(Tokens(*(t.to(device) for t in batch.inputs)))
        assert encoded.tokens is not None
        assert encoded.mask is not None
        parts += [tokens[mask.bool()].cpu() for tokens, mask in zip(encoded.tokens, encoded.mask, strict=True)]
    lengths = torch.tensor([0, *(len(part) for part in parts)])
    return Captions(torch.cat(parts), lengths.cumsum(0))


@torch.no_grad()
def score_pairs(
    encoder: DualEncoder,
    images: Loader,
    captions: Captions,
    image_rows: Tensor,
    text_rows: Tensor,
    device: torch.device,
    batch_size: int,
    with_progress: bool,
) -> tuple[Tensor, Tensor]:
    """Score pairs by the "matched" logit of the matching head, as in the public code.

    Each image is encoded once; its keys and values are reused for all its captions.

    Args:
        encoder: dual encoder with a fusion encoder.
        images: batches of images, on the CPU.
        captions: tokens of all captions.
        image_rows: (P,) int64, ascending.
        text_rows: (P,) int64.
        device: device to compute on.
        batch_size: captions fused at a time.
        with_progress: show how many batches are finished.

    Returns:
        (p,) int64 positions of the pairs whose image is in the batches, and their (p,) float32 scores.
    """
    assert encoder.fusion is not None
    positions, scores = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0)]
    shown = progress("batches of images re-ranked", len(images)) if with_progress else nullcontext(lambda number: None)
    with shown as advance:
        for row, tokens in _image_tokens(encoder, _counted(images, advance), device):
            first, last = torch.searchsorted(image_rows, torch.tensor([row, row + 1])).tolist()
            contexts = encoder.fusion.contexts(tokens) if first < last else []
            for start in range(first, last, batch_size):
                stop = min(start + batch_size, last)
                fused = encoder.fusion(captions.take(text_rows[start:stop], device), contexts)
                positions.append(torch.arange(start, stop))
                scores.append(encoder.fusion.head(fused)[:, 1].float().cpu())
    return torch.cat(positions), torch.cat(scores)


def _counted(batches: Loader, advance: Advance) -> Iterator[UnimodalBatch | RetrievalBatch]:
    for batch in batches:
        yield batch
        advance(1)


def _image_tokens(
    encoder: DualEncoder, batches: Iterable[UnimodalBatch | RetrievalBatch], device: torch.device
) -> Iterator[tuple[int, Tensor]]:
    for batch in batches:
        assert isinstance(batch, UnimodalBatch)
        assert isinstance(batch.inputs, Tensor)
        tokens = encoder.image(batch.inputs.to(device)).tokens
        assert tokens is not None
        for number, row in enumerate(batch.rows.tolist()):
            yield row, tokens[number : number + 1]
