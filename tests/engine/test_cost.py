"""What a step costs: against the published network's arithmetic and against a step that runs."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from svdcli.engine.cost import Meter, count
from svdcli.engine.recompute import recompute_blocks
from svdcli.model.unet import UNet, UNetConfig


@pytest.mark.slow
def test_the_arithmetic_of_the_published_network() -> None:
    """44.8 TFLOP at 14 × 576×1024 (svd-facts §2.1), counted with cross-attention in full, which one token spares us."""
    with torch.device("meta"):
        unet = UNet(UNetConfig())

    def run(network: nn.Module, tokens: int) -> Tensor:
        x = torch.empty(1, 14, 8, 72, 128)
        with torch.enable_grad():  # as in training: sampling doubles resolution for less
            return network(x, torch.empty(1), torch.empty(1, tokens, 1024), torch.empty(1, 3))

    cost = count(unet, lambda network: run(network, 2), backward=False)
    assert cost.forward_flops == pytest.approx(44.8e12, rel=0.02) and cost.step_flops == cost.forward_flops


def test_a_matrix_product_by_hand() -> None:
    with torch.device("meta"):
        layer = nn.Linear(30, 50)
    cost = count(layer, lambda network: network(torch.empty(7, 30)))
    assert cost.forward_flops == 2 * 7 * 30 * 50
    assert cost.step_flops == 2 * cost.forward_flops  # the input needs no gradient


def small(toy: ModuleType, share: float) -> UNet:
    unet = UNet(replace(toy.CONFIG, block_out_channels=(16, 32)))
    recompute_blocks(unet, share)
    return unet


def run(network: nn.Module) -> Tensor:
    return network(torch.zeros(1, 6, 8, 16, 16), torch.zeros(1), torch.zeros(1, 1, 8), torch.zeros(1, 3))


def measured(unet: UNet, half: bool) -> int:
    """The most that torch's allocator gave out in a real step, beside weights and their gradients."""
    for parameter in unet.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = run(unet)
        out.float().square().mean().backward()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize(("share", "half"), [(0.0, False), (1.0, False), (1.0, True)])
def test_activations_are_those_of_a_step_that_runs(toy: ModuleType, share: float, half: bool) -> None:
    with torch.device("meta"):
        unet = small(toy, share)
    cost = count(unet, run, torch.bfloat16 if half else None, on_gpu=False)
    assert cost.activation_bytes == pytest.approx(measured(small(toy, share), half), rel=0.05)


def test_recomputation_costs_a_forward_more_and_saves_memory(toy: ModuleType) -> None:
    costs = []
    for share in (0.0, 1.0):
        with torch.device("meta"):
            unet = small(toy, share)
        costs.append(count(unet, run))
    kept, again = costs
    assert again.forward_flops == kept.forward_flops
    assert kept.step_flops < again.step_flops < kept.step_flops + kept.forward_flops
    assert again.activation_bytes < 0.5 * kept.activation_bytes


def test_the_meter_forgets_what_is_gone() -> None:
    known = torch.zeros(10)
    with Meter([known]) as meter:
        a = torch.zeros(100)
        b = a.view(10, 10) + 1
        known.add_(1)
        assert meter.now == 800
        del a
        assert meter.now == 400 and b.numel() == 100
    assert meter.peak == 800


def test_what_waits_on_the_host_is_counted_there(toy: ModuleType) -> None:
    costs = []
    for offload in (False, True):
        with torch.device("meta"):
            unet = UNet(replace(toy.CONFIG, block_out_channels=(16, 32)))
        recompute_blocks(unet, 1.0, offload=offload)
        costs.append(count(unet, run))
    kept, moved = costs
    assert moved.step_flops == kept.step_flops and kept.host_bytes == 0
    assert moved.host_bytes > 0 and moved.activation_bytes < kept.activation_bytes


def test_layers_computed_again_cost_work_and_save_memory(toy: ModuleType) -> None:
    costs = []
    for layers in (False, True):
        with torch.device("meta"):
            unet = UNet(replace(toy.CONFIG, block_out_channels=(16, 32)))
        recompute_blocks(unet, 1.0, layers=layers)
        costs.append(count(unet, run))
    assert costs[1].activation_bytes < costs[0].activation_bytes
    assert costs[0].step_flops < costs[1].step_flops < 1.4 * costs[0].step_flops
