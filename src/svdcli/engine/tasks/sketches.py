"""A step of each task on paper: its networks on the meta device, and the shapes that go through them.

Weights are not read, nor is the dataset. Where a bundle that the recipe names is on this machine its shapes are
taken from there, else from the recipe and from SVD.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdcli.engine.tasks.parts import as_reference
from svdcli.errors import RecipeError
from svdcli.model import hub
from svdcli.model.bundle import open_bundle
from svdcli.model.discriminator import PatchDiscriminator
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.inflate import grown, video_config
from svdcli.model.text_encoder import build as build_text
from svdcli.model.unet import UNet
from svdcli.model.vae import VAE, VAEConfig
from svdcli.recipe.recipe import Recipe
from svdcli.recipe.tasks import (
    DiffusionTask,
    GivenTask,
    ImageToVideoTask,
    InterpolationTask,
    MultiViewTask,
    TextTask,
    TextToImageTask,
    TextToVideoTask,
    VAETask,
)

VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
}
"""OpenCLIP's ViT-H/14, the image encoder of the published bundles."""
NUM_TOKENS = 77
"""Of a caption."""


@dataclass(frozen=True)
class Part:
    """A network and what a batch asks of it."""

    network: nn.Module
    """on the meta device, with `requires_grad` as the task sets it"""
    run: Callable[[nn.Module], Tensor] | None = None
    """makes the inputs and calls the network; absent: it lies by, as what it made is cached"""


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
    from svdcli.engine.tasks.vae import Reconstruction, freeze_but_trained, new_vae

    task, batch = recipe.task, recipe.run.batch_size
    assert isinstance(task, VAETask)
    vae = new_vae(task, recipe.data.width)
    freeze_but_trained(vae, task)
    side = task.crop // task.downscale

    def run(network: nn.Module) -> Tensor:
        pixels = torch.empty(batch, num_frames, 3, task.crop, task.crop)
        return network(pixels, torch.empty(batch, num_frames, task.latent_channels, side, side))[0]

    pixels = batch * num_frames * 3 * task.crop**2
    network = Reconstruction(vae, PatchDiscriminator() if task.adversarial_weight else None)
    return Sketch(Part(network, run), {}, 4 * pixels, pixels)


def _i2v(recipe: Recipe, num_frames: int) -> Sketch:
    from svdcli.engine.tasks.given import Batch, new_unet
    from svdcli.engine.tasks.i2v import Continuation

    task, data, batch = recipe.task, recipe.data, recipe.run.batch_size
    assert isinstance(task, ImageToVideoTask)
    latents = _Latents(recipe, num_frames)
    unet = new_unet(task, latents.vae.config, data.width)
    mask = None
    if task.motion_mask:
        unet = grown(unet, unet.config.in_channels + 1, unet.config.num_vector_ids)
        mask = torch.empty(batch, 1, *latents.shape[3:])
    encoder = _image_encoder(task)

    def run(network: nn.Module) -> Tensor:
        fps, motion, augment = (torch.empty(batch) for _ in range(3))
        picture = torch.empty(batch, 3, data.height, data.width)
        clip = Batch(latents.empty(), picture, fps, motion, augment, mask=mask)
        condition = torch.empty(batch, *latents.shape[2:])
        return network(latents.empty(), torch.empty(batch), clip, condition, torch.empty(batch, 2))

    def encode(network: nn.Module) -> Tensor:
        assert isinstance(network, VAE)
        return network.encode(torch.empty(batch, 1, 3, data.height, data.width))

    pixels = 3 * data.height * data.width
    return Sketch(
        Part(Continuation(unet, encoder), run),
        {"autoencoder": Part(latents.vae, encode)},
        4 * (latents.numel + batch * pixels),
        2 * latents.numel + batch * num_frames * pixels,
    )


def _multiview(recipe: Recipe, num_frames: int) -> Sketch:
    from svdcli.engine.tasks.multiview import Batch, new_network

    task, data, batch = recipe.task, recipe.data, recipe.run.batch_size
    assert isinstance(task, MultiViewTask)
    latents = _Latents(recipe, num_frames)
    fresh = task.model_copy(update={"start": None, "image_encoder": None})
    network = new_network(fresh, latents.vae.config, data)
    network.image_encoder = _image_encoder(task)
    shape = {"none": None, "elevation": (batch, 1), "path": (batch, num_frames, 2)}[task.pose]

    def run(network: nn.Module) -> Tensor:
        views = torch.empty(batch, 3, data.height, data.width)
        orbits = Batch(latents.empty(), views, torch.empty(batch), shape and torch.empty(shape))
        condition = torch.empty(batch, *latents.shape[2:])
        return network(latents.empty(), torch.empty(batch), orbits, condition, torch.empty(batch, 2))

    def encode(network: nn.Module) -> Tensor:
        assert isinstance(network, VAE)
        return network.encode(torch.empty(batch, 1, 3, data.height, data.width))

    pixels = 3 * data.height * data.width
    return Sketch(
        Part(network, run),
        {"autoencoder": Part(latents.vae, encode)},
        4 * (latents.numel + batch * pixels),
        2 * latents.numel + batch * pixels,
    )


def _interp(recipe: Recipe, num_frames: int) -> Sketch:
    from svdcli.engine.tasks.given import Batch
    from svdcli.engine.tasks.interp import new_network

    task, data, batch = recipe.task, recipe.data, recipe.run.batch_size
    assert isinstance(task, InterpolationTask)
    latents = _Latents(recipe, num_frames)
    network = new_network(
        task.model_copy(update={"start": None, "image_encoder": None}), latents.vae.config, data
    )
    network.image_encoder = _image_encoder(task)

    def run(network: nn.Module) -> Tensor:
        fps, motion, augment = (torch.empty(batch) for _ in range(3))
        ends = torch.empty(batch, 2, 3, data.height, data.width)
        clip = Batch(latents.empty(), ends, fps, motion, augment)
        noise = torch.empty(batch, 2, *latents.shape[2:])
        return network(latents.empty(), torch.empty(batch), clip, noise, torch.empty(batch, 2))

    pixels = 3 * data.height * data.width
    return Sketch(
        Part(network, run),
        {"autoencoder": Part(latents.vae)},
        4 * (latents.numel + batch * 2 * pixels),
        2 * latents.numel + batch * num_frames * pixels,
    )


def _text(recipe: Recipe, num_frames: int) -> Sketch:
    """Of images, where they have one frame and no time."""
    from svdcli.engine.tasks.t2i import freeze_but_trained
    from svdcli.engine.tasks.t2v import NUM_IDS, id_width
    from svdcli.engine.tasks.text import Painter, TextBatch, new_image_unet

    task, batch = recipe.task, recipe.run.batch_size
    assert isinstance(task, TextTask)
    latents = _Latents(recipe, num_frames)
    unet = new_image_unet(task, latents.vae.config, recipe.data.width)
    if isinstance(task, TextToVideoTask):
        with torch.device("meta"):
            unet = UNet(video_config(unet.config, num_frames, NUM_IDS, id_width(task)))
    elif isinstance(task, TextToImageTask):
        freeze_but_trained(unet, task)
    num_tokens = NUM_TOKENS if task.text is not None else 1

    def run(network: nn.Module) -> Tensor:
        fps, motion = (None if num_frames == 1 else torch.empty(batch) for _ in range(2))
        clip = TextBatch(latents.empty(), ("",) * batch, fps, motion)
        tokens = torch.empty(batch, num_tokens, task.context_dim)
        return network(latents.empty(), torch.empty(batch), clip, tokens)

    beside = {"autoencoder": Part(latents.vae)}
    if task.text is not None:
        beside["text encoder"] = Part(_text_encoder(task), _run_text(batch))
    pixels = batch * num_frames * 3 * recipe.data.height * recipe.data.width
    return Sketch(Part(Painter(unet), run), beside, 4 * latents.numel, 2 * latents.numel + pixels)


SKETCHES: dict[str, Callable[[Recipe, int], Sketch]] = {
    "vae": _vae, "t2i": _text, "t2v": _text, "i2v": _i2v, "interp": _interp,
    "multiview": _multiview,
}  # fmt: skip
"""By the task's kind."""


class _Latents:
    """Clips in the autoencoder's latents."""

    def __init__(self, recipe: Recipe, num_frames: int) -> None:
        assert isinstance(recipe.task, DiffusionTask)
        self.vae = VAE(vae_config(recipe.task.vae)).requires_grad_(False)
        config, data = self.vae.config, recipe.data
        size = (data.height // config.downscale, data.width // config.downscale)
        self.shape = (recipe.run.batch_size, num_frames, config.latent_channels, *size)
        self.numel = math.prod(self.shape)

    def empty(self) -> Tensor:
        return torch.empty(self.shape)


def vae_config(source: Path) -> VAEConfig:
    """Of the autoencoder that lies there, or else SVD's."""
    file = source / "vae" / "config.json"
    if not file.is_file() and (known := hub.locate(str(source))):
        return VAEConfig.from_dict(open_bundle(known.path).configs["vae"])
    return (
        VAEConfig.from_dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else VAEConfig()
    )


def _bundle_part(bundle: Path | None, name: str) -> Any | None:
    """A part of a bundle, without weights, where it lies at that path and has the part."""
    if bundle is None or not (bundle.is_dir() or hub.locate(str(bundle))):
        return None
    files = open_bundle(as_reference(bundle))
    return files.build(name) if name in files.configs else None


def _image_encoder(task: GivenTask) -> ImageEncoder:
    """As training has it; where the recipe names one that is not here, OpenCLIP's ViT-H at the width of the recipe."""
    from svdcli.engine.tasks.given import new_image_encoder

    found = _bundle_part(task.image_encoder or task.start, "image_encoder")
    published = task.start is not None and str(task.start) in hub.KNOWN
    if found is None and (task.image_encoder is not None or published):
        found = ImageEncoder(VIT_H | {"projection_dim": task.context_dim})
    encoder: ImageEncoder = found or new_image_encoder(task.context_dim)
    return encoder.requires_grad_(task.image_encoder is None)


def _text_encoder(task: TextTask) -> nn.Module:
    """The bundle's, or Stable Diffusion 2.1's at the width of the recipe."""
    found = _bundle_part(task.text, "text_encoder")
    if found is not None:
        return found
    width = task.context_dim
    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": max(1, width // 64)}
    return build_text(shape | {"num_hidden_layers": 23, "vocab_size": 49408, "projection_dim": 512})


def _run_text(batch: int) -> Callable[[nn.Module], Tensor]:
    return lambda network: (
        network(input_ids=torch.zeros(batch, NUM_TOKENS, dtype=torch.long)).last_hidden_state
    )
