"""The frames between two: encode the pair, denoise, decode. The given frames stay as they are, to the bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from svdcli.data.motion import motion_score
from svdcli.diffusion.noise import NoiseSource
from svdcli.diffusion.samplers import StepInfo
from svdcli.engine.detail import carry_detail
from svdcli.engine.generate import Sampling, denoise, dtype_of, to_frames, unscaled
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence
from svdcli.model.conditioning import Conditioning, Ends, condition_on_ends

Frames = npt.NDArray[np.uint8]


@torch.inference_mode()
def interpolate(
    residence: Residence,
    pairs: Frames,
    buckets: list[float],
    seeds: list[int],
    sampling: Sampling,
    on_step: Callable[[StepInfo], None] | None = None,
) -> Frames:
    """Pairs of frames (B, 2, H, W, 3), a motion bucket and a seed each -> the frames between (B, T - 2, H, W, 3).

    T is `sampling.num_frames`, and `sampling.fps` the rate of the result. A pair's frames depend on the pair, its bucket, its
    seed and `sampling`, not on the others in the batch.
    """
    pixels = to_pixels(pairs)
    conditioning = condition_pairs(residence, pixels, buckets, seeds, sampling)
    latents = denoise(residence, conditioning, seeds, sampling, on_step)
    with residence.use("vae") as vae:
        clips = unscaled(vae, latents.to(residence.device))
        decoded = torch.cat([vae.decode(clip[None]) for clip in clips]).float().cpu()
    frames = to_frames(decoded)
    if sampling.carry_detail:
        last = sampling.num_frames - 1
        frames = np.stack(
            [carry_detail(f, {0: p[0], last: p[1]}) for f, p in zip(frames, pairs, strict=True)]
        )
    return frames[:, 1:-1]


@torch.inference_mode()
def condition_pairs(
    residence: Residence, pictures: Tensor, buckets: list[float], seeds: list[int], sampling: Sampling
) -> Conditioning:
    """Pairs of pictures (B, 2, 3, H, W) in [-1, 1] -> what the network is told; the seeds pin the augmentation."""
    with residence.use("image_encoder") as image_encoder:
        embeddings = embed_pictures(image_encoder, pictures.to(residence.device)).to(residence.dtype)
    with residence.use("vae") as vae:
        encoded = vae.encode(pictures.to(residence.device, dtype_of(vae.encoder)))
        latents = (encoded * vae.config.scaling_factor).to(residence.dtype)
    noise = NoiseSource(seeds, tuple(latents.shape[1:]), "augment").draw().to(residence.device)
    fps, augment = (torch.full((len(seeds),), value) for value in (sampling.fps, sampling.augment))
    ends = Ends(embeddings, latents, noise, fps, torch.tensor(buckets), augment)
    with residence.use("mask_latent") as mask_latent:
        return condition_on_ends(ends, mask_latent, sampling.num_frames)


def embed_pictures(image_encoder: nn.Module, pictures: Tensor) -> Tensor:
    """Pictures (B, N, 3, H, W) in [-1, 1] -> a token each (B, N, D)."""
    return image_encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2])


def pair_motion_score(first: Frames, last: Frames, num_frames: int, fps: float) -> float:
    """Two frames (H, W, 3), ends of a clip of `num_frames` at `fps` -> motion score, see `motion_score`."""
    return motion_score(np.stack([first, last]), fps / (num_frames - 1))
