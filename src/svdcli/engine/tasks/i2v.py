"""Image-to-video training (SVD paper §4.2, app. D.4): given a frame, denoise the clip that it begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Batches
from svdcli.data.motion import moving_area
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss
from svdcli.engine.generate import Sampling, condition, to_frames
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.tasks import Preview
from svdcli.engine.tasks.given import Batch, GivenFrames, choose_image_encoder, new_unet
from svdcli.engine.tasks.parts import NUM_IDS, load_image_to_video, require_same
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_image
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.inflate import grown
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import ImageToVideoTask


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
        kept = keep[:, 1, None, None, None]
        mask = None if clip.mask is None else clip.mask * kept
        ids = clip.fps, clip.motion_bucket, clip.augment
        conditioning = condition_on_image(embedding, latent * kept, *ids, mask)
        return conditioning.bind(self.unet)(x, c_noise)


class ImageToVideo(GivenFrames):
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
        if task.motion_mask and not unet.config.takes_mask:
            unet = grown(unet, unet.config.in_channels + 1, NUM_IDS).train()
        self.takes_mask = unet.config.takes_mask
        self.network = Continuation(unet, choose_image_encoder(task, image_encoder))

    def batch(self, seed: list[int]) -> Batch:
        """Clips of one of the recipe's lengths, each with its own rate, motion bucket and augmentation."""
        rng = np.random.default_rng(seed)
        drawn = self.draw(seed, rng)
        batch = Batch(
            drawn.latents,
            to_pixels(np.stack([e.pixels[0] for e in drawn.examples])).to(self.device),
            drawn.fps,
            drawn.motion_bucket,
            self.draw_augment(rng, len(drawn.examples)),
            drawn.examples,
        )
        return self.masked(self.led(batch, rng), rng)

    def led(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """With clean leading frames, as often as the recipe says."""
        if self.task.leading is None:
            return batch
        shares = np.array(self.task.leading) / sum(self.task.leading)
        counts = rng.choice(len(shares), len(batch.fps), p=shares)
        return replace(batch, leads=torch.from_numpy(counts).to(self.device))

    def masked(self, batch: Batch, rng: np.random.Generator | None = None) -> Batch:
        """With the mask of where each clip may move, for a network that takes one: all of it, or, as often as the recipe says,
        a rough shape around what moves, outside of which the clip is made to stand still.
        """
        if not self.takes_mask:
            return batch
        mask = torch.ones_like(batch.latents[:, 0, :1])
        height, width = mask.shape[-2:]
        for i, example in enumerate(batch.examples):
            if rng is not None and rng.random() < self.task.motion_mask:
                mask[i, 0] = torch.from_numpy(moving_area(example.pixels, (height, width)))
        shape = mask[:, None]
        still = batch.latents[:, :1]
        return replace(batch, latents=still + (batch.latents - still) * shape, mask=mask)

    def preview(self, batch: Batch, generator: torch.Generator) -> list[Preview]:
        """Each clip behind the noised frame that its condition latent is made of."""
        sigma, keep = self.levels(batch, generator)
        noise = torch.randn(batch.picture.shape, generator=generator).to(self.device)
        pictures = to_frames(augment_picture(batch.picture, noise, batch.augment))
        return [
            Preview(self.title(batch, i, sigma, keep), np.concatenate([pictures[i][None], example.pixels]))
            for i, example in enumerate(batch.examples)
        ]

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
        sigma = sigma.to(self.device)
        return denoising_loss(denoiser, batch.latents, sigma, noise, self.task.huber, batch.leads)

    def given(self, pixels: Tensor) -> Tensor:
        return pixels[:, 0]

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        return self.masked(super().held_out_clip(index, frames, fps))

    def settings(self) -> Settings:
        return replace(super().settings(), leading=self.task.most_leading)

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        return condition(residence, to_pixels(frames[:1]), [index], sampling)
