"""Gradient checkpointing (Chen et al. 2016, 1604.06174): activations of blocks are computed again, not kept.

Applied to a finished network from outside; gradients stay the same bit for bit. What is kept, the inputs of the blocks,
may wait in the host's memory until its turn comes.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from svdcli.model.attention import FeedForward, SpatioTemporalTransformer
from svdcli.model.blocks import ResBlock, SpatioTemporalResBlock

BLOCKS = (SpatioTemporalResBlock, SpatioTemporalTransformer, ResBlock)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The residual blocks and transformers of a network that lie in no other, in its own order."""
    found: list[nn.Module] = []
    for child in network.children():
        found += [child] if isinstance(child, BLOCKS) else blocks_of(child)
    return found


def recompute_blocks(
    network: nn.Module, share: float, *, layers: bool = False, offload: bool = False
) -> None:
    """Keep of this share of the blocks, spread evenly over the network, no more than their inputs.

    layers: while such a block is computed again, its feed-forwards keep no more than theirs either. offload: the inputs
    of the blocks wait in the host's memory.
    """
    for index, block in enumerate(blocks_of(network)):
        if int((index + 1) * share) > int(index * share):
            block.forward = MethodType(_recompute_from_host if offload else _recompute, block)  # type: ignore[method-assign]
            for layer in block.modules() if layers else ():
                if isinstance(layer, FeedForward):
                    layer.forward = MethodType(_recompute, layer)  # type: ignore[method-assign]


def _recompute(self: nn.Module, *arguments: Any, **options: Any) -> Any:
    """The forward of the block's class; twice, where gradients are wanted."""
    if not torch.is_grad_enabled():
        return type(self).forward(self, *arguments, **options)
    return checkpoint(type(self).forward, self, *arguments, use_reentrant=False, **options)


def _recompute_from_host(self: nn.Module, *arguments: Any, **options: Any) -> Any:
    """The same, its inputs in the host's memory meanwhile."""
    with saved_tensors_hooks(to_host, from_host):
        return _recompute(self, *arguments, **options)


def to_host(tensor: Tensor) -> tuple[torch.device, Tensor]:
    """-> where it was, and a copy in the host's memory, page-locked for a GPU."""
    if tensor.device.type == "cpu":
        return tensor.device, tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
    return tensor.device, host.copy_(tensor, non_blocking=True)


def from_host(packed: tuple[torch.device, Tensor]) -> Tensor:
    device, tensor = packed
    return tensor.to(device, non_blocking=True)
