"""Parts of a bundle, read and written by the training tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from svdcli.data.motion import MotionCalibration
from svdcli.errors import InputError
from svdcli.io.files import atomic_folder
from svdcli.model import hub
from svdcli.model.bundle import open_bundle, open_part
from svdcli.model.bundle_files import STEMS, BundleFiles
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.inflate import grown
from svdcli.model.mask_latent import MaskLatent
from svdcli.model.saving import compact, part_of, save_bundle
from svdcli.model.settings import Settings
from svdcli.model.text_encoder import TextEncoder
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.vae import VAE, VAEConfig
from svdcli.model.weights import write_weights
from svdcli.recipe.tasks import DiffusionTask, VAETask

Module = TypeVar("Module", bound=nn.Module)
NUM_IDS = 3
"""Vector ids of an image-to-video model: fps, motion bucket, augmentation."""


def vae_bundle(source: Path) -> BundleFiles:
    """What an autoencoder is taken from: a bundle, SD 2.1's own among them, or the run folder of its training.

    Raises InputError where it is neither.
    """
    try:
        if (source / "vae" / "config.json").is_file():
            return open_part(source, "vae")
        is_run = source.is_dir() and not (source / hub.INDEX).is_file()
        files = None if is_run else open_bundle(as_reference(source))
    except InputError:
        if source.is_dir():
            raise
        files = None
    if files is None or "vae" not in files.configs:
        raise InputError(
            f"{source} holds no vae/config.json.",
            "Train the autoencoder first, or give a bundle's name, file or folder; a relative path starts at "
            + str(Path.cwd()),
        )
    return files


def load_vae(source: Path) -> VAE:
    """The autoencoder of a bundle, or of the run folder of its own training.

    That of an image model gets temporal layers that change nothing at first. Raises InputError where there is none or it
    is damaged.
    """
    vae = vae_bundle(source).part("vae", torch.float32)
    assert isinstance(vae, VAE)
    return own(vae)


def save_vae(vae: VAE, run: Path, scaling_factor: float) -> None:
    """Write `vae/` into a run folder, whole or not at all."""
    part = part_of(vae)
    with atomic_folder(run / "vae") as folder:
        write_weights(folder / f"{STEMS['vae']}.safetensors", part.tensors)
        config = part.config | {"scaling_factor": scaling_factor}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def require_same(config: VAEConfig | UNetConfig, task: VAETask | DiffusionTask) -> None:
    """Raise InputError where the recipe shapes a network otherwise than the one that it continues."""
    names = {f.name for f in fields(config)} - {"num_frames"}  # of the UNet: a default, not a shape
    for name in sorted(names & set(type(task).model_fields)):
        recipe, saved = getattr(task, name), getattr(config, name)
        if recipe != saved and not (
            isinstance(saved, int) and recipe == (saved,) * len(task.block_out_channels)
        ):
            raise InputError(
                f"task.{name} is {recipe}, but {task.start} was made with {saved}.", f"Set it to {saved}."
            )
    if isinstance(config, UNetConfig) and isinstance(task, DiffusionTask):
        attends = tuple(kind.startswith("CrossAttn") for kind in config.down_block_types)
        if task.attention_levels != attends or {task.context_dim} != {
            *config.per_level("cross_attention_dim")
        }:
            raise InputError(
                f"task.attention_levels or task.context_dim are not those of {task.start}.",
                f"Set them to {list(attends)} and {config.cross_attention_dim}.",
            )


def as_reference(start: Path) -> Path | str:
    """A bundle's path, or its name, such as svd-xt."""
    return start if start.exists() else str(start)


def load_unet(start: Path) -> UNet:
    """The UNet of a bundle, float32, to be trained on: of images or of video."""
    unet = open_bundle(as_reference(start)).part("unet", torch.float32)
    assert isinstance(unet, UNet)
    return own(unet).train()


def require_image_encoder(bundle: Path, context_dim: int) -> None:
    """Raise InputError unless a bundle has an image encoder of that width. Reads no weights."""
    files = open_bundle(as_reference(bundle))
    width = files.configs.get("image_encoder", {}).get("projection_dim")
    if width != context_dim:
        what = "has no image_encoder/config.json" if width is None else f"makes tokens of width {width}"
        raise InputError(
            f"{files.name} {what}, and task.context_dim is {context_dim}.",
            "Give the image encoder that the model is to be told by as task.image_encoder.",
        )


def load_image_encoder(bundle: Path) -> ImageEncoder:
    """The image encoder of a bundle, float32."""
    encoder = open_bundle(as_reference(bundle)).part("image_encoder", torch.float32)
    assert isinstance(encoder, ImageEncoder)
    return own(encoder)


def load_image_to_video(start: Path, latent_channels: int) -> tuple[UNet, ImageEncoder | None]:
    """UNet and image encoder of a bundle, float32, to be trained on.

    Of a text-to-video bundle the UNet alone, with silent inputs for the frame that it is to continue.
    """
    files, unet = open_bundle(as_reference(start)), load_unet(start)
    if files.task == "t2v":
        return grown(unet, 2 * latent_channels, NUM_IDS).train(), None
    encoder = files.part("image_encoder", torch.float32)
    assert isinstance(encoder, ImageEncoder)
    return unet, own(encoder).train()


def load_interpolation(
    start: Path, latent_channels: int
) -> tuple[UNet, ImageEncoder | None, MaskLatent | None]:
    """UNet, image encoder and learned latent of a bundle, float32, to be trained on.

    The UNet of a text-to-video or image-to-video bundle gets the inputs that it lacks, silent at first.
    """
    files, unet = open_bundle(as_reference(start)), load_unet(start)
    mask = files.part("mask_latent", torch.float32) if "mask_latent" in files.configs else None
    if mask is None:
        if unet.config.in_channels == 2 * latent_channels:
            scale_condition(unet, latent_channels, files.configs["vae"]["scaling_factor"])
        unet = grown(unet, 2 * latent_channels + 1, NUM_IDS).train()
    encoder = None
    if "image_encoder" in files.configs:
        encoder = own(files.part("image_encoder", torch.float32)).train()
    assert isinstance(encoder, ImageEncoder | None) and isinstance(mask, MaskLatent | None)
    return unet, encoder, None if mask is None else own(mask).train()


@torch.no_grad()
def scale_condition(unet: UNet, latent_channels: int, scaling_factor: float) -> None:
    """Make an image-to-video UNet, whose condition latent comes unscaled, take it scaled."""
    unet.conv_in.weight[:, latent_channels : 2 * latent_channels] /= scaling_factor


def save_text_bundle(
    unet: UNet, vae: VAE, text: TextEncoder | None, settings: Settings, folder: Path
) -> None:
    """Write the bundle in full precision, as another stage goes on from it, with the text encoder that it came with."""
    parts = {"unet": part_of(unet), "vae": part_of(vae)}
    if text is not None:
        parts["text_encoder"] = part_of(text.clip)
    save_bundle(parts, folder, settings, tokenizer=text.folder if text is not None else None)


def save_video_bundle(
    modules: Mapping[str, nn.Module],
    calibration: MotionCalibration | None,
    settings: Settings,
    folder: Path,
    small: bool = False,
) -> None:
    """Write the bundle of those parts in half precision, with the calibration that its motion buckets were trained by.

    `small` puts some of its weights in 8 bits, see `compact`.
    """
    parts = {name: part_of(module, torch.float16) for name, module in modules.items()}
    if small:
        parts = {name: compact(part) for name, part in parts.items()}
    save_bundle(parts, folder, replace(settings, motion_calibration=calibration.knots if calibration else ()))


def own(module: Module) -> Module:
    """The module with its weights copied out of the mapped file, so that they can be written to."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module
