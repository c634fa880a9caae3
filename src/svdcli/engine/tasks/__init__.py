"""What tells the training tasks apart, one file each: the network, its batches, its loss, its measures.

One loop runs them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Batches
from svdcli.data.footage import Footage
from svdcli.data.reader import by_reason
from svdcli.engine.launch import processes
from svdcli.recipe.recipe import Recipe
from svdcli.recipe.tasks import InterpolationTask, MultiViewTask, TextToImageTask, TextToVideoTask, VAETask


@dataclass(frozen=True)
class Preview:
    """One example of a batch, as the network is fed it."""

    title: str
    """its name, and the ids fed with it"""
    frames: npt.NDArray[np.uint8]
    """(T, H, W, 3)"""


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

    def preview(self, batch: Any, generator: torch.Generator) -> list[Preview]:
        """What `loss`, handed the same, feeds the network: pictures and ids of each example."""

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
    batches = batches_of(recipe)
    if isinstance(recipe.task, TextToImageTask):
        from svdcli.engine.tasks.t2i import TextToImage

        return TextToImage(recipe.task, recipe.data, batches, device, cache)
    if isinstance(recipe.task, TextToVideoTask):
        from svdcli.engine.tasks.t2v import TextToVideo

        return TextToVideo(recipe.task, recipe.data, batches, device, cache)
    if isinstance(recipe.task, InterpolationTask):
        from svdcli.engine.tasks.interp import Interpolation

        return Interpolation(recipe.task, recipe.data, batches, device, cache)
    if isinstance(recipe.task, MultiViewTask):
        from svdcli.engine.tasks.multiview import MultiView

        return MultiView(recipe.task, recipe.data, batches, device, cache)
    from svdcli.engine.tasks.i2v import ImageToVideo

    return ImageToVideo(recipe.task, recipe.data, batches, device, cache)


def batches_of(recipe: Recipe) -> Batches:
    """How the batches of a run follow each other, over all its processes."""
    parts = recipe.run.accumulate * math.prod(processes(recipe.machine))
    return Batches(recipe.run.batch_size, recipe.run.seed, parts)


def data_notes(train_set: Footage, held_out: Footage, kind: str = "videos", left_out: int = 0) -> list[str]:
    """What a person should know of the dataset."""
    notes = [f"{len(train_set.videos)} {kind} to train on, {len(held_out.videos)} held out"]
    skipped = train_set.skipped
    if skipped:
        some = ", ".join(list(skipped)[:3]) + (", ..." if len(skipped) > 3 else "")
        reasons = by_reason(skipped.values())
        notes[0] += f"; {len(skipped)} could not be read and are left out ({reasons}): {some}"
    if left_out:
        notes.append(
            f"{left_out} clips are too short or too slow for task.num_frames at task.fps, and left out"
        )
    return notes
