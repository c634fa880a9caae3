"""One step of the loop, by its arithmetic: what is averaged, what is clipped, what counts as a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from svdcli.engine.optim import learning_rate
from svdcli.engine.train import prepare, train_step
from svdcli.recipe.recipe import Recipe

Make = Callable[..., Recipe]


class Line:
    """The least of tasks: y = w x against a target that the seed draws."""

    def __init__(self) -> None:
        self.network: nn.Module = nn.Linear(3, 1, bias=False)
        nn.init.ones_(self.network.weight)  # type: ignore[arg-type]
        self.seeds: list[list[int]] = []

    def batch(self, seed: list[int]) -> Tensor:
        self.seeds.append(seed)
        return torch.randn(2, 4, generator=torch.Generator().manual_seed(sum(seed) + 1))

    def loss(
        self, network: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        return (network(batch[:, :3]) - batch[:, 3:]).square().mean(), {}


@dataclass
class Seen:
    """What steps of a `Line` gave the optimizer."""

    task: Line
    weights: list[Tensor]
    gradients: list[Tensor]
    rates: list[float]
    figures: list[dict[str, float]]


@pytest.fixture
def stepped(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Seen]:
    """Make some steps."""

    def run(num_steps: int, changes: dict[str, Any]) -> Seen:
        recipe = make_recipe({"run.num_steps": num_steps} | changes)
        seen = Seen(Line(), [], [], [], [])
        fabric = Fabric(accelerator="cpu", devices=1)
        real = torch.optim.AdamW.step

        def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
            (weight,) = self.param_groups[0]["params"]
            seen.weights.append(weight.detach().clone())
            seen.gradients.append(weight.grad.clone())
            seen.rates.append(self.param_groups[0]["lr"])
            return real(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr("svdcli.engine.train.make_task", lambda *args: seen.task)
            patch.setattr(torch.optim.AdamW, "step", step)
            task, network, state = prepare(fabric, recipe)
            for _ in range(num_steps):
                seen.figures.append(train_step(fabric, task, network, state, recipe))
        assert state.step == num_steps
        return seen

    return run


def plain_gradient(seeds: list[list[int]], weight: Tensor) -> tuple[Tensor, float]:
    """Of the mean loss over all examples of these batches, by autograd -> gradient and loss."""
    task = Line()
    with torch.no_grad():
        task.network.weight.copy_(weight)  # type: ignore[operator]
    batch = torch.cat([task.batch(seed) for seed in seeds])
    loss, _ = task.loss(task.network, batch, torch.Generator())
    (gradient,) = torch.autograd.grad(loss, [task.network.weight])  # type: ignore[list-item]
    return gradient, loss.item()


@pytest.mark.parametrize("parts", [1, 3])
def test_accumulated_gradients_are_the_mean_over_all_examples(
    stepped: Callable[..., Seen], parts: int
) -> None:
    """In both steps: nothing is left over of the first."""
    seen = stepped(2, {"run.accumulate": parts, "optim.clip_norm": 1e9})
    assert len({tuple(seed) for seed in seen.task.seeds}) == len(seen.task.seeds) == 2 * parts
    for step in (0, 1):
        seeds = seen.task.seeds[step * parts : (step + 1) * parts]
        expected, loss = plain_gradient(seeds, seen.weights[step])
        torch.testing.assert_close(seen.gradients[step], expected)
        assert seen.figures[step]["loss"] == pytest.approx(loss)
        assert seen.figures[step]["grad_norm"] == pytest.approx(expected.norm().item())


def test_the_mean_gradient_is_clipped_before_the_step_and_its_true_norm_logged(
    stepped: Callable[..., Seen],
) -> None:
    seen = stepped(1, {"run.accumulate": 3, "optim.clip_norm": 0.05})
    expected, _ = plain_gradient(seen.task.seeds, seen.weights[0])
    assert seen.figures[0]["grad_norm"] == pytest.approx(expected.norm().item(), rel=1e-4)
    assert expected.norm() > 0.1
    torch.testing.assert_close(seen.gradients[0], expected * 0.05 / expected.norm(), rtol=1e-4, atol=1e-6)


def test_the_rate_counts_updates_not_batches(stepped: Callable[..., Seen]) -> None:
    one, four = (stepped(6, {"run.accumulate": parts, "optim.warmup_steps": 3}) for parts in (1, 4))
    assert one.rates == four.rates and len(four.rates) == 6 and len(set(four.rates)) > 3
    assert [figures["lr"] for figures in four.figures] == four.rates  # what is logged is what was used


def test_the_rate_reaches_its_last_value_at_the_last_step(make_recipe: Make) -> None:
    optim = make_recipe({"optim.final_lr": 1e-5, "optim.warmup_steps": 0}).optim
    assert learning_rate(optim, 100, 100) == pytest.approx(1e-5)
