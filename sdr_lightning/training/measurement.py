"""Per-pair measurements over the training split with the current model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdr_lightning.methods.base import PerPair
from sdr_lightning.training.distributed.collectives import EmbeddingTable
from sdr_lightning.types import Pairs, RetrievalBatch

if TYPE_CHECKING:
    from sdr_lightning.training.retrieval_module import RetrievalModule


@torch.no_grad()
def measure_pairs(module: RetrievalModule, per_pair: PerPair) -> Tensor:
    """Measure every training pair, see :meth:`~sdr_lightning.methods.Method.begin_epoch`.

    Pairs are encoded in order, in evaluation mode and without augmentation, in batches of the global batch size. The batches
    are divided over the processes, so the values do not depend on the number of processes.

    Args:
        module: attached to a trainer; its training mode is restored.
        per_pair: maps each batch to (B,) values, or (B, m).

    Returns:
        (num_pairs,) or (num_pairs, m) float32 on the CPU, by pair index.

    Raises:
        ValueError: ``per_pair`` returns another shape.
    """
    trainer, table = module.trainer, EmbeddingTable().to(module.device)
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with trainer.strategy.precision_plugin.forward_context():
            for batch in module.data.ordered_pairs(trainer.global_rank, trainer.world_size):
                assert isinstance(batch, RetrievalBatch)
                batch = trainer.strategy.batch_to_device(batch, module.device)
                pairs = Pairs(
                    module.encoder.encode_image(batch.images).float(),
                    module.encoder.encode_text(batch.texts).float(),
                    module.positive_index(batch),
                    batch.pair_index,
                    batch.image_teacher,
                    batch.text_teacher,
                )
                with torch.autocast(module.device.type, enabled=False):
                    values = per_pair(pairs)
                if values.ndim not in (1, 2) or len(values) != len(batch.pair_index):
                    raise ValueError(
                        f"{type(module.method).__name__} measures {len(batch.pair_index)} pairs, got values of shape "
                        f"{tuple(values.shape)}, expected one row or number a pair"
                    )
                table.update(batch.pair_index, values.reshape(len(values), -1))
    finally:
        for part, mode in modes.items():
            part.training = mode
    return table.table(len(module.data.split("train").table.captions)).squeeze(1)
