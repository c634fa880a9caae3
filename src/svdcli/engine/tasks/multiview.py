"""Multi-view training (SVD paper §4.5, app. D.6; SV3D paper §3): given a view of an object, denoise the orbit that ends there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.examples import Batches
from svdcli.data.footage import Footage, Video
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss
from svdcli.engine.generate import Sampling, to_frames
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.engine.orbit import FPS, angles_of, condition_orbits, pose_widths, together
from svdcli.engine.tasks import Preview, data_notes
from svdcli.engine.tasks.given import EVALUATION_AUGMENT, Given, choose_image_encoder, new_unet
from svdcli.engine.tasks.orbits import Orbits, open_orbits
from svdcli.engine.tasks.parts import NUM_IDS, as_reference, load_unet, own, require_same
from svdcli.model.bundle import open_bundle
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_view, fps_id
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.inflate import ID_WIDTH, grown, inflate, posed
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet
from svdcli.model.vae import VAEConfig
from svdcli.multiview.cameras import Orbit
from svdcli.recipe.recipe import Data
from svdcli.recipe.tasks import MultiViewTask


@dataclass(frozen=True)
class Batch:
    """Orbits of one number of views and what is known of each."""

    latents: Tensor
    """(B, T, c, h, w), scaled"""
    picture: Tensor
    """the given view, which is the last, (B, 3, H, W) in [-1, 1]"""
    augment: Tensor
    """σ of the noise that it gets, (B,)"""
    angles: Tensor | None
    """of the cameras, as `condition_on_view` takes them"""
    shown: tuple[tuple[Video, tuple[int, ...]], ...] = ()
    """where the orbits come from"""


class Around(nn.Module):
    """UNet and image encoder as one forward pass, so that a wrapped module sees the whole of training."""

    def __init__(self, unet: UNet, image_encoder: ImageEncoder) -> None:
        super().__init__()
        self.unet, self.image_encoder = unet, image_encoder

    def forward(self, x: Tensor, c_noise: Tensor, orbits: Batch, latent: Tensor, keep: Tensor) -> Tensor:
        """Noisy latents (B, T, c, h, w) times c_in, c_noise (B,) -> F.

        latent: (B, c, h, w), that of the noised view. keep: (B, 2), see `keep_mask`.
        """
        embedding = self.image_encoder(orbits.picture) * keep[:, :1]
        latent = latent * keep[:, 1, None, None, None]
        return condition_on_view(embedding, latent, orbits.augment, orbits.angles).bind(self.unet)(x, c_noise)


class MultiView(Given):
    """See `Task`."""

    task: MultiViewTask
    train_set: Orbits
    held_out: Orbits

    def __init__(
        self, task: MultiViewTask, data: Data, batches: Batches, device: torch.device, cache: Path
    ) -> None:
        self.task = task
        super().__init__(task, data, batches, device, cache)
        self.network = new_network(task, self.vae.config, data)

    def open_footage(self, data: Data, cache: Path) -> tuple[Footage, Footage]:
        return open_orbits(data, self.task.num_frames, self.task.backgrounds, self.task.mirror)

    # ---- batches

    def batch(self, seed: list[int]) -> Batch:
        """Orbits of one of the recipe's lengths, each ending at any of its views, a pure function of the seed."""
        rng = np.random.default_rng(seed)
        count, videos = int(rng.choice(self.task.num_frames)), self.train_set.videos
        shown = []
        for _ in range(self.batches.size):
            video = videos[int(rng.integers(len(videos)))]
            turn = self.train_set.turn(video)
            total = len(turn.images)
            last = int(rng.integers(total)) if turn.closed else total - 1
            shown.append((video, turn.numbers(count, last)))
        return self.batch_of(shown, self.draw_augment(rng, len(shown)))

    def batch_of(self, shown: list[tuple[Video, tuple[int, ...]]], augment: Tensor) -> Batch:
        """Those views of those orbits."""
        rows = np.stack([self.latents.take(video, numbers) for video, numbers in shown])
        latents = torch.from_numpy(rows).float().mul_(self.vae.config.scaling_factor).to(self.device)
        given = np.concatenate([self.train_set.take(video, numbers[-1:]) for video, numbers in shown])
        orbits = [self.train_set.orbit(video, numbers) for video, numbers in shown]
        return Batch(latents, to_pixels(given).to(self.device), augment, self.angles(orbits), tuple(shown))

    def angles(self, orbits: list[Orbit]) -> Tensor | None:
        """What the network is told of the cameras."""
        told = together([angles_of(self.task.pose, orbit) for orbit in orbits])
        return None if told is None else told.to(self.device)

    def preview(self, batch: Batch, generator: torch.Generator) -> list[Preview]:
        """Each orbit behind the noised view that its condition latent is made of."""
        sigma, keep = self.levels(batch, generator)
        noise = torch.randn(batch.picture.shape, generator=generator).to(self.device)
        pictures = to_frames(augment_picture(batch.picture, noise, batch.augment))
        rows = []
        for i, (video, numbers) in enumerate(batch.shown):
            parts = zip(("embedding", "latent"), keep[i].tolist(), strict=True)
            dropped = [name for name, kept in parts if not kept]
            elevation = self.train_set.orbit(video, numbers).elevations_deg[-1]
            title = (
                f"{video.name}: elevation {elevation:.1f}, pose {self.task.pose}, sigma of the condition "
                f"{batch.augment[i]:.3f}, sigma {sigma[i]:.3g}{', without ' * bool(dropped)}{' and '.join(dropped)}; "
                f"views {numbers[0]}..{numbers[-1]}"
            )
            rows.append(
                Preview(title, np.concatenate([pictures[i][None], self.train_set.take(video, numbers)]))
            )
        return rows

    # ---- what it loses

    def losses(
        self, network: nn.Module, batch: Batch, sigma: Tensor, keep: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Loss of each orbit (B,) at the noise levels (B,).

        The noise of the given view is its own, not the target's.
        """
        with torch.no_grad():
            noise = torch.randn(batch.picture.shape, generator=generator).to(self.device)
            latent = self.vae.encode(augment_picture(batch.picture, noise, batch.augment)[:, None])[:, 0]
        denoiser = Denoiser(lambda x, c_noise: network(x, c_noise, batch, latent, keep))
        noise = torch.randn(batch.latents.shape, generator=generator).to(self.device)
        return denoising_loss(denoiser, batch.latents, sigma.to(self.device), noise, self.task.huber)

    # ---- held out

    @property
    def judged(self) -> list[Video]:
        """All held-out orbits."""
        return self.held_out.videos

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        return [
            (index, self.held_out.take(video, range(video.num_frames)), FPS)
            for index, video in enumerate(self.judged)
        ]

    def held_out_orbit(self, index: int) -> Orbit:
        """Where the views of one of `evaluated` stand."""
        video = self.judged[index]
        return self.held_out.orbit(video, range(video.num_frames))

    def held_out_clip(self, index: int, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        pixels = to_pixels(frames)[None].to(self.device)
        noised = torch.tensor([EVALUATION_AUGMENT], device=self.device)
        return Batch(self.encoded(pixels), pixels[:, -1], noised, self.angles([self.held_out_orbit(index)]))

    def told(
        self, residence: Residence, index: int, frames: npt.NDArray[np.uint8], sampling: Sampling
    ) -> Conditioning:
        return condition_orbits(
            residence, to_pixels(frames[-1:]), [index], [self.held_out_orbit(index)], self.task.pose, sampling
        )

    def sampling(self, frames: npt.NDArray[np.uint8], fps: float) -> Sampling:
        return replace(super().sampling(frames, fps), num_frames=len(frames))

    # ---- the result

    @cached_property
    def object_share(self) -> float:
        """How large objects are in their views."""
        return self.train_set.object_share()

    def settings(self) -> Settings:
        settings = self.suggested("multiview", self.task, max(self.task.num_frames), FPS)
        return replace(settings, pose=self.task.pose, object_share=self.object_share)

    def notes(self) -> list[str]:
        return data_notes(
            self.train_set, self.held_out, f"orbits, on backgrounds of {self.task.backgrounds} kinds,"
        )

    def export(self, network: Any, folder: Path, recipe_text: str) -> None:
        self.save(network, replace(self.settings(), recipe=recipe_text), None, folder)


# ---- the network


def new_network(task: MultiViewTask, vae: VAEConfig, data: Data) -> Around:
    """From the recipe's start, or from scratch."""
    encoder: ImageEncoder | None = None
    settled: tuple[float, ...] = (fps_id(FPS), Settings.motion_bucket)
    if task.start is None:
        unet = new_unet(task, vae, data.width)
    else:
        files, unet = open_bundle(as_reference(task.start)), load_unet(task.start)
        require_same(unet.config, task)
        settled = (fps_id(files.settings.fps), files.settings.motion_bucket)
        if files.task == "multiview":
            settled = ()
        elif files.task != "i2v":
            unet = continuing(unet, task, vae.latent_channels)
        if "image_encoder" in files.configs:
            part = files.part("image_encoder", torch.float32)
            assert isinstance(part, ImageEncoder)
            encoder = own(part).train()
    unet = posed(unet, pose_widths(task.pose, unet.config.addition_time_embed_dim), settled).train()
    unet.config = replace(unet.config, num_frames=max(task.num_frames))
    return Around(unet, choose_image_encoder(task, encoder))


def continuing(unet: UNet, task: MultiViewTask, latent_channels: int) -> UNet:
    """An image or text-to-video network as an image-to-video one, what is new silent at first."""
    if not unet.config.temporal:
        unet = inflate(unet, max(task.num_frames), NUM_IDS, min(ID_WIDTH, task.block_out_channels[0]))
    return grown(unet, 2 * latent_channels, NUM_IDS)
