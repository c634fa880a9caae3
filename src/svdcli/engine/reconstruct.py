"""A clip through the autoencoder alone: the most that a model which works on its latents can show."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from svdcli.engine.generate import decode, dtype_of
from svdcli.engine.latents import to_pixels
from svdcli.engine.memory import Residence

Frames = npt.NDArray[np.uint8]


@torch.inference_mode()
def reconstruct(residence: Residence, frames: Frames, chunk: int, overlap: int) -> Frames:
    """Frames (T, H, W, 3) -> the same, encoded and decoded, `chunk` frames at a time as `decode` has it."""
    with residence.use("vae") as vae:
        dtype, pixels = dtype_of(vae.encoder), to_pixels(frames)
        parts = [vae.encode(part[None].to(residence.device, dtype))[0] for part in pixels.split(chunk)]
        latents = torch.cat(parts) * vae.config.scaling_factor
    return decode(residence, latents, chunk, overlap)[0]
