"""One picture in, one clip out: encode, denoise, decode.

What it is: the sampling of image-to-video models, top to bottom. What it is not: files and names, which are
`produce`'s; where weights live, which is `memory`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdcli.diffusion.denoiser import Denoise, Denoiser
from svdcli.diffusion.guidance import guide, is_off, parse_guidance
from svdcli.diffusion.noise import NoiseSource
from svdcli.diffusion.samplers import SAMPLERS, StepInfo, initial_state
from svdcli.diffusion.schedules import make_schedule
from svdcli.engine.memory import Residence
from svdcli.errors import InputError, MachineError
from svdcli.model.conditioning import Conditioning, augment_picture, condition_on_image, condition_on_text
from svdcli.model.settings import Settings
from svdcli.model.vae import VAE

SHARED = 0.25
"""of a window of a long clip, the share that it has in common with the next, unless its network is led by clean frames"""


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
    temperature: float = 1.0
    """of the noise that sampling starts from, see `initial_state`"""
    carry_detail: bool = False
    """whether the given picture's own pixels are carried into the decoded frames, see `engine.detail`"""
    window: int | None = None
    """frames that the network sees at once; None: all of them"""
    leading: int = 0
    """known frames that the network was trained to be given clean, at most"""

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
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
            temperature=settings.temperature,
            carry_detail=settings.carry_detail,
            schedule="karras",
            guidance=settings.guidance,
            leading=settings.leading,
        )

    def sigmas(self) -> Tensor:
        """Noise levels (n + 1,), the last one 0. Raises UsageError for options out of range."""
        return make_schedule(self.schedule, self.num_steps, self.sigma_min, self.sigma_max, self.rho)

    @property
    def at_once(self) -> int:
        """Frames that the network sees at once."""
        return min(self.window or self.num_frames, self.num_frames)

    def starts(self) -> list[int]:
        """First frames of the windows that the clip is made of; with leading frames the last one may reach beyond its end."""
        if self.leading and self.at_once < self.num_frames:
            return list(range(0, self.num_frames - self.num_shared, self.at_once - self.num_shared))
        return chunk_starts(self.num_frames, self.at_once, self.num_shared)

    @property
    def num_shared(self) -> int:
        """Frames that a window shares with the next, and a clip with one that goes on from it."""
        return min(self.leading or max(1, round(SHARED * self.at_once)), self.at_once - 1)

    def scales(self) -> Tensor:
        """Guidance scale of each frame of a window, (T,)."""
        return parse_guidance(self.guidance, self.at_once).scales


@dataclass(frozen=True)
class Preview:
    """A linear map from latents to colours, fitted to one picture: good for any autoencoder, and nearly free."""

    matrix: Tensor
    """(c + 1, 3)"""
    scaling_factor: float

    @classmethod
    def fit(cls, latent: Tensor, picture: Tensor, scaling_factor: float) -> Preview:
        """latent (c, h, w) unscaled and picture (3, H, W) in [-1, 1] -> the least-squares map."""
        small = F.adaptive_avg_pool2d(picture.cpu().float(), (latent.shape[-2], latent.shape[-1]))
        features = torch.cat([latent.cpu().float(), torch.ones(1, *latent.shape[-2:])]).flatten(1).T
        matrix = torch.linalg.lstsq(features.nan_to_num(), small.flatten(1).T).solution
        return cls(matrix, scaling_factor)

    def frames(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """Scaled latents (T, c, h, w) -> (T, h, w, 3)."""
        x = latents.cpu().float().movedim(1, -1) / self.scaling_factor
        return to_frames((torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) @ self.matrix).movedim(-1, 1))


@torch.inference_mode()
def generate(
    residence: Residence,
    pictures: Tensor,
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1], one seed each -> latents (B, T, c, h, w), scaled, float32, on the CPU.

    A clip depends on its picture, its seed and `sampling`, not on the others in the batch. Raises UsageError
    for options out of range.
    """
    conditioning = condition(residence, pictures, seeds, sampling)
    return denoise(residence, conditioning, seeds, sampling, on_step)


@torch.inference_mode()
def condition(
    residence: Residence,
    pictures: Tensor,
    seeds: list[int],
    sampling: Sampling,
    mask: Tensor | None = None,
) -> Conditioning:
    """Pictures (B, 3, H, W) in [-1, 1] -> what the network is told of them; the seeds pin the augmentation.

    mask: (1, h, w), 1 where the pictures may move, absent: everywhere; a network that takes none is told none.
    """
    embedding, latents, augment = look_at(residence, pictures, seeds, sampling)
    fps, bucket = (torch.full((len(seeds),), value) for value in (sampling.fps, sampling.motion_bucket))
    moving = None
    if residence.unet_config.takes_mask:
        moving = torch.ones_like(latents[:, :1]) if mask is None else mask.expand(len(seeds), -1, -1, -1)
    return condition_on_image(embedding, latents, fps, bucket, augment, moving)


@torch.inference_mode()
def look_at(
    residence: Residence, pictures: Tensor, seeds: list[int], sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] -> their embeddings, their unscaled latents (B, c, h, w) once they are noised, and the
    σ of that noise (B,)."""
    noise = NoiseSource(seeds, tuple(pictures.shape[1:]), "augment").draw()
    augment = torch.full((len(seeds),), sampling.augment)
    with residence.use("image_encoder") as image_encoder:
        embedding = image_encoder(pictures.to(residence.device)).to(residence.dtype)
    with residence.use("vae") as vae:
        noisy = augment_picture(pictures, noise, augment).to(residence.device, dtype_of(vae.encoder))
        latents = vae.encode(noisy[:, None])[:, 0].to(residence.dtype)
    return embedding, latents, augment


@torch.inference_mode()
def encode_clean(residence: Residence, pictures: Tensor, chunk: int | None = None) -> Tensor:
    """Pictures (T, 3, H, W) in [-1, 1] -> scaled latents (T, c, h, w), float32, on the CPU; `chunk` of them at a time."""
    with residence.use("vae") as vae:
        where, parts = (residence.device, dtype_of(vae.encoder)), pictures.split(chunk or len(pictures))
        latents = torch.cat([vae.encode(part[None].to(*where))[0].float().cpu() for part in parts])
        return latents * vae.config.scaling_factor


@torch.inference_mode()
def condition_on_prompts(
    residence: Residence, prompts: list[str], negative: str, sampling: Sampling
) -> Conditioning:
    """Captions -> what the network is told of them. Raises InputError where the bundle reads no text."""
    if "text_encoder" not in residence.files.configs:
        raise InputError(
            f"{residence.files.name} was trained without text, so that no prompt says anything to it.",
            "Give a bundle with a text encoder.",
        )
    with residence.use("text_encoder") as text_encoder:
        tokens = text_encoder([*prompts, negative]).to(residence.dtype)
    return told_by_tokens(tokens[:-1], tokens[-1:], sampling, residence.files.downscale)


def told_by_tokens(tokens: Tensor, null_token: Tensor, sampling: Sampling, downscale: int) -> Conditioning:
    """Tokens (B, N, D) and those of the null text (1, N, D), with rate and motion unless it is a picture."""
    size = sampling.height // downscale, sampling.width // downscale
    null = null_token.expand_as(tokens)
    if sampling.num_frames == 1:
        return condition_on_text(tokens, None, None, null, size)
    fps, bucket = (torch.full((len(tokens),), value) for value in (sampling.fps, sampling.motion_bucket))
    return condition_on_text(tokens, fps, bucket, null, size)


@torch.inference_mode()
def denoise(
    residence: Residence,
    conditioning: Conditioning,
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[StepInfo], None] | None = None,
    change: Callable[[Denoise], Denoise] | None = None,
) -> Tensor:
    """From noise, which the seeds pin, to scaled latents (B, T, c, h, w), float32, on the CPU.

    `change` makes another denoiser of the one that is sampled.
    """
    sigmas, scales = sampling.sigmas(), sampling.scales()
    options = {"s_churn": sampling.s_churn} if sampling.s_churn else {}
    with residence.use("unet") as unet:
        shape = sampling.num_frames, unet.config.out_channels, *conditioning.concat.shape[3:]
        noise = NoiseSource(seeds, shape)
        x = initial_state(noise, sigmas, sampling.temperature).to(residence.device)
        guided = guided_denoiser(residence, unet, conditioning, scales)
        guided = change(guided) if change is not None else guided
        return SAMPLERS[sampling.sampler](guided, x, sigmas, noise=noise, on_step=on_step, **options).cpu()


def guided_denoiser(
    residence: Residence, unet: nn.Module, conditioning: Conditioning, scales: Tensor
) -> Denoise:
    """On a GPU with room, both branches of guidance run as one batch; else one after the other."""
    cond = Denoiser(conditioning.bind(unet), residence.dtype)
    if is_off(scales):
        return guide(cond, None, scales)
    null = conditioning.null()
    if residence.device.type == "cuda" and residence.mode == "high":
        both = Denoiser(conditioning.stacked(null).bind(unet), residence.dtype)
        return guide(cond, None, scales, batched=both)
    return guide(cond, Denoiser(null.bind(unet), residence.dtype), scales)


@torch.inference_mode()
def decode(
    residence: Residence,
    latents: Tensor,
    chunk: int | None,
    overlap: int,
    on_frames: Callable[[int], None] | None = None,
    on_smaller: Callable[[int], None] | None = None,
) -> tuple[npt.NDArray[np.uint8], int]:
    """Scaled latents (T, c, h, w) -> frames (T, H, W, 3) uint8, and the chunk that fitted.

    The decoder sees `chunk` frames at a time (None: all), see `decode_pieces`. Where memory runs out, decoding
    begins again with half the chunk, after `on_smaller(chunk)`. `on_frames(done)` tells of progress. Raises
    MachineError where memory is short for a single frame.
    """
    chunk = min(chunk or len(latents), len(latents))
    with residence.use("vae") as vae:
        scaled = unscaled(vae, latents.to(residence.device))
        while True:
            try:
                frames: list[npt.NDArray[np.uint8]] = []
                for pixels in decode_pieces(vae, scaled, chunk, overlap):
                    frames.extend(to_frames(pixels))
                    if on_frames is not None:
                        on_frames(len(frames))
                return np.stack(frames), chunk
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if chunk == 1:
                    raise MachineError(
                        "the memory ran out, even for decoding a single frame",
                        "Close other programs, or make the video smaller with --size.",
                    ) from error
            # Out of the handler, whose traceback held on to the tensors of the failed attempt.
            chunk = (chunk + 1) // 2
            residence.release()
            if on_smaller is not None:
                on_smaller(chunk)


def decode_pieces(vae: VAE, latents: Tensor, chunk: int, overlap: int) -> Iterator[Tensor]:
    """Unscaled latents (T, c, h, w) -> pixels (t, 3, H, W) float32 near [-1, 1], piece after piece, T in all.

    The decoder mixes frames over time, so that a frame at the border of a chunk, which lacks half of its
    neighbours, comes out otherwise than it should. Neighbouring chunks share `overlap` frames, over which one
    fades into the other (smoothly: measured against the whole decode that beats a straight fade by about a
    decibel, and a cut in the middle, or leaving out the outermost frames, by far in its largest jump). Without
    overlap the chunks are those of diffusers.
    """
    starts = chunk_starts(len(latents), chunk, overlap)
    carried = None  # the chunk's view of the frames that the next one sees too
    for start, ahead in zip(starts, [*starts[1:], len(latents)], strict=True):
        pixels = vae.decode(latents[None, start : start + chunk])[0].float()
        if carried is not None:
            shared = len(carried)
            ramp = torch.linspace(0, 1, shared + 2, device=pixels.device)[1:-1, None, None, None]
            pixels[:shared] = torch.lerp(carried, pixels[:shared], ramp * ramp * (3 - 2 * ramp))
        yield pixels[: ahead - start]
        carried = pixels[ahead - start :]


def chunk_starts(total: int, chunk: int, overlap: int) -> list[int]:
    """First frames of the windows of `chunk` frames that cover `total`, each sharing `overlap` with the last.

    The final window reaches back so as to be whole, for a decoder sees the worse the fewer frames it sees;
    without overlap it is as short as it comes.
    """
    overlap = min(overlap, chunk - 1)
    if total <= chunk:
        return [0]
    starts = list(range(0, total - overlap, chunk - overlap))
    return [min(start, total - chunk) for start in starts] if overlap else starts


def unscaled(vae: VAE, latents: Tensor) -> Tensor:
    """Scaled latents as the decoder takes them: in its precision, without the scaling factor."""
    return latents.to(dtype_of(vae.decoder)) / vae.config.scaling_factor


def dtype_of(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def to_frames(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Pixels (..., 3, H, W) near [-1, 1] -> (..., H, W, 3) uint8."""
    scaled = pixels.float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).movedim(-3, -1).contiguous().cpu().numpy()


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception is an allocation that failed, on the host or on a device."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(
        words in text for words in ("out of memory", "allocate memory", "enough memory", "alloc_failed")
    )
