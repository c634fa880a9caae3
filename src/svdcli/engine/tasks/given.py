"""What the tasks share that are given frames of a clip: a step's draws, its loss, the networks, the bundle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Example
from svdcli.data.motion import MotionCalibration
from svdcli.diffusion.loss import draw_sigma
from svdcli.engine.latents import to_pixels
from svdcli.engine.tasks.clips import ClipTask, place_of
from svdcli.engine.tasks.latents import LatentTask
from svdcli.engine.tasks.parts import NUM_IDS, load_image_encoder, save_video_bundle
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.unet_start import can_start_still, start_still
from svdcli.model.vae import VAEConfig
from svdcli.recipe.tasks import GivenFramesTask, GivenTask, MultiViewTask

EVALUATION_AUGMENT = 0.02


@dataclass(frozen=True)
class Batch:
    """Clips of one length and what is known of each."""

    latents: Tensor
    """(B, T, c, h, w), scaled"""
    picture: Tensor
    """the given frame, (B, 3, H, W) in [-1, 1], or the first and the last one, (B, 2, 3, H, W)"""
    fps: Tensor
    motion_bucket: Tensor
    augment: Tensor
    """σ of the noise that the given frames get, (B,)"""
    examples: tuple[Example, ...] = ()
    """where the clips come from"""
    leads: Tensor | None = None
    """how many first frames of each clip are given clean, (B,)"""
    mask: Tensor | None = None
    """where each clip may move, (B, 1, h, w)"""


class Given(LatentTask):
    """See `LatentTask`. What follows says what a network loses on a batch."""

    task: GivenTask
    network: Any
    """with `unet` and `image_encoder`"""

    def losses(
        self, network: nn.Module, batch: Any, sigma: Tensor, keep: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each clip (B,) at the noise levels (B,); `keep` as of `keep_mask`."""
        raise NotImplementedError

    def loss(
        self, network: nn.Module, batch: Any, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma, keep = self.levels(batch, generator)
        losses = self.losses(network, batch, sigma, keep, generator)
        figures = {"sigma": sigma.mean().item(), "num_frames": float(batch.latents.shape[1])}
        return losses.mean(), figures | (self.examples.figures() if self.examples else {})

    def levels(self, batch: Any, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """σ (B,) and what is kept of the condition (B, 2): the first that a step draws."""
        sigma = draw_sigma(generator, len(batch.augment), self.task.p_mean, self.task.p_std)
        keep = keep_mask(torch.rand(len(batch.augment), generator=generator), self.task)
        return sigma, keep.to(self.device)

    def draw_augment(self, rng: np.random.Generator, count: int) -> Tensor:
        """σ of the noise that each clip's given frames get, (B,)."""
        augment = np.exp(rng.normal(self.task.augment_mean, self.task.augment_std, count))
        return torch.tensor(augment, dtype=torch.float32, device=self.device)

    def held_out_losses(
        self, network: nn.Module, clip: Any, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """With all of the conditioning."""
        return self.losses(network, clip, sigma, torch.ones(1, 2, device=self.device), generator)

    def parts(self, network: Any) -> dict[str, nn.Module]:
        return super().parts(network) | {"image_encoder": network.image_encoder}

    def save(
        self, network: Any, settings: Settings, calibration: MotionCalibration | None, run: Path
    ) -> None:
        """The bundle of the averaged weights, in half precision, in `bundle/` of the run's folder."""
        small = self.task.export == "compact"
        save_video_bundle(self.parts(network), calibration, settings, run / "bundle", small)


class GivenFrames(Given, ClipTask):
    """See `Given`: of clips."""

    task: GivenFramesTask

    def given(self, pixels: Tensor) -> Tensor:
        """Of clips (B, T, 3, H, W) what is given: `Batch.picture`."""
        raise NotImplementedError

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        pixels = to_pixels(frames)[None].to(self.device)
        bucket = self.bucket(frames, fps)
        fed, moved, noised = (
            torch.tensor([v], device=self.device) for v in (fps, bucket, EVALUATION_AUGMENT)
        )
        return Batch(self.encoded(pixels), self.given(pixels), fed, moved, noised)

    def title(self, batch: Batch, index: int, sigma: Tensor, keep: Tensor) -> str:
        """Of a clip of a batch, for a person: its name and ids, its noise, and what is dropped of its condition."""
        example = batch.examples[index]
        ids = f"fps id {batch.fps[index] - 1:.3g}, motion bucket {batch.motion_bucket[index]:.0f}"
        noised = f"sigma of the condition {batch.augment[index]:.3f}, sigma {sigma[index]:.3g}"
        parts = zip(("embedding", "latent"), keep[index].tolist(), strict=True)
        dropped = [name for name, kept in parts if not kept]
        gone = f", without {' and '.join(dropped)}" if dropped else ""
        return f"{example.window.video.name}: {ids}, {noised}{gone}; {place_of(example)}"

    def settings(self) -> Settings:
        num_frames = self.network.unet.config.num_frames
        settings = self.suggested(self.task.kind, self.task, num_frames, self.usual_fps())  # type: ignore[attr-defined]
        return replace(settings, carry_detail=self.task.carry_detail)

    def export(self, network: Any, folder: Path, recipe_text: str) -> None:
        self.save(network, replace(self.settings(), recipe=recipe_text), self.calibration, folder)


def keep_mask(share: Tensor, task: GivenTask) -> Tensor:
    """Uniform draws (B,) in [0, 1) -> (B, 2): 1 or 0 for each clip's embedding and condition latent."""
    latent = task.drop_both + task.drop_latent
    no_embedding = (share < task.drop_both) | ((share >= latent) & (share < latent + task.drop_embedding))
    return torch.stack([~no_embedding, share >= latent], dim=1).float()


def new_unet(
    task: GivenFramesTask | MultiViewTask, vae: VAEConfig, width: int, condition_scale: float | None = None
) -> UNet:
    """A UNet from scratch, as the recipe shapes it; still at first where that shape allows.

    condition_scale: what scales the condition latents, which come unscaled unless said otherwise.
    """
    latent_channels, attends = vae.latent_channels, task.attention_levels
    id_width = task.block_out_channels[0]
    unet = UNet(
        UNetConfig(
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(f"{'CrossAttn' * a}DownBlockSpatioTemporal" for a in attends),
            up_block_types=tuple(f"{'CrossAttn' * a}UpBlockSpatioTemporal" for a in reversed(attends)),
            block_out_channels=task.block_out_channels,
            norm_num_groups=task.norm_num_groups,
            addition_time_embed_dim=id_width,
            projection_class_embeddings_input_dim=NUM_IDS * id_width,
            layers_per_block=task.layers_per_block,
            cross_attention_dim=task.context_dim,
            num_attention_heads=task.num_attention_heads,
            num_frames=max(task.num_frames),
            sample_size=width // 8,
        )
    )
    if can_start_still(unet):
        start_still(unet, vae.scaling_factor if condition_scale is None else condition_scale)
    else:
        unet.reset()
    return unet


def choose_image_encoder(task: GivenTask, of_start: ImageEncoder | None) -> ImageEncoder:
    """The one that the recipe names, frozen, else that of the start, else a new one."""
    if task.image_encoder is not None:
        return load_image_encoder(task.image_encoder).requires_grad_(False)
    return of_start or new_image_encoder(task.context_dim)


def new_image_encoder(width: int) -> ImageEncoder:
    """A small image encoder from scratch, that trains with the UNet."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ImageEncoder(shape | {"image_size": 224, "patch_size": 32, "projection_dim": width})
