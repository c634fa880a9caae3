"""Tensors of which each process holds a share (FSDP), made whole for a file and shared out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

Key = TypeVar("Key")


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor, or all of one that is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """All of it, in host memory if it was shared out; collective then."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def whole(tensors: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """`gathered`, of each."""
    return {name: gathered(tensor) for name, tensor in tensors.items()}


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, shared out as the other is; collective if it is."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device, other.dtype), other.device_mesh, other.placements)


def place(tensors: Mapping[Key, Tensor], others: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """`like`, of each that the others name too."""
    return {name: like(t, others[name]) if name in others else t for name, t in tensors.items()}
