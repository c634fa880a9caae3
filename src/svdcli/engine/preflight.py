"""What a user can get wrong in a training run and what shows before it starts. Quick: decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svdcli.data.dataset import count_videos
from svdcli.diffusion.guidance import parse_guidance
from svdcli.engine.launch import check_machine
from svdcli.engine.state import CHECKPOINT, saved_run
from svdcli.engine.tasks.parts import require_vae
from svdcli.io.files import check_writable
from svdcli.model.bundle import open_bundle
from svdcli.model.perceptual import perceptual_weights
from svdcli.recipe.recipe import ImageToVideoTask, Recipe, resume_recipe


@dataclass(frozen=True)
class Start:
    """Where a run goes on from."""

    recipe: Recipe
    """resolved with the one that the run began with"""
    step: int
    """steps done before"""
    num_videos: int
    """to train on"""
    num_held_out: int
    changes: tuple[str, ...] = ()
    """sentences on what the recipe changes in a run that began otherwise"""


def check(recipe: Recipe) -> Start:
    """-> where the run goes on from, or the SvdError that it would meet.

    Looks at the machine, the run folder and its checkpoint, the dataset, the autoencoder, the bundle.
    """
    folder = recipe.run.folder
    saved, changes = saved_run(folder), list[str]()
    if saved is not None:
        recipe, changes = resume_recipe(saved[1], recipe)
    check_machine(recipe.machine)
    num_videos, num_held_out = count_videos(recipe.data)
    task = recipe.task
    if isinstance(task, ImageToVideoTask):
        require_vae(task.vae)
        parse_guidance(task.guidance, max(task.num_frames))
        if task.start is not None:
            open_bundle(_as_path(task.start)).require_task("i2v")
    else:
        if task.start is not None:
            require_vae(task.start)
        if task.perceptual_weight:
            perceptual_weights()
    check_writable(folder / CHECKPOINT, parents=True)
    return Start(recipe, saved[0] if saved else 0, num_videos, num_held_out, tuple(changes))


def _as_path(start: Path) -> Path | str:
    """A bundle's path, or its name, such as svd-xt."""
    return start if start.exists() else str(start)
