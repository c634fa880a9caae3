"""One picture in, one clip out: encode, denoise, decode.

What it is: the sampling of image-to-video models, top to bottom. What it is not: files, names and batches of inputs, which are
`produce`'s; where weights live, which is `memory`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from svdcli.diffusion.denoiser import Denoise, Denoiser
from svdcli.diffusion.guidance import guide, is_off, parse_guidance
from svdcli.diffusion.noise import NoiseSource
from svdcli.diffusion.samplers import SAMPLERS, StepInfo, initial_state
from svdcli.diffusion.schedules import make_schedule
from svdcli.engine.memory import Residence
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_image
from svdcli.model.settings import Settings
from svdcli.model.vae import VAE


@dataclass(frozen=True)
class Sampling:
    """Every value that shapes a clip, as it is used and as the manifest records it."""

    num_frames: int
    width: int
    height: int
    fps: float
    motion_bucket: float
    augment: float
    """σ of the noise on the condition frame, pixels in [-1, 1]"""
    num_steps: int
    sampler: str
    schedule: str
    guidance: str
    sigma_min: float = 0.002
    sigma_max: float = 700.0
    rho: float = 7.0
    s_churn: float = 0.0

    @classmethod
    def of(cls, settings: Settings, portrait: bool = False) -> Sampling:
        """What a bundle suggests; its size on its side for a portrait picture."""
        size = (settings.height, settings.width) if portrait else (settings.width, settings.height)
        return cls(
            num_frames=settings.num_frames,
            width=size[0],
            height=size[1],
            fps=settings.fps,
            motion_bucket=settings.motion_bucket,
            augment=settings.augment,
            num_steps=settings.num_steps,
            sampler=settings.sampler,
            schedule="karras",
            guidance=settings.guidance,
        )

    def sigmas(self) -> Tensor:
        """Noise levels (n + 1,), the last one 0. Raises UsageError for options out of range."""
        return make_schedule(self.schedule, self.num_steps, self.sigma_min, self.sigma_max, self.rho)

    def scales(self) -> Tensor:
        """Guidance scale of each frame, (T,)."""
        return parse_guidance(self.guidance, self.num_frames).scales


@dataclass(frozen=True)
class Preview:
    """A linear map from latents to colours, fitted to the picture at hand: good for any autoencoder, and nearly free."""

    matrix: Tensor
    """(c + 1, 3)"""
    scaling_factor: float

    @classmethod
    def fit(cls, latent: Tensor, picture: Tensor, scaling_factor: float) -> Preview:
        """latent (c, h, w) unscaled and picture (3, H, W) in [-1, 1] -> the least-squares map."""
        small = torch.nn.functional.adaptive_avg_pool2d(picture.cpu().float(), tuple(latent.shape[-2:]))
        features = torch.cat([latent.cpu().float(), torch.ones(1, *latent.shape[-2:])]).flatten(1).T
        return cls(torch.linalg.lstsq(features, small.flatten(1).T).solution, scaling_factor)

    def frames(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Scaled latents (T, c, h, w) -> (T, h, w, 3)."""
        x = latents.cpu().float().movedim(1, -1) / self.scaling_factor
        return to_frames((torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) @ self.matrix).movedim(-1, 1))


OnStep = Callable[[StepInfo, Preview], None]


@torch.inference_mode()
def generate(
    residence: Residence,
    pictures: Tensor,
    seeds: list[int],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], one seed each -> latents (B, T, c, h, w), scaled, float32, on the CPU.

    A clip depends on its picture, its seed and `sampling`, not on the others in the batch. Raises UsageError for options out of
    range.
    """
    sigmas, scales = sampling.sigmas(), sampling.scales()
    conditioning, latents = condition(residence, pictures, seeds, sampling)
    config = residence.files.configs["vae"]
    preview = Preview.fit(latents[0], pictures[0], config["scaling_factor"])
    noise = NoiseSource(seeds, (sampling.num_frames, *latents.shape[1:]))
    with residence.use("unet") as unet:
        denoise = denoiser(residence, unet, conditioning, scales)
        tell = None if on_step is None else lambda info: on_step(info, preview)
        options = {"s_churn": sampling.s_churn} if sampling.s_churn else {}
        x = initial_state(noise, sigmas).to(residence.device)
        x = SAMPLERS[sampling.sampler](denoise, x, sigmas, noise=noise, on_step=tell, **options)
    return x.cpu()


def condition(
    residence: Residence, pictures: Tensor, seeds: list[int], sampling: Sampling
) -> tuple[Conditioning, Tensor]:
    """Pictures (B, 3, H, W) -> the conditioning, and the unscaled latents (B, c, h, w) of the noise-augmented pictures."""
    noise = NoiseSource(seeds, tuple(pictures.shape[1:]), "augment").draw()
    augment = torch.full((len(seeds),), sampling.augment)
    with residence.use("image_encoder") as image_encoder:
        embedding = image_encoder(pictures.to(residence.device)).to(residence.dtype)
    with residence.use("vae") as vae:
        noisy = augment_picture(pictures, noise, augment).to(residence.device, residence.precision("vae"))
        latents = vae.encode(noisy[:, None])[:, 0].float()
    fps, bucket = (torch.full((len(seeds),), value) for value in (sampling.fps, sampling.motion_bucket))
    return condition_on_image(embedding, latents.to(residence.dtype), fps, bucket, augment), latents


def denoiser(
    residence: Residence, unet: torch.nn.Module, conditioning: Conditioning, scales: Tensor
) -> Denoise:
    """The guided denoiser. On a GPU with room, both branches of guidance run as one batch; else one after the other."""
    cond = Denoiser(conditioning.bind(unet), residence.dtype)
    if is_off(scales):
        return guide(cond, None, scales)
    null = conditioning.null()
    if residence.device.type == "cuda" and residence.mode == "high":
        both = Denoiser(conditioning.stacked(null).bind(unet), residence.dtype)
        return guide(cond, None, scales, batched=both)
    return guide(cond, Denoiser(null.bind(unet), residence.dtype), scales)


def decode(
    residence: Residence,
    latents: Tensor,
    chunk: int | None,
    overlap: int,
    on_frames: Callable[[int, int], None] | None = None,
) -> tuple[npt.NDArray[np.uint8], int]:
    """Scaled latents (T, c, h, w) -> frames (T, H, W, 3) uint8, and the chunk that fitted.

    The decoder sees `chunk` frames at a time (None: all); neighbouring chunks share `overlap` frames, which are blended, so that
    no seam shows. Where memory runs out the chunk is halved and decoding goes on. `on_frames(done, total)` tells of progress.
    """
    chunk = min(chunk or len(latents), len(latents))
    with torch.inference_mode(), residence.use("vae") as vae:
        scaled = (
            latents.to(residence.device, residence.precision("vae"))
            / residence.files.configs["vae"]["scaling_factor"]
        )
        while True:
            try:
                return decode_chunks(vae, scaled, chunk, overlap, on_frames), chunk
            except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if chunk == 1 or not is_out_of_memory(error):
                    raise
                chunk = (chunk + 1) // 2
                residence._release()


def decode_chunks(
    vae: VAE, latents: Tensor, chunk: int, overlap: int, on_frames: Callable[[int, int], None] | None = None
) -> npt.NDArray[np.uint8]:
    """Unscaled latents (T, c, h, w) -> frames (T, H, W, 3) uint8, by chunks whose overlaps are blended linearly.

    Only one chunk and the overlap before it are held as floats; finished frames are uint8.
    """
    total, done = len(latents), []
    carried: Tensor | None = None  # the previous chunk's view of the frames that it shares with the next
    for start, stop in chunks(total, chunk, overlap):
        pixels = vae.decode(latents[None, start:stop])[0].float()
        if carried is not None:
            shared = len(carried)
            ramp = torch.linspace(0, 1, shared + 2, device=pixels.device)[1:-1, None, None, None]
            pixels[:shared] = torch.lerp(carried, pixels[:shared], ramp)
        ahead = (
            next((s for s, _ in chunks(total, chunk, overlap) if s > start), stop) if stop < total else stop
        )
        done.append(to_frames(pixels[: ahead - start]))
        carried = pixels[ahead - start :].clone() if stop < total else None
        if on_frames is not None:
            on_frames(min(ahead, total), total)
    return np.concatenate(done)


def chunks(total: int, chunk: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Windows [start, stop) of at most `chunk` frames that cover `total`, each sharing `overlap` with the one before it."""
    step = max(1, chunk - max(0, min(overlap, chunk - 1)))
    start = 0
    while True:
        stop = min(start + chunk, total)
        yield start, stop
        if stop == total:
            return
        start += step


def to_frames(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Pixels (T, 3, H, W) near [-1, 1] -> (T, H, W, 3) uint8."""
    scaled = pixels.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).movedim(1, -1).contiguous().cpu().numpy()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception is an allocation that failed, on the host or on a device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
