"""Image-to-video training (SVD paper §4.2, app. D.4): given a frame, denoise the clip that it begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.camera import with_camera_moves
from svdcli.data.dataset import open_dataset
from svdcli.data.examples import Example, Examples, Wish
from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma
from svdcli.engine.latents import Latents, to_frames, to_pixels
from svdcli.engine.tasks import Preview, data_notes
from svdcli.engine.tasks.parts import load_image_to_video, load_vae, require_same, save_image_to_video
from svdcli.errors import InputError
from svdcli.model.conditioning import augment_picture, condition_on_image
from svdcli.model.image_encoder import ImageEncoder
from svdcli.model.settings import Settings
from svdcli.model.unet import UNet, UNetConfig
from svdcli.model.unet_start import can_start_still, start_still
from svdcli.model.vae import VAEConfig
from svdcli.recipe.recipe import Data, ImageToVideoTask

CALIBRATION_CLIPS = 400
EVALUATION_FPS, EVALUATION_AUGMENT = 7, 0.02
EVALUATION_SIGMAS = (0.2, 0.7, 2.0, 6.0, 20.0)
CAMERA_FPS, CAMERA_FRAMES = 12.0, 32


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


class ImageToVideo:
    """See `Task`."""

    def __init__(
        self,
        task: ImageToVideoTask,
        data: Data,
        batch_size: int,
        device: torch.device,
        cache: Path,
        seed: int = 0,
        parts: int = 1,
    ) -> None:
        self.task, self.data, self.device = task, data, device
        self.vae = load_vae(task.vae).to(device).eval().requires_grad_(False)
        train_set, self.held_out = open_dataset(data, cache)
        self.train_set = with_camera_moves(train_set, task.camera_moves, CAMERA_FRAMES, CAMERA_FPS, seed=0)
        wish = Wish(task.num_frames, task.fps, task.max_speed, data.sampling, data.max_corrupt_share)
        self.examples = Examples(self.train_set, wish, batch_size, seed, parts)
        if not self.evaluated():
            raise InputError(
                f"No held-out video has the {min(self.task.num_frames)} frames of a clip.",
                "Hold out longer videos, see data.held_out.",
            )
        self.latents = Latents(self.vae, self.train_set, cache if data.latent_cache else None, device)
        self.calibration = MotionCalibration.fit(self.examples.scores(CALIBRATION_CLIPS))
        if task.start is not None:
            unet, image_encoder = load_image_to_video(task.start if task.start.exists() else str(task.start))
            require_same(unet.config, task)
        else:
            unet, image_encoder = new_networks(task, self.vae.config, data.width)
        self.network = Continuation(unet, image_encoder)

    def batch(self, seed: list[int]) -> Batch:
        """Clips of one of the recipe's lengths, each with its own rate, motion bucket and augmentation."""
        rng = np.random.default_rng(seed)
        drawn = self.examples.draw(seed, rng)
        augment = np.exp(rng.normal(self.task.augment_mean, self.task.augment_std, len(drawn)))
        latents = np.stack([self.latents.take(e.window.video, e.window.numbers, e.pixels) for e in drawn])
        return Batch(
            torch.from_numpy(latents).float().mul_(self.vae.config.scaling_factor).to(self.device),
            to_pixels(np.stack([e.pixels[0] for e in drawn])).to(self.device),
            torch.tensor([e.window.fps for e in drawn], device=self.device),
            torch.tensor([self.calibration.bucket(e.motion) for e in drawn], device=self.device),
            torch.tensor(augment, dtype=torch.float32, device=self.device),
            tuple(drawn),
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
            window, (width, height) = example.window, example.size
            ids = f"fps id {batch.fps[i] - 1:.3g}, motion bucket {batch.motion_bucket[i]:.0f}"
            noised = f"σ of the condition {batch.augment[i]:.3f}, σ {sigma[i]:.3g}"
            dropped = [
                n for n, kept in zip(("embedding", "latent"), keep[i].tolist(), strict=True) if not kept
            ]
            gone = f", without {' and '.join(dropped)}" if dropped else ""
            place = (
                f"{width}x{height}x{len(window.numbers)}, frames {window.numbers[0]}..{window.numbers[-1]}"
            )
            frames = np.concatenate([pictures[i][None], example.pixels])
            found.append(Preview(f"{window.video.name}: {ids}, {noised}{gone}; {place}", frames))
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

    @torch.no_grad()
    def evaluate(self, network: Continuation) -> dict[str, float]:
        """Held-out loss at fixed noise levels, on the clips of `evaluated`; the noise is always the same."""
        bins: dict[float, list[float]] = {sigma: [] for sigma in EVALUATION_SIGMAS}
        keep = torch.ones(1, 2, device=self.device)
        for index, frames, fps in self.evaluated():
            clip = self._evaluation_clip(frames, fps)
            for sigma in EVALUATION_SIGMAS:
                generator = torch.Generator().manual_seed(index)
                bins[sigma].append(self.losses(network, clip, torch.tensor([sigma]), keep, generator).item())
        figures = {f"held_out_loss_{sigma}": float(np.mean(values)) for sigma, values in bins.items()}
        return figures | {"held_out_loss": float(np.mean(list(figures.values())))}

    def evaluated(self) -> list[tuple[int, npt.NDArray[np.uint8], float]]:
        """Every other held-out video that is long enough.

        -> its number, its first frames (T, H, W, 3) at about EVALUATION_FPS, and their rate.
        """
        num_frames, clips = min(self.task.num_frames), []
        for index, video in enumerate(self.held_out.videos[::2]):
            stride = max(1, round(video.fps / EVALUATION_FPS))
            if (num_frames - 1) * stride < video.num_frames:
                frames = self.held_out.take(video, range(0, num_frames * stride, stride))
                clips.append((index, frames, video.fps / stride))
        return clips

    def _evaluation_clip(self, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        pixels = to_pixels(frames)[None].to(self.device)
        bucket = self.calibration.bucket(motion_score(frames, fps))
        fed, moved, noised = (
            torch.tensor([v], device=self.device) for v in (fps, bucket, EVALUATION_AUGMENT)
        )
        latents = self.vae.encode(pixels) * self.vae.config.scaling_factor
        return Batch(latents, pixels[:, 0], fed, moved, noised)

    def notes(self) -> list[str]:
        kind = (
            f"clips ({self.task.camera_moves} of them camera moves)" if self.task.camera_moves else "videos"
        )
        return data_notes(self.train_set, self.held_out, kind, self.examples.left_out)

    def export(self, network: Continuation, folder: Path, recipe_text: str) -> None:
        """The bundle of the averaged weights, in half precision, in `bundle/`."""
        settings = Settings(
            num_frames=network.unet.config.num_frames,
            width=self.data.width,
            height=self.data.height,
            fps=round(sum(self.task.fps) / 2, 1),
            guidance=self.task.guidance,
            num_steps=self.task.num_steps,
            sigma_min=self.task.sigma_min,
            sigma_max=self.task.sigma_max,
            sampler=self.task.sampler,
            recipe=recipe_text,
        )
        parts = network.unet, network.image_encoder, self.vae
        save_image_to_video(*parts, self.calibration, settings, folder / "bundle")


def keep_mask(share: Tensor, task: ImageToVideoTask) -> Tensor:
    """Uniform draws (B,) in [0, 1) -> (B, 2): 1 or 0 for each clip's embedding and condition latent."""
    latent = task.drop_both + task.drop_latent
    no_embedding = (share < task.drop_both) | ((share >= latent) & (share < latent + task.drop_embedding))
    return torch.stack([~no_embedding, share >= latent], dim=1).float()


def new_networks(task: ImageToVideoTask, vae: VAEConfig, width: int) -> tuple[UNet, ImageEncoder]:
    """A UNet and an image encoder from scratch, as the recipe shapes them; still at first where that shape allows."""
    latent_channels, attends = vae.latent_channels, task.attention_levels
    unet = UNet(
        UNetConfig(
            in_channels=2 * latent_channels,
            out_channels=latent_channels,
            down_block_types=tuple(f"{'CrossAttn' * a}DownBlockSpatioTemporal" for a in attends),
            up_block_types=tuple(f"{'CrossAttn' * a}UpBlockSpatioTemporal" for a in reversed(attends)),
            block_out_channels=task.block_out_channels,
            norm_num_groups=task.norm_num_groups,
            addition_time_embed_dim=task.block_out_channels[0],
            projection_class_embeddings_input_dim=3 * task.block_out_channels[0],
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
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    image_encoder = ImageEncoder(
        shape | {"image_size": 224, "patch_size": 32, "projection_dim": task.context_dim}
    )
    return unet, image_encoder
