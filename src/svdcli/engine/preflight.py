"""What a user can get wrong in a training run and what shows before it starts. Quick: decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from svdcli.data.dataset import count_videos
from svdcli.diffusion.guidance import parse_guidance
from svdcli.engine.launch import check_machine, is_first
from svdcli.engine.loggers import require_loggers
from svdcli.engine.state import CHECKPOINT, saved_run
from svdcli.engine.tasks.orbits import count_orbits
from svdcli.engine.tasks.parts import as_reference, require_image_encoder, vae_bundle
from svdcli.engine.tasks.text import require_text
from svdcli.io.files import check_writable
from svdcli.io.lock import require_free
from svdcli.model.bundle import open_bundle
from svdcli.model.bundle_files import BundleFiles
from svdcli.model.perceptual import perceptual_weights
from svdcli.recipe.recipe import Recipe
from svdcli.recipe.resume import resume_recipe
from svdcli.recipe.tasks import (
    DiffusionTask,
    GivenTask,
    ImageToVideoTask,
    InterpolationTask,
    MultiViewTask,
    TextTask,
    TextToImageTask,
    TextToVideoTask,
)

STARTS: dict[type, tuple[str, ...]] = {
    TextToImageTask: ("image",),
    TextToVideoTask: ("image", "t2v"),
    ImageToVideoTask: ("t2v", "i2v"),
    InterpolationTask: ("t2v", "i2v", "interp"),
    MultiViewTask: ("image", "t2v", "i2v", "multiview"),
}
"""Which bundles a task can go on from; with an adapter only those of its own kind, as new inputs would stay silent."""


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

    Looks at the machine, the run folder, who else trains there and its checkpoint, the dataset, the autoencoder, the bundle.
    """
    folder = recipe.run.folder
    saved, changes = saved_run(folder), list[str]()
    if saved is not None:
        recipe, changes = resume_recipe(saved[1], recipe)
    num_videos, num_held_out = check_surroundings(recipe)
    task = recipe.task
    if isinstance(task, DiffusionTask):
        _check_diffusion(task)
        if task.start is not None:
            require_start(recipe, open_bundle(as_reference(task.start)))
    else:
        if task.start is not None:
            vae_bundle(task.start)
        if task.perceptual_weight:
            perceptual_weights()
    check_writable(folder / CHECKPOINT, parents=True)
    if is_first():
        require_free(folder)
    return Start(recipe, saved[0] if saved else 0, num_videos, num_held_out, tuple(changes))


def check_surroundings(recipe: Recipe) -> tuple[int, int]:
    """-> the number of videos to train on and held out, where devices, loggers and dataset are here.

    Needs no weights and writes nothing.
    """
    check_machine(recipe.machine)
    require_loggers(recipe.run.log)
    if isinstance(recipe.task, MultiViewTask):
        return count_orbits(recipe.data)
    return count_videos(recipe.data)


def require_start(recipe: Recipe, files: BundleFiles) -> None:
    """Raise InputError unless the recipe can go on from that bundle."""
    assert isinstance(recipe.task, DiffusionTask)
    starts = STARTS[type(recipe.task)] if recipe.adapter is None else (recipe.task.kind,)
    if files.task not in starts:
        files.require_task(starts[-1])


def _check_diffusion(task: DiffusionTask) -> None:
    """Raise InputError where the autoencoder, the image encoder or the text encoder of a task is not what it can use."""
    vae_bundle(task.vae)
    parse_guidance(task.guidance, max(getattr(task, "num_frames", (1,))))
    if isinstance(task, GivenTask) and task.image_encoder is not None:
        require_image_encoder(task.image_encoder, task.context_dim)
    if isinstance(task, TextTask) and task.text is not None:
        require_text(as_reference(task.text), task.context_dim)
