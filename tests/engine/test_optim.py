"""What trains and how fast: groups, freezing, frozen halves, schedules."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from svdcli.engine.adam import AdamW8bit, HostAdamW
from svdcli.engine.ema import Averages
from svdcli.engine.optim import (
    build_optimizer,
    freeze,
    is_temporal,
    learning_rate,
    set_rate,
    settle_frozen,
)
from svdcli.errors import RecipeError
from svdcli.model.inflate import is_new
from svdcli.model.unet import UNet, UNetConfig
from svdcli.recipe.recipe import Optim


def network(toy: ModuleType) -> UNet:
    torch.manual_seed(0)
    return UNet(toy.CONFIG)


def gradients(unet: UNet, toy: ModuleType) -> dict[str, Tensor]:
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = toy.Toy().loss(unet, toy.Toy().batch([1]), torch.Generator())
    loss.backward()
    return {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}


def test_the_temporal_parameters_of_the_published_network() -> None:
    with torch.device("meta"):
        unet = UNet(UNetConfig())
    assert sum(p.numel() for n, p in unet.named_parameters() if is_temporal(n)) == 656_076_838
    assert not is_temporal("time_embedding.linear_1.weight")


def test_rates_of_spatial_and_temporal_layers(toy: ModuleType) -> None:
    unet = network(toy)
    optimizer = build_optimizer(unet, Optim(lr=1.0, spatial_lr_scale=0.25, temporal_lr_scale=2.0))
    set_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(unet.parameters()))
    for name, parameter in unet.named_parameters():
        assert rates[id(parameter)] == pytest.approx(0.2 if is_temporal(name) else 0.025)


def test_states_by_name(toy: ModuleType) -> None:
    for state, kind in (("full", torch.optim.AdamW), ("8bit", AdamW8bit), ("host", HostAdamW)):
        assert isinstance(build_optimizer(nn.Linear(2, 2), Optim(lr=1.0, state=state)), kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("which", ["spatial", "temporal"])
def test_the_frozen_are_half_as_large_and_change_no_gradient(toy: ModuleType, which: str) -> None:
    expected = gradients(network(toy), toy)
    unet = network(toy)
    freeze(unet, which)
    settle_frozen(unet, "bf16-mixed")
    named = dict(unet.named_parameters())
    for name, parameter in named.items():
        trains = is_new(name) == (which == "spatial")
        assert parameter.requires_grad == trains
        gained = name.endswith("temporal_res_block.conv2.weight")
        half = not trains and parameter.ndim >= 2 and not gained
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32)
    found = gradients(unet, toy)
    assert found and found.keys() == {n for n in expected if named[n].requires_grad}
    assert all(torch.equal(found[name], expected[name]) for name in found)

    frozen = {n: p.detach().clone() for n, p in named.items() if not p.requires_grad}
    trained = {n: p.detach().clone() for n, p in named.items() if p.requires_grad}
    optimizer = build_optimizer(unet, Optim(lr=1e-2))
    optimizer.step()
    assert all(torch.equal(named[name], before) for name, before in frozen.items())
    assert any(not torch.equal(named[name], before) for name, before in trained.items())


def test_frozen_halves_run_without_autocast_and_in_the_average(toy: ModuleType) -> None:
    unet = network(toy)
    freeze(unet, "spatial")
    settle_frozen(unet, "bf16-mixed")
    average = Averages(unet, Optim(lr=1.0)).module
    with torch.no_grad():
        for (
            parameter
        ) in unet.parameters():  # the average is its own network where it trains, and shares the rest
            if parameter.requires_grad:
                parameter.zero_()
    toy_task = toy.Toy()
    losses = [toy_task.evaluate(module)["held_out_loss"] for module in (unet, average)]
    assert losses[0] != losses[1]
    assert average.conv_in.weight is unet.conv_in.weight


def test_in_full_precision_all_is_and_trains(toy: ModuleType) -> None:
    unet = network(toy)
    freeze(unet, "spatial")
    settle_frozen(unet, "32-true")
    assert all(p.dtype == torch.float32 for p in unet.parameters())
    toy.Toy().loss(unet, toy.Toy().batch([1]), torch.Generator())[0].backward()  # died in torch
    assert all(p.grad is None for p in unet.parameters() if not p.requires_grad)


def test_something_must_train() -> None:
    with pytest.raises(RecipeError, match="leaves nothing to train"):
        freeze(nn.Linear(2, 2), "spatial")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [1.0, 0.6, 0.2]), ("linear", [1.0, 0.6, 0.2]), ("constant", [1.0, 1.0, 1.0])],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    final = 0.0 if schedule == "constant" else 0.2
    optim = Optim(lr=1.0, final_lr=final, warmup_steps=4, schedule=schedule)  # type: ignore[arg-type]
    assert [learning_rate(optim, step, 12) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [learning_rate(optim, step, 12) for step in (4, 8, 12)] == pytest.approx(expected)
    quarter = learning_rate(optim, 6, 12)
    assert quarter == pytest.approx(
        {"cosine": 0.6 + 0.4 * 0.5**0.5, "linear": 0.8, "constant": 1.0}[schedule]
    )
