"""OGM-GE: InfoNCE with a smaller gradient for the stronger modality, and noise on the gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.functional.modulation import modulation_coefficient, self_discrimination
from sdr_lightning.identity import stable_hash
from sdr_lightning.methods.base import Measure
from sdr_lightning.methods.infonce import InfoNCE
from sdr_lightning.methods.parameters import Temperature
from sdr_lightning.types import Modality, Pairs, TrainingPairs

_INT64 = 2**63 - 1


class OGMGE(InfoNCE):
    """Slow down the tower of the modality that learns faster ([0]), transferred to retrieval by this project.

    The loss is InfoNCE. Before each optimiser step, the gradient g of every matrix in the tower and the projection of modality u
    becomes ``k_u g + h``:

    - ``k_u = 1 - tanh(alpha rho_u)`` if ``rho_u > 1``, else 1, where ``rho_u = s_u / s_v`` is the score of u divided by that of
      the other modality v (on-the-fly gradient modulation, OGM).
    - ``h`` is Gaussian noise with the standard deviation of the entries of g, for both modalities (generalisation
      enhancement, GE).

    The score is this project's own. [0] classifies by a fusion of both modalities, and ``s_u`` is the probability that the part
    of u gives to the right class. A dual encoder has no fused classifier: the cosine of an image and a caption depends on both
    towers alike. In retrieval the class of an item is its image, and the embeddings of the batch are the classifier. So
    ``s_u`` is the mean probability that the embeddings of u alone, in a softmax over the batch at the loss's tau, tell an item
    from those of other images (:func:`~sdr_lightning.functional.modulation.self_discrimination`). Teachers have no part in it:
    what counts is how far the student's own towers are. The score sees whether items are separated, not whether rightly: a
    modality whose items differ by noise counts as strong.

    The noise comes from a generator that is seeded by the training's seed and the number of the step, both in buffers. It is the
    same in all processes, and an interrupted training continues with the same numbers.

    Differences from the public code besides the score: [1] modulates convolution kernels only, here as in [2] every parameter
    with more than one dimension; entries whose gradient is 0, such as words that are not in the batch, get no noise, which AdamW
    would turn into steps of full size; with accumulated gradients, scores are summed over the batches of a step.

    Args:
        alpha: strength of the modulation; [1] uses 0.1 to 0.3.
        noise: whether to add h.
        first_epoch: first epoch that is modulated, from 0. Until a tower has learned, its embeddings are close to each other, and
            the ratio of scores says little.
        last_epoch: last epoch that is modulated; None for all. [1] stops at half of its epochs.
        temperature: tau; learned from 0.07 by default.

    Attributes:
        score_ratio: ``rho`` of the images at the last step; that of the captions is its inverse.

    Raises:
        ValueError: an alpha that is not positive, or epochs that are not in order.

    References:
        [0] Peng et al., "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022.
        [1] GeWu-Lab/OGM-GE_CVPR2022: main.py.
        [2] GeWu-Lab/BalanceBenchmark: balancemm/trainer/OGM_trainer.py, configs/trainer_config.yaml.
    """

    scores: Tensor
    score_ratio: Tensor
    modulating: Tensor
    noise_seed: Tensor
    steps: Tensor

    def __init__(
        self,
        alpha: float = 0.3,
        noise: bool = True,
        first_epoch: int = 1,
        last_epoch: int | None = None,
        temperature: Temperature | None = None,
    ) -> None:
        super().__init__(temperature)
        if not alpha > 0:
            raise ValueError(f"OGM-GE's alpha must be positive, got {alpha}: without modulation, use InfoNCE")
        if first_epoch < 0 or (last_epoch is not None and last_epoch < first_epoch):
            raise ValueError(f"OGM-GE needs 0 <= first_epoch <= last_epoch, got {first_epoch} and {last_epoch}")
        self.alpha, self.noise = alpha, noise
        self.first_epoch, self.last_epoch = first_epoch, last_epoch
        self.register_buffer("scores", torch.zeros(2))  # of images and captions, summed since the last step
        self.register_buffer("score_ratio", torch.tensor(1.0))
        self.register_buffer("modulating", torch.tensor(first_epoch == 0))
        self.register_buffer("noise_seed", torch.tensor(0))
        self.register_buffer("steps", torch.tensor(0))

    def setup(self, training: TrainingPairs) -> None:
        """Take over the seed of the training for the noise."""
        self.noise_seed.fill_(torch.initial_seed() & _INT64)

    def begin_epoch(self, epoch: int, measure: Measure) -> None:
        """Decide whether the epoch is modulated."""
        self.modulating.fill_(epoch >= self.first_epoch and (self.last_epoch is None or epoch <= self.last_epoch))

    def terms(self, pairs: Pairs, local_rows: slice = slice(None)) -> dict[str, Tensor]:
        """Compute InfoNCE; gradient flows to both embeddings and to tau. Scores are those of all rows, without gradient."""
        tau = self.temperature().detach()
        scores = [self_discrimination(embeddings, pairs.image_index, tau) for embeddings in (pairs.image, pairs.text)]
        self.scores += torch.stack(scores).to(self.scores.dtype)
        return super().terms(pairs, local_rows)

    @torch.no_grad()
    def modify_gradients(self, encoder: DualEncoder) -> None:
        """Scale the gradients of the stronger modality and add noise, see the class."""
        self.score_ratio.copy_(self.scores[0] / self.scores[1])
        self.scores.zero_()
        if not self.modulating:
            return
        seed = stable_hash("OGM-GE", int(self.noise_seed), int(self.steps))
        generator = torch.Generator(self.scores.device).manual_seed(seed)
        self.steps += 1
        for modality, coefficient in self.coefficients().items():
            for gradient in _matrix_gradients(encoder, modality):
                modulated = gradient * coefficient
                if self.noise:
                    normal = torch.empty_like(gradient).normal_(generator=generator)
                    modulated += normal * gradient.std() * (gradient != 0)
                gradient.copy_(modulated)

    def coefficients(self) -> dict[Modality, Tensor]:
        """Return k of images and captions by the ratio of the last step, scalars."""
        ratios = torch.stack([self.score_ratio, 1 / self.score_ratio])
        image, text = modulation_coefficient(ratios, self.alpha)
        return {"image": image, "text": text}

    def scalars(self) -> dict[str, Tensor]:
        """Return tau, and the ratio of scores and the coefficients of the last step."""
        coefficients = {f"{modality}_coefficient": value for modality, value in self.coefficients().items()}
        return super().scalars() | {"score_ratio": self.score_ratio} | coefficients


def _matrix_gradients(encoder: DualEncoder, modality: Modality) -> list[Tensor]:
    """Gradients of the parameters with more than one dimension, and more than one entry, of a tower and its projection."""
    parts: dict[Modality, tuple[nn.Module, ...]] = {
        "image": (encoder.image_tower, encoder.image_projection),
        "text": (encoder.text_tower, encoder.text_projection),
    }
    parameters = [parameter for part in parts[modality] for parameter in part.parameters()]
    return [each.grad for each in parameters if each.grad is not None and each.ndim > 1 and each.numel() > 1]
