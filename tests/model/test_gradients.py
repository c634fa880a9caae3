"""Gradients written out, beside autograd's: alike to the bit, over time to the rounding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdcli.model import attention, blocks
from svdcli.model.attention import FeedForward
from svdcli.model.blocks import ResBlock, TemporalResBlock, norm_silu
from svdcli.model.gradients import by_hand, gated_linear, norm_conv


def gradients(function: Callable[[], Tensor], *wanted: Tensor) -> tuple[Tensor, ...]:
    out = function()
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return (out, *torch.autograd.grad((out * weights).sum(), wanted))


def test_a_gated_projection_to_the_bit() -> None:
    torch.manual_seed(0)
    value, gate = (torch.randn(3, 5, 12, requires_grad=True) for _ in range(2))
    out = nn.Linear(12, 6)
    wanted = (value, gate, out.weight, out.bias)
    found = gradients(lambda: gated_linear(value, gate, out), *wanted)
    expected = gradients(lambda: out(F.gelu(gate) * value), *wanted)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    "shape, kernel", [((3, 8, 5, 6), (3, 3)), ((2, 8, 5, 6), (3, 1)), ((1, 8, 1, 6), (3, 1))]
)
def test_a_convolution_of_what_is_normed(shape: tuple[int, ...], kernel: tuple[int, int]) -> None:
    """Over time clips do not run into one another, and a clip of one frame sees the middle tap alone."""
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    norm, conv = nn.GroupNorm(4, 8), nn.Conv2d(8, 7, kernel, padding=(1, kernel[1] // 2))
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    wanted = (x, norm.weight, norm.bias, conv.weight, conv.bias)
    found = gradients(lambda: norm_conv(norm, x, conv.weight, conv.bias), *wanted)
    expected = gradients(lambda: conv(norm_silu(norm, x)), *wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert kernel == (3, 1) or all(map(torch.equal, found, expected))


@pytest.mark.parametrize("kept", ["weight", "bias", "norm", "all"])
def test_what_is_frozen_gets_none_and_the_rest_stays(kept: str) -> None:
    torch.manual_seed(0)
    block, ff = TemporalResBlock(8, 4, 1e-6, 4), FeedForward(8)
    frozen = {"weight": [block.conv1.weight, ff.net[2].weight], "bias": [block.conv1.bias, ff.net[2].bias]}
    frozen |= {"norm": [*block.norm1.parameters()], "all": [*block.parameters(), *ff.parameters()]}
    for parameter in frozen[kept]:
        parameter.requires_grad_(False)
    x = torch.randn(1, 8, 3, 6, requires_grad=True)
    out = block(x, torch.randn(1, 4), torch.tensor(0.5)).sum() + ff(torch.randn(2, 3, 8) * x.mean()).sum()
    out.backward()
    assert x.grad is not None and all(p.grad is None for p in frozen[kept])
    assert all(p.grad is not None for p in (*block.parameters(), *ff.parameters()) if p.requires_grad)


def test_where_they_are_written_out_and_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in half precision, under autocast, without gradients; nor of a layer that something listens to."""
    x = torch.ones(2)
    assert by_hand(x, None) and not by_hand(x.half()) and not by_hand(x.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_hand(x)
    with torch.no_grad():
        assert not by_hand(x)
    called: list[str] = []
    for module, name in ((blocks, "norm_conv"), (attention, "gated_linear")):
        monkeypatch.setattr(module, name, lambda *some, name=name: called.append(name) or some[1][:, :1])
    block, ff = ResBlock(8, 8, None, 1e-6, 4), FeedForward(8)
    for layer in (block.conv1, block.conv2, ff.net[2]):
        layer.register_forward_hook(lambda *some: None)
    block(torch.randn(1, 8, 4, 4), None)
    ff(torch.randn(1, 2, 8))
    assert called == []
