"""Parts of a bundle, read and written by the training tasks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from svdcli.data.motion import MotionCalibration
from svdcli.errors import InputError
from svdcli.io.files import atomic_path
from svdcli.model.bundle import open_bundle
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.saving import part_of, save_bundle
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet
from svdcli.model.vae import VAE, VAEConfig
from svdcli.model.weights import MappedWeights, check_weights, load_module, write_weights

Module = TypeVar("Module", bound=nn.Module)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_vae(source: Path) -> VAE:
    """The autoencoder of a bundle, or of the run folder of its own training. Raises InputError where there is none."""
    folder = source / "vae"
    if not (folder / "config.json").exists():
        raise InputError(f"{source} holds no vae/config.json", "Train the autoencoder first: svd train recipes/nano/vae.toml")
    vae = VAE(VAEConfig.from_dict(json.loads((folder / "config.json").read_text())))
    weights = MappedWeights(folder / WEIGHTS)
    check_weights(weights, {name: tuple(t.shape) for name, t in vae.state_dict().items()}, f"the vae of {source}")
    load_module(vae, weights, torch.float32)
    return own(vae)


def save_vae(vae: VAE, run: Path, scaling_factor: float) -> None:
    """Write `vae/` into a run folder."""
    folder = run / "vae"
    folder.mkdir(parents=True, exist_ok=True)
    part = part_of(vae)
    with atomic_path(folder / WEIGHTS) as temporary:
        write_weights(temporary, part.tensors)
    with atomic_path(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(part.config | {"scaling_factor": scaling_factor}, indent=2) + "\n")


def load_image_to_video(bundle: Path) -> tuple[UNet, ImageEncoder]:
    """UNet and image encoder of a bundle, float32, to be trained on."""
    files = open_bundle(bundle)
    return own(files.part("unet", torch.float32)).train(), own(files.part("image_encoder", torch.float32)).train()


def save_image_to_video(
    unet: UNet, image_encoder: ImageEncoder, vae: VAE, calibration: MotionCalibration, settings: Settings, folder: Path
) -> None:
    """Write the bundle in half precision, with the calibration that its motion buckets were trained by."""
    knots = tuple((float(bucket), float(score)) for bucket, score in calibration.to_list())
    parts = {"unet": unet, "image_encoder": image_encoder, "vae": vae}
    settings = replace(settings, motion_calibration=knots)
    save_bundle({name: part_of(module, torch.float16) for name, module in parts.items()}, folder, settings)


def own(module: Module) -> Module:
    """The module with its weights copied out of the mapped file, so that they can be written to."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module
