"""Image-to-video training (SVD paper §4.2, app. D.4): given a frame, denoise the clip that it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.camera import with_camera_moves
from svdcli.data.frames import FrameSet, Video, split_frames
from svdcli.data.motion import MotionCalibration, motion_score
from svdcli.diffusion.denoiser import Denoiser
from svdcli.diffusion.loss import denoising_loss, draw_sigma
from svdcli.engine.generate import Sampling, decode, generate
from svdcli.engine.latents import latent_rows, to_pixels
from svdcli.engine.samples import NUM_SAMPLES, Held, Sample
from svdcli.engine.tasks import data_notes
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
STRIDES = range(1, 9)
EVALUATION_FPS, EVALUATION_AUGMENT = 7, 0.02
EVALUATION_SIGMAS = (0.2, 0.7, 2.0, 6.0, 20.0)
CAMERA_FPS, CAMERA_FRAMES = 12.0, 32
DECODE_CHUNK, DECODE_OVERLAP = 8, 3


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


class ImageToVideo:
    """See `Task`."""

    def __init__(
        self, task: ImageToVideoTask, data: Data, batch_size: int, device: torch.device, cache: Path
    ) -> None:
        self.task, self.data, self.batch_size, self.device = task, data, batch_size, device
        self.vae = load_vae(task.vae).to(device).eval().requires_grad_(False)
        train_set, self.held_out = split_frames(data, cache)
        self._require_clips(train_set)
        self.train_set = with_camera_moves(
            train_set.compact(), task.camera_moves, CAMERA_FRAMES, CAMERA_FPS, seed=0
        )
        self.latents = latent_rows(self.vae, self.train_set.frames, cache, device)
        self.calibration = self._calibrate()
        if task.start is not None:
            unet, image_encoder = load_image_to_video(task.start if task.start.exists() else str(task.start))
            require_same(unet.config, task)
        else:
            unet, image_encoder = new_networks(task, self.vae.config, data.width)
        self.network = Continuation(unet, image_encoder)

    def _require_clips(self, train_set: FrameSet) -> None:
        """Raise InputError where a clip length finds no footage, for training or to judge by."""
        lowest, highest = self.task.fps
        for num_frames in self.task.num_frames:
            # The rates that a clip may be labelled with must meet those that training draws.
            fits = [
                self.strides(video, num_frames, min(max(video.fps / stride, lowest), highest))
                for video in train_set.videos
                for stride in STRIDES
            ]
            if not any(fits):
                raise InputError(
                    f"No video gives clips of {num_frames} frames at {lowest:g} to {highest:g} a second.",
                    "Ask for fewer in task.num_frames, for other task.fps, or add footage.",
                )
        if not self.evaluated():
            raise InputError(
                f"No held-out video has the {min(self.task.num_frames)} frames of a clip.",
                "Hold out longer videos, see data.held_out.",
            )

    def _calibrate(self) -> MotionCalibration:
        """The motion buckets of this training set: clips drawn as in training, ranked by measured motion."""
        rng = np.random.default_rng(0)
        scores = []
        for _ in range(CALIBRATION_CLIPS):
            video, first, stride, fps = self.draw_clip(self.train_set, rng, min(self.task.num_frames))
            scores.append(
                motion_score(self.train_set.clip(video, first, min(self.task.num_frames), stride), fps)
            )
        return MotionCalibration.fit(scores)

    def draw_clip(
        self, frames: FrameSet, rng: np.random.Generator, num_frames: int
    ) -> tuple[Video, int, int, float]:
        """-> a video, its first frame, the stride, and the rate it is labelled with."""
        while True:
            video = frames.videos[rng.integers(len(frames.videos))]
            fps = float(rng.uniform(*self.task.fps))
            strides = self.strides(video, num_frames, fps)
            if strides:
                stride = int(rng.choice(strides))
                return video, int(rng.integers(video.num_frames - (num_frames - 1) * stride)), stride, fps

    def strides(self, video: Video, num_frames: int, fps: float) -> list[int]:
        """The strides at which a video holds a clip that, labelled with `fps`, is near enough to life."""
        fastest = self.task.max_speed
        return [
            stride
            for stride in STRIDES
            if 1 / fastest <= video.fps / stride / fps <= fastest
            and (num_frames - 1) * stride < video.num_frames
        ]

    def batch(self, seed: list[int]) -> Batch:
        """Clips of one of the recipe's lengths, each with its own rate, motion bucket and augmentation."""
        rng = np.random.default_rng(seed)
        num_frames = int(rng.choice(self.task.num_frames))
        drawn = [self.draw_clip(self.train_set, rng, num_frames) for _ in range(self.batch_size)]
        rows = [
            slice(v.start + first, v.start + first + (num_frames - 1) * s + 1, s) for v, first, s, _ in drawn
        ]
        pixels = [self.train_set.frames[r] for r in rows]
        buckets = [
            self.calibration.bucket(motion_score(p, fps)) for p, (*_, fps) in zip(pixels, drawn, strict=True)
        ]
        augment = np.exp(rng.normal(self.task.augment_mean, self.task.augment_std, self.batch_size))
        latents = torch.from_numpy(np.stack([self.latents[r] for r in rows])).float()
        return Batch(
            latents.mul_(self.vae.config.scaling_factor).to(self.device),
            to_pixels(np.stack([p[0] for p in pixels])).to(self.device),
            torch.tensor([fps for *_, fps in drawn], device=self.device),
            torch.tensor(buckets, device=self.device),
            torch.tensor(augment, dtype=torch.float32, device=self.device),
        )

    def loss(
        self, network: nn.Module, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        sigma = draw_sigma(generator, len(batch.fps), self.task.p_mean, self.task.p_std)
        keep = keep_mask(torch.rand(len(batch.fps), generator=generator), self.task).to(self.device)
        losses = self.losses(network, batch, sigma, keep, generator)
        return losses.mean(), {"sigma": sigma.mean().item(), "num_frames": batch.latents.shape[1]}

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
            frames = self.held_out.clip(video, 0, num_frames, stride)
            if len(frames) == num_frames:
                clips.append((index, frames, video.fps / stride))
        return clips

    def _evaluation_clip(self, frames: npt.NDArray[np.uint8], fps: float) -> Batch:
        pixels = to_pixels(frames)[None].to(self.device)
        bucket = self.calibration.bucket(motion_score(frames, fps))
        ids = (torch.tensor([v], device=self.device) for v in (fps, bucket, EVALUATION_AUGMENT))
        return Batch(self.vae.encode(pixels) * self.vae.config.scaling_factor, pixels[:, 0], *ids)

    def notes(self) -> list[str]:
        kind = (
            f"clips ({self.task.camera_moves} of them camera moves)" if self.task.camera_moves else "videos"
        )
        return data_notes(self.train_set, self.held_out, kind)

    def settings(self) -> Settings:
        """How the bundle is best sampled."""
        return Settings(
            num_frames=self.network.unet.config.num_frames,
            width=self.data.width,
            height=self.data.height,
            fps=round(sum(self.task.fps) / 2, 1),
            guidance=self.task.guidance,
            num_steps=self.task.num_steps,
            sigma_min=self.task.sigma_min,
            sigma_max=self.task.sigma_max,
            sampler=self.task.sampler,
        )

    def sample(self, networks: Mapping[str, nn.Module]) -> list[Sample]:
        """Held-out clips as they went on, and as each network continues their first frame; see `Samples`.

        As the bundle suggests to sample, but with the rate and the motion of the clip beside it.
        """
        suggested, samples = Sampling.of(self.settings()), []
        for index, frames, fps in self.evaluated()[:NUM_SAMPLES]:
            bucket = self.calibration.bucket(motion_score(frames, fps))
            sampling = replace(suggested, fps=fps, motion_bucket=bucket)
            video = self.held_out.videos[::2][index]
            whole = self.held_out.clip(video, 0, sampling.num_frames, max(1, round(video.fps / fps)))
            views = {"held-out": np.asarray(whole)}
            for name, network in networks.items():
                assert isinstance(network, Continuation)
                parts = {"unet": network.unet, "image_encoder": network.image_encoder, "vae": self.vae}
                residence = Held(parts, self.device)
                latents = generate(residence, to_pixels(frames[:1]), [index], sampling)[0]
                views[name] = decode(residence, latents, DECODE_CHUNK, DECODE_OVERLAP)[0]
            samples.append(Sample(video.name, fps, views))
        return samples

    def export(self, network: Continuation, folder: Path, recipe_text: str) -> None:
        """The bundle of the averaged weights, in half precision, in `bundle/`."""
        parts = network.unet, network.image_encoder, self.vae
        settings = replace(self.settings(), recipe=recipe_text)
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
