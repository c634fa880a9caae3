"""What tells the training tasks apart, one file each: the network, its batches, its loss, its measures. One loop runs them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svdcli.recipe.recipe import ImageToVideoTask, Recipe, VAETask


class Task(Protocol):
    """A task owns its data and frozen parts. All randomness of a step comes from the generator that the loop hands it."""

    network: nn.Module
    """what trains, with its parameters' `requires_grad` set"""

    def batch(self, seed: list[int]) -> Any:
        """Examples of one step, a pure function of the seed."""

    def loss(self, network: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """-> scalar loss and figures to log. Calls `network` (the Fabric-wrapped module), never an inner one."""

    def evaluate(self, network: nn.Module) -> dict[str, float]:
        """Held-out measures of the averaged weights."""

    def export(self, network: nn.Module, folder: Path) -> None:
        """Write the result as (parts of) a bundle."""


def make_task(recipe: Recipe, device: torch.device, cache: Path) -> Task:
    """The task that the recipe names."""
    if isinstance(recipe.task, VAETask):
        from svdcli.engine.tasks.vae import Autoencoder

        return Autoencoder(recipe.task, recipe.data, recipe.run.batch_size, device, cache)
    from svdcli.engine.tasks.i2v import ImageToVideo

    assert isinstance(recipe.task, ImageToVideoTask)
    return ImageToVideo(recipe.task, recipe.data, recipe.run.batch_size, device, cache)
