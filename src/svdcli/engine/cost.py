"""What a step of a network costs, counted on tensors that have a shape and no numbers.

The very modules run, forward and backward, so that frozen layers, recomputed blocks and autocast count as they
are. Arithmetic is that of matrix products, convolutions and attention, two operations a multiplication.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from svdcli.engine import recompute


@dataclass(frozen=True)
class Cost:
    """Of one batch."""

    forward_flops: float
    step_flops: float
    """forward, backward and what is computed again"""
    activation_bytes: int
    """most that is held at once beside weights, inputs and gradients of the weights"""
    host_bytes: int = 0
    """of activations that wait in the host's memory"""


class Meter(TorchDispatchMode):
    """Counts the bytes of all tensors made within it, `now` and at most (`peak`), and the operations (`flops`)."""

    def __init__(self, known: list[Tensor]) -> None:
        """`known` were there before, and do not count."""
        super().__init__()
        self.now = self.peak = self.flops = self.host = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        counted = flop_registry.get(func._overloadpacket)
        if counted is not None:
            self.flops += counted(*args, **(kwargs or {}), out_val=out)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def to_host(self, tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
        """As `recompute.to_host`: what is left of the tensor on the device is nothing."""
        self.host += tensor.numel() * tensor.element_size()
        return tensor.shape, tensor.stride(), tensor.dtype

    def from_host(self, packed: tuple[torch.Size, tuple[int, ...], torch.dtype]) -> Tensor:
        shape, strides, dtype = packed
        return torch.empty_strided(shape, strides, dtype=dtype)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextmanager
def _as_on_device(on_gpu: bool) -> Iterator[None]:
    """Attention by the kernels that keep no N² matrix; with `on_gpu`, norms in float32, as CUDA's autocast does them.

    The functions themselves are changed meanwhile: a mode of torch's would not hold for what is computed again.
    """
    norms = {name: getattr(F, name) for name in ("group_norm", "layer_norm")}

    def attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
        q, k, v = (t.to(torch.get_autocast_dtype("cpu")) if _autocasts() else t for t in (q, k, v))
        return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, True)[0]

    def in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Any, **kwargs: Any) -> Tensor:
            if not _autocasts():
                return norm(*args, **kwargs)
            with torch.autocast("cpu", enabled=False):
                return norm(*(a.float() if isinstance(a, Tensor) else a for a in args), **kwargs)

        return call

    wanted: dict[str, Any] = {name: in_float32(norm) for name, norm in norms.items()} if on_gpu else {}
    with patch.multiple(F, **wanted, scaled_dot_product_attention=attention):
        yield


def _autocasts() -> bool:
    return torch.is_autocast_enabled("cpu")


def count(
    network: nn.Module,
    run: Callable[[nn.Module], Tensor],
    half: torch.dtype | None = None,
    *,
    on_gpu: bool = True,
    backward: bool = True,
) -> Cost:
    """Cost of `run(network)`, which builds its inputs and calls the network, and of the gradients of what it returns.

    The network lies on the meta device, and is emptied further: it is of no use after. `half`: autocast to it.
    """
    with FakeTensorMode():
        _make_fake(network)
        for parameter in network.parameters():
            # The gradient of a weight is counted apart, and goes as soon as it has come.
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        known = [*network.parameters(), *network.buffers()]
        autocast = torch.autocast("cpu", half) if half else nullcontext()
        gradients = nullcontext() if backward else torch.no_grad()
        with Meter(known) as meter, _as_on_device(on_gpu):
            with (
                autocast,
                gradients,
                patch.multiple(recompute, to_host=meter.to_host, from_host=meter.from_host),
            ):
                out = run(network)
            forward = float(meter.flops)
            if backward:
                out.float().square().mean().backward()
        return Cost(forward, float(meter.flops), meter.peak, meter.host)


def _make_fake(network: nn.Module) -> None:
    """Tensors of a network on the meta device become ones that know a real device, and are as empty."""
    made: dict[int, Tensor] = {}
    for owner in network.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                owner._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
