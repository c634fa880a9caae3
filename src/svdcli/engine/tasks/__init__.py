"""What tells the training tasks apart, one file each: the network, its batches, its loss, its measures.

One loop runs them all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from svdcli.data.frames import FrameSet
from svdcli.recipe.recipe import Recipe, TextToImageTask, TextToVideoTask, VAETask


class Task(Protocol):
    """A task owns its data and frozen parts.

    All randomness of a step comes from the seed and the generator that the loop hands it.
    """

    @property
    def network(self) -> nn.Module:
        """What trains, with its parameters' `requires_grad` set."""

    def batch(self, seed: list[int]) -> Any:
        """Examples of one step, a pure function of the seed."""

    def loss(
        self, network: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """-> scalar loss and figures to log. Calls `network`, which Fabric wraps, never an inner module."""

    def notes(self) -> list[str]:
        """Sentences that a person should read when training starts, such as what was left out."""

    def evaluate(self, network: Any) -> dict[str, float]:
        """Held-out measures of the averaged weights."""

    def export(self, network: Any, folder: Path, recipe_text: str) -> None:
        """Write the result, made by that recipe, as (parts of) a bundle into the run folder."""


def make_task(recipe: Recipe, device: torch.device, cache: Path) -> Task:
    """The task that the recipe names."""
    if isinstance(recipe.task, VAETask):
        from svdcli.engine.tasks.vae import Autoencoder

        return Autoencoder(recipe.task, recipe.data, recipe.run.batch_size, device, cache)
    if isinstance(recipe.task, TextToImageTask):
        from svdcli.engine.tasks.t2i import TextToImage

        return TextToImage(recipe.task, recipe.data, recipe.run.batch_size, device, cache)
    if isinstance(recipe.task, TextToVideoTask):
        from svdcli.engine.tasks.t2v import TextToVideo

        return TextToVideo(recipe.task, recipe.data, recipe.run.batch_size, device, cache)
    from svdcli.engine.tasks.i2v import ImageToVideo

    return ImageToVideo(recipe.task, recipe.data, recipe.run.batch_size, device, cache)


def data_notes(train_set: FrameSet, held_out: FrameSet, kind: str = "videos") -> list[str]:
    """What a person should know of the dataset."""
    count = f"{len(train_set.videos)} {kind} to train on, {len(held_out.videos)} held out"
    if not train_set.skipped:
        return [count]
    some = ", ".join(train_set.skipped[:3]) + (", ..." if len(train_set.skipped) > 3 else "")
    return [f"{count}; {len(train_set.skipped)} could not be read and are left out: {some}"]
