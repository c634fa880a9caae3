"""Gradient checkpointing (Chen et al. 2016, 1604.06174): activations of blocks are computed again, not kept.

Applied to a finished network from outside; gradients stay the same bit for bit.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from svdcli.model.attention import Context, SpatioTemporalTransformer
from svdcli.model.blocks import ResBlock, SpatioTemporalResBlock

BLOCKS = (SpatioTemporalResBlock, SpatioTemporalTransformer, ResBlock)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The residual blocks and transformers of a network that lie in no other, in its own order."""
    found: list[nn.Module] = []
    for child in network.children():
        found += [child] if isinstance(child, BLOCKS) else blocks_of(child)
    return found


def recompute_blocks(network: nn.Module, share: float) -> None:
    """Keep of this share of the blocks, spread evenly over the network, no more than their inputs."""
    for index, block in enumerate(blocks_of(network)):
        if int((index + 1) * share) > int(index * share):
            block.forward = MethodType(_recompute, block)  # type: ignore[method-assign]


def _recompute(self: nn.Module, *arguments: Any, **options: Any) -> Any:
    """The forward of the block's class; twice, where gradients are wanted."""
    if not torch.is_grad_enabled():
        return type(self).forward(self, *arguments, **options)
    return checkpoint(_forward, self, *arguments, use_reentrant=False, **options)


def _forward(self: nn.Module, *arguments: Any, **options: Any) -> Any:
    # A context keeps what was computed of it, and the second time must compute what the first one did.
    fresh = (Context(a.tokens) if isinstance(a, Context) else a for a in arguments)
    return type(self).forward(self, *fresh, **options)
