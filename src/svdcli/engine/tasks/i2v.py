"""Image-to-video training (SVD paper §4.2, app. D.4): given a frame, denoise the clip that it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Batches, Example
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma
from svdcli.engine.generate import Sampling, condition, to_frames
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.tasks import Preview
from svdcli.engine.tasks.clips import ClipTask, place_of
from svdcli.engine.tasks.parts import NUM_IDS, load_image_to_video, require_same, save_image_to_video
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_image
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.unet_start import can_start_still, start_still
from svdcli.model.vae import VAEConfig
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import ImageToVideoTask

EVALUATION_AUGMENT = 0.02


class Continuation(nn.Module):
    """UNet and image encoder as one forward pass, so that a wrapped module sees the whole of training."""

    def __init__(self, unet: UNet, image_encoder: ImageEncoder) -> None:
        super().__init__()
        self.unet, self.image_encoder = unet, image_encoder

    def forward(self, x: Tensor, c_noise: Tensor, clip: Batch, latent: Tensor, keep: Tensor) -> Tensor:
        """Noisy latents (B, T, c, h, w) times c_in, c_noise (B,) -> F.

        latent: (B, c, h, w), that of the condition frame. keep: (B, 2), see `keep_mask`.
        """
        embedding = self.image_encoder(clip.picture) * keep[:, :1]
        latent = latent * keep[:, 1, None, None, None]
        conditioning = condition_on_image(embedding, latent, clip.fps, clip.motion_bucket, clip.augment)
        return conditioning.bind(self.unet)(x, c_noise)


@dataclass(frozen=True)
class Batch:
    """Clips of one length and what is known of each."""

    latents: Tensor
    """(B, T, c, h, w), scaled"""
    picture: Tensor
    """the first frame, (B, 3, H, W) in [-1, 1]"""
    fps: Tensor
    motion_bucket: Tensor
    augment: Tensor
    """σ of the noise that the condition frame gets, (B,)"""
    examples: tuple[Example, ...] = ()
    """where the clips come from"""


class ImageToVideo(ClipTask):
    """See `Task`."""

    task: ImageToVideoTask

    def __init__(
        self, task: ImageToVideoTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        super().__init__(task, data, batches, device, cache)
        if task.start is not None:
            unet, image_encoder = load_image_to_video(task.start, self.vae.config.latent_channels)
            require_same(unet.config, task)
        else:
            unet, image_encoder = new_unet(task, self.vae.config, data.width), None
        self.network = Continuation(unet, image_encoder or new_image_encoder(task.context_dim))

    def batch(self, seed: list[int]) -> Batch:
        """Clips of one of the recipe's lengths, each with its own rate, motion bucket and augmentation."""
        rng = np.random.default_rng(seed)
        drawn = self.draw(seed, rng)
        augment = np.exp(rng.normal(self.task.augment_mean, self.task.augment_std, len(drawn.examples)))
        return Batch(
            drawn.latents,
            to_pixels(np.stack([e.pixels[0] for e in drawn.examples])).to(self.device),
            drawn.fps,
            drawn.motion_bucket,
            torch.tensor(augment, dtype=torch.float32, device=self.device),
            drawn.examples,
        )

    def loss(
        self, network: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma, keep = self._levels(batch, generator)
        losses = self.losses(network, batch, sigma, keep, generator)
        figures = {"sigma": sigma.mean().item(), "num_frames": float(batch.latents.shape[1])}
        return losses.mean(), figures | self.examples.figures()

    def _levels(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """σ (B,) and what is kept of the condition (B, 2): the first that a step draws."""
        sigma = draw_sigma(generator, len(batch.fps), self.task.p_mean, self.task.p_std)
        keep = keep_mask(torch.rand(len(batch.fps), generator=generator), self.task)
        return sigma, keep.to(self.device)

    def preview(self, batch: Batch, generator: torch.Generator) -> list[Preview]:
        """Each clip behind the noised frame that its condition latent is made of."""
        sigma, keep = self._levels(batch, generator)
        noise = torch.randn(batch.picture.shape, generator=generator).to(self.device)
        pictures = to_frames(augment_picture(batch.picture, noise, batch.augment))
        found = []
        for i, example in enumerate(batch.examples):
            ids = f"fps id {batch.fps[i] - 1:.3g}, motion bucket {batch.motion_bucket[i]:.0f}"
            noised = f"sigma of the condition {batch.augment[i]:.3f}, sigma {sigma[i]:.3g}"
            dropped = [
                n for n, kept in zip(("embedding", "latent"), keep[i].tolist(), strict=True) if not kept
            ]
            gone = f", without {' and '.join(dropped)}" if dropped else ""
            title = f"{example.window.video.name}: {ids}, {noised}{gone}; {place_of(example)}"
            found.append(Preview(title, np.concatenate([pictures[i][None], example.pixels])))
        return found

    def losses(
        self, network: nn.Module, batch: Batch, sigma: Tensor, keep: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each clip (B,) at the noise levels (B,).

        The noise of the condition frame is its own, not the target's.
        """
        with torch.no_grad():
            noise = torch.randn(batch.picture.shape, generator=generator)
            latent = self.vae.encode(
                augment_picture(batch.picture, noise.to(self.device), batch.augment)[:, None]
            )[:, 0]
        denoiser = Denoiser(lambda x, c_noise: network(x, c_noise, batch, latent, keep))
        noise = torch.randn(batch.latents.shape, generator=generator).to(self.device)
        return denoising_loss(denoiser, batch.latents, sigma.to(self.device), noise, self.task.huber)

    def held_out_losses(
        self, network: nn.Module, clip: Batch, sigma: Tensor, generator: torch.Generator
    ) -> Tensor:
        """With all of the conditioning."""
        return self.losses(network, clip, sigma, torch.ones(1, 2, device=self.device), generator)

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        pixels = to_pixels(frames)[None].to(self.device)
        bucket = self.bucket(frames, fps)
        fed, moved, noised = (
            torch.tensor([v], device=self.device) for v in (fps, bucket, EVALUATION_AUGMENT)
        )
        return Batch(self.encoded(pixels), pixels[:, 0], fed, moved, noised)

    def settings(self) -> Settings:
        return self.suggested("i2v", self.task, self.network.unet.config.num_frames, self.usual_fps())

    def parts(self, network: Continuation) -> dict[str, nn.Module]:
        return super().parts(network) | {"image_encoder": network.image_encoder}

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        return condition(residence, to_pixels(frames[:1]), [index], sampling)

    def export(self, network: Continuation, folder: Path, recipe_text: str) -> None:
        """The bundle of the averaged weights, in half precision, in `bundle/`."""
        parts = network.unet, network.image_encoder, self.vae
        settings = replace(self.settings(), recipe=recipe_text)
        small = self.task.export == "compact"
        save_image_to_video(*parts, self.calibration, settings, folder / "bundle", small)


def keep_mask(share: Tensor, task: ImageToVideoTask) -> Tensor:
    """Uniform draws (B,) in [0, 1) -> (B, 2): 1 or 0 for each clip's embedding and condition latent."""
    latent = task.drop_both + task.drop_latent
    no_embedding = (share < task.drop_both) | ((share >= latent) & (share < latent + task.drop_embedding))
    return torch.stack([~no_embedding, share >= latent], dim=1).float()


def new_unet(task: ImageToVideoTask, vae: VAEConfig, width: int) -> UNet:
    """A UNet from scratch, as the recipe shapes it; still at first where that shape allows."""
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
        start_still(unet, vae.scaling_factor)
    else:
        unet.reset()
    return unet


def new_image_encoder(width: int) -> ImageEncoder:
    """A small image encoder from scratch, that trains with the UNet."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ImageEncoder(shape | {"image_size": 224, "patch_size": 32, "projection_dim": width})
