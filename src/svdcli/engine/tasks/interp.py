"""Interpolation training (SVD paper §4.4, app. D.5): given the first and the last frame, denoise the clip between them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Batches
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss
from svdcli.engine.generate import Sampling
from svdcli.engine.interpolate import condition_pairs, embed_pictures, pair_motion_score
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.tasks import Preview
from svdcli.engine.tasks.given import Batch, GivenFrames, choose_image_encoder, new_unet
from svdcli.engine.tasks.parts import NUM_IDS, load_interpolation, require_same
from svdcli.model.conditioning import Conditioning, Ends, condition_on_ends
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.inflate import grown
from svdcli.model.mask_latent import MaskLatent, MaskLatentConfig
from svdcli.model.unet import UNet
from svdcli.model.vae import VAEConfig
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import InterpolationTask


class Between(nn.Module):
    """UNet, image encoder and learned latent as one forward pass, so that a wrapped module sees the whole of training."""

    def __init__(self, unet: UNet, image_encoder: ImageEncoder, mask_latent: MaskLatent) -> None:
        super().__init__()
        self.unet, self.image_encoder, self.mask_latent = unet, image_encoder, mask_latent

    def forward(self, x: Tensor, c_noise: Tensor, clip: Batch, noise: Tensor, keep: Tensor) -> Tensor:
        """Noisy latents (B, T, c, h, w) times c_in, c_noise (B,) -> F.

        noise: (B, 2, c, h, w), of the augmentation. keep: (B, 2), see `keep_mask`.
        """
        embeddings = embed_pictures(self.image_encoder, clip.picture)
        ends = Ends(embeddings, clip.latents[:, [0, -1]], noise, clip.fps, clip.motion_bucket, clip.augment)
        return condition_on_ends(ends, self.mask_latent, x.shape[1], keep).bind(self.unet)(x, c_noise)


class Interpolation(GivenFrames):
    """See `Task`."""

    task: InterpolationTask

    def __init__(
        self, task: InterpolationTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        super().__init__(task, data, batches, device, cache)
        self.evaluation_fps = self.usual_fps()
        self.network = new_network(task, self.vae.config, data)

    def batch(self, seed: list[int]) -> Batch:
        """Clips of one of the recipe's lengths, each with its own rate, augmentation, and motion of its ends."""
        rng = np.random.default_rng(seed)
        drawn = self.draw(seed, rng)
        ends = np.stack([e.pixels[[0, -1]] for e in drawn.examples])
        buckets = [self.bucket(e.pixels, e.window.fps) for e in drawn.examples]
        return Batch(
            drawn.latents,
            to_pixels(ends).to(self.device),
            drawn.fps,
            torch.tensor(buckets, device=self.device),
            self.draw_augment(rng, len(drawn.examples)),
            drawn.examples,
        )

    def bucket(self, frames: npt.NDArray[np.uint8], fps: float) -> float:
        """Of the first and the last frame alone: the others are not known when a clip is sampled."""
        return self.calibration.bucket(pair_motion_score(frames[0], frames[-1], len(frames), fps))

    def preview(self, batch: Batch, generator: torch.Generator) -> list[Preview]:
        """Each clip; of its frames the first and the last are given."""
        sigma, keep = self.levels(batch, generator)
        return [
            Preview(self.title(batch, i, sigma, keep), example.pixels)
            for i, example in enumerate(batch.examples)
        ]

    def losses(
        self, network: nn.Module, batch: Batch, sigma: Tensor, keep: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each clip (B,) at the noise levels (B,), over all frames.

        The noise of the given frames is its own, not the target's.
        """
        shape = batch.latents.shape
        augmentation = torch.randn((shape[0], 2, *shape[2:]), generator=generator).to(self.device)
        denoiser = Denoiser(lambda x, c_noise: network(x, c_noise, batch, augmentation, keep))
        noise = torch.randn(shape, generator=generator).to(self.device)
        return denoising_loss(denoiser, batch.latents, sigma.to(self.device), noise, self.task.huber)

    def given(self, pixels: Tensor) -> Tensor:
        return pixels[:, [0, -1]]

    def parts(self, network: Any) -> dict[str, nn.Module]:
        return super().parts(network) | {"mask_latent": network.mask_latent}

    def sampling(self, frames: npt.NDArray[np.uint8], fps: float) -> Sampling:
        return replace(super().sampling(frames, fps), num_frames=len(frames))

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        pair = to_pixels(frames[[0, -1]])[None]
        return condition_pairs(residence, pair, [sampling.motion_bucket], [index], sampling)


def new_network(task: InterpolationTask, vae: VAEConfig, data: Data) -> Between:
    """From the recipe's start, or from scratch; where that shape allows, and with `blend`, it begins as a cross-fade."""
    encoder, mask = None, None
    if task.start is not None:
        unet, encoder, mask = load_interpolation(task.start, vae.latent_channels)
        require_same(unet.config, task)
    else:
        unet = new_unet(task, vae, data.width, condition_scale=1.0)
        unet = grown(unet, 2 * vae.latent_channels + 1, NUM_IDS)
    unet.config = replace(unet.config, num_frames=max(task.num_frames))
    if mask is None:
        size = data.height // vae.downscale, data.width // vae.downscale
        mask = MaskLatent(MaskLatentConfig(vae.latent_channels, *size, task.blend))
    return Between(unet, choose_image_encoder(task, encoder), mask)
