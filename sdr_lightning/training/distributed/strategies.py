"""Strategies of the trainer besides Lightning's: weights divided over processes, and gradients averaged in bf16."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.experimental import implicit_replication
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from sdr_lightning.encoders.dual_encoder import DualEncoder
from sdr_lightning.encoders.fusion import FusionLayer
from sdr_lightning.encoders.tower import Tower


class Bf16GradientsDDP(DDPStrategy):
    """DDP that averages gradients in bf16: half of the bytes, and a rounding to 8 bits of each gradient.

    Weights, gradients and the optimiser stay in fp32. Lightning's own ``ddp_comm_hook`` has no effect on CPUs.
    """

    def configure_ddp(self) -> None:
        """Wrap the model in DDP and register the hook."""
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, bf16_compress_hook)


class FullySharded(ModelParallelStrategy):
    """FSDP: weights, gradients and optimiser states of towers and fusion layers are divided over the processes.

    Each layer is gathered when it is used (torch's ``fully_shard``). Everything else, such as projections and the parameters of
    the method, is in every process. During evaluation and measurements of all pairs the weights are complete, because
    processes may have different numbers of batches. Checkpoints are one file, equal in form to those of other strategies:
    they continue and are evaluated with any strategy and any number of processes.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether Lightning calls :meth:`load_optimizer_state_dict`."""
        return True

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size = self.world_size

    def connect(self, model: pl.LightningModule) -> None:
        """Set the model.

        Raises:
            ValueError: it is no student.
        """
        if not is_overridden("configure_model", model):
            raise ValueError(
                f"trainer.strategy fsdp divides students, and the model is a {type(model).__name__}: use ddp"
            )
        super().connect(model)

    def divide(self, encoder: DualEncoder) -> None:
        """Divide the weights of an encoder over the processes; nothing is done the second time.

        Raises:
            ValueError: a trained tower has batch norm, or is compiled.
        """
        if any(isinstance(module, FSDPModule) for module in encoder.modules()):
            return
        towers = [module for module in encoder.modules() if isinstance(module, Tower) and not module.frozen]
        for tower in towers:
            _check_tower(tower)
        if encoder.fusion is not None:
            for layer in encoder.fusion.layers:
                assert isinstance(layer, FusionLayer)
                self._divide(layer.cross_attention, "context")
                self._divide(layer)
            self._divide(encoder.fusion, "contexts", whole=encoder.fusion.head)
        for tower in reversed(towers):  # those inside another one first
            for block in reversed(list(_blocks(tower))):
                self._divide(block)
            self._divide(tower, "encode_inputs")

    def _divide(self, module: nn.Module, method: str | None = None, whole: nn.Module | None = None) -> None:
        """Divide a module that is called as it is, or by a method; except for a part that is called by itself."""
        # Scalars have no rows to divide, and fully_shard refuses channels_last.
        kept = {parameter for parameter in module.parameters() if not parameter.ndim or not parameter.is_contiguous()}
        kept |= set() if whole is None else set(whole.parameters())
        mesh = self.device_mesh["data_parallel"]
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        if method is not None:
            register_fsdp_forward_method(module, method)

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of the parameters that every process has."""
        super().post_backward(closure_loss)
        assert self.lightning_module is not None
        whole = [p.grad for p in self.lightning_module.parameters() if p.grad is not None and not _is_divided(p)]
        if whole:
            mean = self.reduce(torch.cat([gradient.flatten() for gradient in whole]), reduce_op="mean")
            parts = torch.split(mean, [gradient.numel() for gradient in whole])
            for gradient, part in zip(whole, parts, strict=True):
                gradient.copy_(part.view_as(gradient))

    def optimizer_step(self, *arguments: Any, **options: Any) -> Any:
        """Step; the norm of all gradients is taken over divided and whole ones."""
        with implicit_replication():
            return super().optimizer_step(*arguments, **options)

    def on_validation_start(self) -> None:
        """Gather the weights."""
        self._gather_weights()

    def on_validation_end(self) -> None:
        """Divide the weights again."""
        self._divide_weights()

    def on_test_start(self) -> None:
        """Gather the weights."""
        self._gather_weights()

    def on_test_end(self) -> None:
        """Divide the weights again."""
        self._divide_weights()

    @contextlib.contextmanager
    def complete_weights(self) -> Iterator[None]:
        """Keep the weights complete during the block."""
        self._gather_weights()
        try:
            yield
        finally:
            self._divide_weights()

    def _gather_weights(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for module in self._divided():
                module.set_reshard_after_forward(False, recurse=False)
                module.unshard()

    def _divide_weights(self) -> None:
        for module in self._divided():
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()

    def _divided(self) -> list[FSDPModule]:
        assert self.lightning_module is not None
        return [module for module in self.lightning_module.modules() if isinstance(module, FSDPModule)]

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        """Return the complete state of an optimiser in the first process, and nothing in the others."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer

        def complete(value: Any) -> Any:
            if not isinstance(value, DTensor):
                return value
            gathered = value.full_tensor()
            return gathered.cpu() if self.is_global_zero else None

        state: dict[str, Any] = tree_map(complete, own.state_dict())
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint; the module may change its content before it is loaded."""
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load complete weights into this process's share."""
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, dict(checkpoint["state_dict"]), options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load complete optimiser states into this process's share."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            shares = {
                number: {name: _share_like(parameters[number], value) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            optimizer.load_state_dict({**state, "state": shares})


_BY_NAME = {"fsdp": FullySharded, "ddp_bf16": Bf16GradientsDDP}


def named_strategy(strategy: Any) -> Any:
    """Return the strategy of a name of this module, ``fsdp`` or ``ddp_bf16``; anything else unchanged."""
    return _BY_NAME[strategy]() if isinstance(strategy, str) and strategy in _BY_NAME else strategy


def complete_weights(trainer: pl.Trainer) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the weights are complete, see :class:`FullySharded`."""
    strategy = trainer.strategy
    return strategy.complete_weights() if isinstance(strategy, FullySharded) else contextlib.nullcontext()


def _check_tower(tower: Tower) -> None:
    name = type(tower).__name__
    if any(isinstance(module, _BatchNorm) for module in tower.modules()):
        raise ValueError(
            f"trainer.strategy fsdp would give each process its own statistics of {name}'s batch norm: freeze the tower, take "
            "one without batch norm, or use ddp"
        )
    if "encode_inputs" in vars(tower):
        raise ValueError(
            "trainer.strategy fsdp does not divide compiled towers: set encoder.compile to false, or use ddp"
        )


def _blocks(tower: Tower) -> Iterator[nn.Module]:
    """Yield the repeated layers of a tower: the members of lists and sequences of equal modules with weights."""
    for module in tower.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1 and len({*map(type, module)}) == 1:
            yield from (block for block in module if any(True for _ in block.parameters()))


def _is_divided(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor)


def _share_like(parameter: nn.Parameter, value: Any) -> Any:
    """Return this process's share of an optimiser state, divided as its parameter."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.ndim == 0:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
