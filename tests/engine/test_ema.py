"""Averages: power functions against their definition, and any width from the snapshots of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from svdcli.engine.ema import Averages, blend, exponent, reconstruct
from svdcli.errors import InputError
from svdcli.recipe.recipe import Optim

STEPS, EVERY = 600, 30


def optim(**changes: object) -> Optim:
    return Optim(lr=1.0, ema="power", **changes)  # type: ignore[arg-type]


def wander(network: nn.Linear, step: int) -> None:
    """Weights that go somewhere, and shake."""
    noise = torch.randn(network.weight.shape, generator=torch.Generator().manual_seed(step))
    network.weight.data.mul_(0.998).add_(0.02 + 0.05 * noise)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, torch.Tensor]]:
    """A run with snapshots -> its folder, and averages of other widths that were tracked all along."""
    folder, network = tmp_path_factory.mktemp("run"), nn.Linear(32, 16, bias=False)
    kept = Averages(network, optim())
    tracked = {w: Averages(network, optim(ema_widths=(0.01, w))) for w in (0.07, 0.15, 0.2)}
    for step in range(1, STEPS + 1):
        wander(network, step)
        for averages in (kept, *tracked.values()):
            averages.update(network, step)
        if step % EVERY == 0:
            kept.snapshot(folder, step, write=True)
    return folder, {w: a.module.weight for w, a in tracked.items()}  # type: ignore[misc]


@pytest.mark.parametrize(("width", "error"), [(0.07, 0.005), (0.15, 0.01), (0.2, 0.02)])
def test_a_width_afterwards_equals_the_one_tracked(
    run: tuple[Path, dict[float, torch.Tensor]], width: float, error: float
) -> None:
    folder, tracked = run
    found, wanted = reconstruct(folder, width)["weight"], tracked[width]
    assert ((found - wanted).norm() / wanted.norm()).item() < error
    other = reconstruct(folder, 0.05)["weight"]
    assert ((other - wanted).norm() / wanted.norm()).item() > 2 * error  # another width is another average


def test_a_tracked_width_comes_back_as_it_is(run: tuple[Path, dict[float, torch.Tensor]]) -> None:
    shares = blend(np.array([300, 600, 600]), np.array([0.05, 0.05, 0.1]), 600, 0.1)
    assert shares == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)
    assert reconstruct(run[0], 0.1, step=300)["weight"].shape == (16, 32)


def test_exponents_of_widths() -> None:
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01) and exponent(0.1) == pytest.approx(6.94, abs=0.01)
    for width in (0.02, 0.1, 0.25):
        g = exponent(width)
        assert ((g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5) == pytest.approx(width)


def test_the_first_step_is_the_average_and_the_frozen_are_shared() -> None:
    network = nn.Linear(3, 3)
    network.bias.requires_grad_(False)
    averages = Averages(network, optim())
    network.weight.data.fill_(2.0)
    averages.update(network, 1)
    assert averages.module.weight.unique().item() == 2.0 == averages.narrow["weight"].unique().item()
    assert averages.module.bias is network.bias and list(averages.narrow) == ["weight"]


def test_no_snapshots_are_an_input_error(tmp_path: Path, run: tuple[Path, dict[float, torch.Tensor]]) -> None:
    for folder, step in ((tmp_path, None), (run[0], 31)):
        with pytest.raises(InputError, match="no snapshot") as caught:
            reconstruct(folder, 0.1, step)
        assert "optim.ema=power" in caught.value.hint
