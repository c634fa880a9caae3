"""Gradients written out, for a CPU, of the two compositions that a training step spends most of its memory traffic on.

Both keep no more than `lightly` does: what is cheap is computed again. Written out, they compute it into the memory of what is
not needed any more, where autograd asks the system for a new piece of several megabytes each time; and the weights of a
convolution over time get theirs by products of matrices, which the library's own kernel takes four times as long for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

Ops = torch.ops.aten


def by_hand(*tensors: Tensor | None) -> bool:
    """Whether gradients are written out for these: on a CPU, in float32, by nothing that rewrites operations itself."""
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    return all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)


def gated_linear(value: Tensor, gate: Tensor, out: nn.Linear) -> Tensor:
    """out(a · gelu(g)) of a and g (rows, N, H) -> (rows, N, D)."""
    rows = _GatedLinear.apply(value.flatten(0, -2), gate.flatten(0, -2), out.weight, out.bias)
    return rows.unflatten(0, value.shape[:-1])


def norm_conv(norm: nn.GroupNorm, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of silu(norm(x)), padded to x's size, with odd kernels: x (N, C, H, W) -> (N, C', H, W)."""
    return _NormConv.apply(x, norm.weight, norm.bias, weight, bias, norm.num_groups, norm.eps)


class _GatedLinear(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(value, gate, weight)
        return F.linear(F.gelu(gate).mul_(value), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        value, gate, weight = ctx.saved_tensors
        (grad,) = grads
        gelu = F.gelu(gate)
        hidden = gelu * value
        of_weight = grad.t().mm(hidden) if ctx.needs_input_grad[2] else None
        of_bias = grad.sum(0) if ctx.needs_input_grad[3] else None
        torch.mm(grad, weight, out=hidden)  # from here on it is the gradient of itself
        of_value = gelu.mul_(hidden)
        hidden.mul_(value)
        of_gate = Ops.gelu_backward.grad_input(hidden, gate, grad_input=hidden)
        return of_value, of_gate, of_weight, of_bias


class _NormConv(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, bias: Tensor | None,
        groups: int, eps: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, gamma, beta, weight)
        ctx.norm = groups, eps
        hidden = F.silu(F.group_norm(x, groups, gamma, beta, eps), inplace=True)
        return F.conv2d(hidden, weight, bias, padding=_padding(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, weight = ctx.saved_tensors
        (grad,), (groups, eps) = grads, ctx.norm
        with (
            torch.enable_grad()
        ):  # of a frozen norm too: torch (2.13) dies where it is asked for some of the three
            inputs = [tensor.detach().requires_grad_() for tensor in inputs]
            normed = F.group_norm(inputs[0], groups, inputs[1], inputs[2], eps)
        hidden = F.silu(normed.detach())
        over_time = weight.shape[2:] == (3, 1)
        wanted = [True, ctx.needs_input_grad[3] and not over_time, ctx.needs_input_grad[4] and not over_time]
        of_hidden, of_weight, of_bias = Ops.convolution_backward(
            grad,
            hidden,
            weight,
            [weight.shape[0]],
            [1, 1],
            _padding(weight),
            [1, 1],
            False,
            [0, 0],
            1,
            wanted,
        )
        if over_time:
            of_weight = _taps(grad, hidden) if ctx.needs_input_grad[3] else None
            of_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None
        del hidden
        Ops.silu_backward.grad_input(of_hidden, normed.detach(), grad_input=of_hidden)
        return (*torch.autograd.grad(normed, inputs, of_hidden), of_weight, of_bias, None, None)


def _padding(weight: Tensor) -> list[int]:
    return [side // 2 for side in weight.shape[2:]]


def _taps(grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of the weights (C', C, 3, 1) of a convolution over time: output (B, C', T, P) and input (B, C, T, P)."""
    grad, x = (t.permute(0, 2, 3, 1) for t in (grad, x))
    pairs = ((grad[:, 1:], x[:, :-1]), (grad, x), (grad[:, :-1], x[:, 1:]))
    taps = [g.reshape(-1, g.shape[-1]).t().mm(some.reshape(-1, some.shape[-1])) for g, some in pairs]
    return torch.stack(taps, dim=-1)[..., None]
