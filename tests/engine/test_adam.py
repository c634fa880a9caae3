"""Adam's small states: what eight bits lose, that the host is as good as the device, and exact resumes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from svdcli.engine.adam import (
    BLOCK,
    MEAN_CODES,
    MEAN_POWER,
    SQUARE_CODES,
    SQUARE_POWER,
    AdamW8bit,
    HostAdamW,
    blocks,
    decode,
    encode,
)

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.01}


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regress(optimizer_class: type, steps: int = 150) -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    """A network of two layers learns another one's answers -> losses, network, optimizer."""
    torch.manual_seed(0)
    teacher, network = (nn.Sequential(nn.Linear(32, 160), nn.Tanh(), nn.Linear(160, 32)) for _ in range(2))
    optimizer, losses = optimizer_class(network.parameters(), **SETTINGS), []
    for step in range(steps):
        x = torch.randn(64, 32, generator=dice(step))
        loss = (network(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, network, optimizer


@pytest.fixture(scope="module")
def full() -> tuple[list[float], nn.Module, torch.optim.Optimizer]:
    return regress(torch.optim.AdamW)


def test_eight_bits_learn_as_float32_does(full: tuple[list[float], nn.Module, object]) -> None:
    losses, network, optimizer = regress(AdamW8bit)
    held = optimizer.state[network[0].weight]  # type: ignore[index]
    assert held["mean"].dtype == torch.int8 and held["square"].dtype == torch.uint8
    expected = full[0]
    assert expected[-1] < 0.2 * expected[0]
    assert losses[-1] == pytest.approx(expected[-1], rel=0.05)
    assert losses[-1] != expected[-1]


def test_the_host_updates_as_the_device_does(full: tuple[list[float], nn.Module, object]) -> None:
    losses, network, _ = regress(HostAdamW)
    assert losses == pytest.approx(full[0], rel=1e-4)
    for mine, theirs in zip(network.parameters(), full[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("power", "codes", "bound"), [(MEAN_POWER, MEAN_CODES, 0.016), (SQUARE_POWER, SQUARE_CODES, 0.016)]
)
def test_the_error_of_a_code(power: int, codes: int, bound: float) -> None:
    x = torch.randn(40, BLOCK, generator=dice()) * torch.logspace(-8, 3, 40)[:, None]
    x = x if codes <= 127 else x.square()
    decoded = decode(*encode(x, power, codes, dice(1)), power, codes)
    assert ((decoded - x).abs().amax(dim=1) / x.abs().amax(dim=1)).max() < bound  # of the block's largest
    mean = torch.stack([decode(*encode(x, power, codes, dice(i)), power, codes) for i in range(200)]).mean(
        dim=0
    )
    assert ((mean - x).abs().amax(dim=1) / x.abs().amax(dim=1)).max() < bound / 5  # right on average


def test_nothing_and_everything_alike() -> None:
    for value in (0.0, -2.0):
        x = torch.full((2, BLOCK), value)
        assert torch.equal(decode(*encode(x, MEAN_POWER, MEAN_CODES, dice()), MEAN_POWER, MEAN_CODES), x)
    assert blocks(torch.ones(3, 100)).shape == (2, BLOCK) and blocks(torch.ones(3, 100)).sum() == 300


def test_no_step_is_large_though_moments_were_rounded_away() -> None:
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = AdamW8bit([weight], lr=1.0, betas=(0.9, 0.99), weight_decay=0.0)
    scale = torch.logspace(-9, 3, 4096)[torch.randperm(4096, generator=dice())]
    for step in range(20):
        before = weight.detach().clone()
        weight.grad = scale * torch.randn(4096, generator=dice(step))
        optimizer.step()
        moved = (weight.detach() - before).abs()
        assert moved.max() < 16 and moved.mean() < 1.5  # of rates


@pytest.mark.parametrize("optimizer_class", [AdamW8bit, HostAdamW])
def test_it_goes_on_exactly(optimizer_class: type) -> None:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
        network(torch.randn(4, 80, generator=dice(number))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    network = nn.Linear(80, 80)
    optimizer = optimizer_class(network.parameters(), **SETTINGS)
    for number in range(3):
        step(network, optimizer, number)
    again = copy.deepcopy(network)
    resumed = optimizer_class(again.parameters(), **SETTINGS)
    for old, new in zip(network.parameters(), again.parameters(), strict=True):
        held = optimizer.state[old]
        resumed.state[new] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in held.items()}
    for number in range(3, 6):
        step(network, optimizer, number)
        step(again, resumed, number)
    assert torch.equal(network.weight, again.weight)
