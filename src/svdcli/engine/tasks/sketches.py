"""A step of each task on paper: its networks on the meta device, and the shapes that go through them.

Weights are not read, nor is the dataset. Where a bundle that the recipe names is on this machine its shapes are
taken from there, else from the recipe and from SVD.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdcli.errors import RecipeError
from svdcli.model.vae import VAE, VAEConfig
from svdcli.recipe.recipe import ImageToVideoTask, Recipe, VAETask


@dataclass(frozen=True)
class Part:
    """A network and what a batch asks of it."""

    network: nn.Module
    """on the meta device, with `requires_grad` as the task sets it"""
    run: Callable[[nn.Module], Tensor]
    """makes the inputs and calls the network"""


@dataclass(frozen=True)
class Sketch:
    """One batch of a task."""

    trained: Part
    beside: dict[str, Part]
    """what runs before it without gradients, by name"""
    batch_bytes: int
    """of the batch in memory"""
    bytes_read: int
    """from the caches on disk, for the batch"""


def sketch(recipe: Recipe, num_frames: int) -> Sketch:
    """A batch of clips of that many frames. Raises RecipeError for a task that cannot be put on paper yet."""
    kind = recipe.task.kind
    if kind not in SKETCHES:
        raise RecipeError(
            f"There is no plan for tasks of kind {kind} yet.", f"Known are {', '.join(SKETCHES)}."
        )
    with torch.device("meta"):
        return SKETCHES[kind](recipe, num_frames)


def clip_lengths(recipe: Recipe) -> tuple[int, ...]:
    """Clip lengths of the recipe's steps, each as often as it is drawn."""
    lengths = getattr(recipe.task, "num_frames", 1)
    return lengths if isinstance(lengths, tuple) else (lengths,)


def _vae(recipe: Recipe, num_frames: int) -> Sketch:
    from svdcli.engine.tasks.vae import Reconstruction

    task, batch = recipe.task, recipe.run.batch_size
    assert isinstance(task, VAETask)
    vae = VAE(
        VAEConfig(
            down_block_types=("DownEncoderBlock2D",) * len(task.block_out_channels),
            block_out_channels=task.block_out_channels,
            layers_per_block=task.layers_per_block,
            latent_channels=task.latent_channels,
            norm_num_groups=task.norm_num_groups,
        )
    )
    if task.train == "decoder":
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    side = task.crop // task.downscale

    def run(network: nn.Module) -> Tensor:
        pixels = torch.empty(batch, num_frames, 3, task.crop, task.crop)
        return network(pixels, torch.empty(batch, num_frames, task.latent_channels, side, side))[0]

    pixels = batch * num_frames * 3 * task.crop**2
    return Sketch(Part(Reconstruction(vae), run), {}, 4 * pixels, pixels)


def _i2v(recipe: Recipe, num_frames: int) -> Sketch:
    from svdcli.engine.tasks.i2v import Batch, Continuation, new_networks

    task, data, batch = recipe.task, recipe.data, recipe.run.batch_size
    assert isinstance(task, ImageToVideoTask)
    vae = VAE(vae_config(task.vae))
    networks = _bundle_networks(task) or new_networks(task, vae.config, data.width)
    channels, scale = vae.config.latent_channels, vae.config.downscale
    size = (data.height // scale, data.width // scale)

    def run(network: nn.Module) -> Tensor:
        ones = (torch.empty(batch) for _ in range(3))
        x = torch.empty(batch, num_frames, channels, *size)
        clip = Batch(x, torch.empty(batch, 3, data.height, data.width), *ones)
        return network(
            x, torch.empty(batch), clip, torch.empty(batch, channels, *size), torch.empty(batch, 2)
        )

    def encode(network: nn.Module) -> Tensor:
        assert isinstance(network, VAE)
        return network.encode(torch.empty(batch, 1, 3, data.height, data.width))

    latents, pixels = channels * size[0] * size[1], 3 * data.height * data.width
    return Sketch(
        Part(Continuation(*networks), run),
        {"autoencoder": Part(vae.requires_grad_(False), encode)},
        4 * batch * (num_frames * latents + pixels),
        batch * num_frames * (2 * latents + pixels),
    )


SKETCHES: dict[str, Callable[[Recipe, int], Sketch]] = {"vae": _vae, "i2v": _i2v}
"""By the task's kind."""


def vae_config(source: Path) -> VAEConfig:
    """Of the autoencoder that lies there, or else SVD's."""
    file = source / "vae" / "config.json"
    return (
        VAEConfig.from_dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else VAEConfig()
    )


def _bundle_networks(task: ImageToVideoTask) -> tuple[Any, Any] | None:
    """UNet and image encoder as the bundle that is to be continued has them, where it is on this machine."""
    from svdcli.model.bundle import open_bundle

    if task.start is None or not task.start.exists():
        return None
    files = open_bundle(task.start)
    return files.build("unet"), files.build("image_encoder")
